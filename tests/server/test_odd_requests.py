"""Whatever stands in a place of a request, it is served or refused, and never fails."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_budget.server.answer_fields import read_answer
from mlx_budget.server.budgets import BudgetPolicy, asked_floor, read_thinking
from mlx_budget.server.errors import RequestError
from mlx_budget.server.handler import check_body
from mlx_budget.server.interfaces import TRANSLATED
from mlx_budget.server.response_store import ResponseStore

TOOL = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {"type": "object"},
    "defer_loading": True,
}
REFERENCE = {"type": "tool_reference", "name": "add"}
FUNCTION = {"type": "function", "name": "add", "parameters": {}}


def text(kind: str = "text") -> list[dict]:
    return [{"type": kind, "text": "Hi."}]


MESSAGES = {
    "model": "demo",
    "max_tokens": 100,
    "stream": True,
    "system": text(),
    "stop_sequences": ["x"],
    "thinking": {"type": "enabled", "budget_tokens": 40, "display": "omitted"},
    "output_config": {"effort": "low"},
    "tools": [TOOL],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
    "chat_template_kwargs": {"enable_thinking": True},
    "messages": [
        {"role": "user", "content": text()},
        {
            "role": "system",
            "content": [{"type": "tool_addition", "tool": REFERENCE}],
            "clear_at": "never",
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "", "signature": "s"},
                *text(),
                {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "1",
                    "content": [*text(), {**REFERENCE, "tool_name": "add"}],
                    "is_error": True,
                }
            ],
        },
    ],
}
RESPONSES = {
    "model": "demo",
    "max_output_tokens": 100,
    "stream": True,
    "instructions": "Be brief.",
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "store": True,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tools": [FUNCTION, {"type": "namespace", "name": "n", "tools": [FUNCTION]}],
    "tool_choice": "auto",
    "previous_response_id": None,
    "input": [
        {"role": "user", "content": text("input_text")},
        {
            "type": "reasoning",
            "summary": text("summary_text"),
            "content": None,
            "encrypted_content": "x",
        },
        {
            "type": "function_call",
            "call_id": "1",
            "name": "add",
            "namespace": "n",
            "arguments": "{}",
        },
        {
            "type": "function_call_output",
            "call_id": "1",
            "output": text("input_text"),
        },
    ],
}
ODD: list[Any] = [None, True, False, 0, -1, 5, 1.5, "", "x", [], {}, [None], [5]]
ODD += [["x"], [{}], [[]], {"x": 1}, {"type": "text"}, {"type": None}, {"type": []}]
ODD += [{"type": {}}, "auto", text(), [{"type": "function"}], {"a": {"b": []}}]
ABSENT = object()


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where something stands in a body."""
    if path:
        yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


def changed(body: dict, path: tuple, value: Any) -> dict:
    body = copy.deepcopy(body)
    place: Any = body
    for key in path[:-1]:
        place = place[key]
    if value is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return {key: v for key, v in body.items() if v is not None}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", MESSAGES),
        ("/v1/messages/count_tokens", MESSAGES),
        ("/v1/responses", RESPONSES),
    ],
)
def test_whatever_stands_in_a_place_is_served_or_refused(path, body):
    served = 0
    for place in places(body):
        for value in (*ODD, ABSENT):
            asked = changed(body, place, value)
            try:
                chat = TRANSLATED[path](asked, ResponseStore()).chat
                check_body(chat)
                read_thinking(chat, BudgetPolicy())
                asked_floor(chat)
                read_answer(chat)
                json.dumps(chat)
            except RequestError as e:
                assert str(e) and "\n" not in str(e)
            else:
                served += 1
    assert served > 0


def test_a_conversation_of_very_many_messages_is_read_at_once():
    """A time that grows with the square of them would be hours."""
    many = 100_000
    user = {"role": "user", "content": "x"}
    system = {"role": "system", "content": "x", "clear_at": "next_user_message"}
    body = {"messages": [user, system] * many, "max_tokens": 1}
    chat = TRANSLATED["/v1/messages"](body, ResponseStore()).chat
    # The last one of the system is still there.
    assert len(chat["messages"][0]["content"]) == 3 * (many + 1) - 2
    thought = {"type": "reasoning", "content": [{"type": "x", "text": "x"}]}
    said = {"role": "assistant", "content": "x"}
    items = [user, *[thought, said] * many, user]
    chat = TRANSLATED["/v1/responses"]({"input": items}, ResponseStore()).chat
    assert len(chat["messages"]) == 3 and len(chat["messages"][1]["content"]) == many
