"""Whatever a client could mean as a budget is honoured or refused by its name.

The list is made of what clients and servers send, not of our own table.
"""

import json
import urllib.error
import urllib.request

import pytest

from mlx_budget.engine.budgets import Effort
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.server.budget_fields import check_template_arguments
from mlx_budget.server.budgets import BudgetPolicy, read_thinking
from mlx_budget.server.errors import RequestError
from mlx_budget.server.handler import check_body
from mlx_budget.server.interfaces import TRANSLATED
from mlx_budget.server.response_store import ResponseStore
from served import SECONDS

TOKENS = [
    {"thinking_budget": 40},
    {"thinking_token_budget": 40},
    {"thinking_budget_tokens": 40},
    {"max_thinking_tokens": 40},
    {"max_reasoning_tokens": 40},
    {"reasoning_budget": 40},
    {"reasoning_budget_tokens": 40},
    {"reasoning_max_tokens": 40},
    {"reasoning": {"max_tokens": 40}},
    {"thinking": {"type": "enabled", "budget_tokens": 40}},
    {"thinking": {"budget_tokens": 40}},
    {"enable_thinking": True, "thinking_budget": 40},
    {"thinking_budget": 40, "reasoning_effort": "high"},
    {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    | {"thinking_budget": 40},
    {"chat_template_kwargs": {"thinking_budget": 40}},
    {"chat_template_kwargs": {"thinking_token_budget": 40}},
    {"chat_template_kwargs": {"reasoning_budget": 40}},
    {"chat_template_kwargs": {"max_thinking_tokens": 40, "enable_thinking": True}},
]
LEVELS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
OF_LEVEL = [
    lambda level: {"reasoning_effort": level},
    lambda level: {"reasoning": {"effort": level}},
    lambda level: {"output_config": {"effort": level}},
    lambda level: {"thinking_level": level},
    lambda level: {"think": level},
    lambda level: {"chat_template_kwargs": {"reasoning_effort": level}},
]
OFF = [
    {"enable_thinking": False},
    {"think": False},
    {"thinking": False},
    {"thinking": {"type": "disabled"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}},
    {"thinking_budget": 0},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"chat_template_kwargs": {"think": False}},
]
ON = [
    {"enable_thinking": True},
    {"think": True},
    {"thinking": True},
    {"thinking": {"type": "enabled"}},
    {"thinking": {"type": "adaptive"}},
    {"reasoning": {"enabled": True}},
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"thinking": True}},
]
REFUSED = [
    ({"thinkingBudget": 40}, "thinkingBudget"),
    ({"thinking_config": {"thinking_budget": 40}}, "thinking_config"),
    ({"thinkingConfig": {"thinkingBudget": 40}}, "thinkingConfig"),
    ({"generation_config": {"thinking_config": {}}}, "generation_config"),
    ({"google": {"thinking_config": {"thinking_budget": 40}}}, "google"),
    ({"extra_body": {"thinking_budget": 40}}, "extra_body"),
    ({"options": {"think": True}}, "options"),
    ({"budget_tokens": 40}, "budget_tokens"),
    ({"effort": "low"}, "effort"),
    ({"reasoning_tokens": 40}, "reasoning_tokens"),
    ({"reasoning_mode": "short"}, "reasoning_mode"),
    ({"reasoningEffort": "low"}, "reasoningEffort"),
    ({"max_think_tokens": 40}, "max_think_tokens"),
    ({"thinking": 40}, "thinking"),
    ({"thinking": {"max_tokens": 40}}, "thinking.max_tokens"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"reasoning": {"budget_tokens": 40}}, "reasoning.budget_tokens"),
    ({"output_config": {"thinking_budget": 40}}, "output_config.thinking_budget"),
    ({"include_reasoning": False}, "include_reasoning"),
    ({"reasoning_format": "hidden"}, "reasoning_format"),
    (
        {"chat_template_kwargs": {"budget_tokens": 40}},
        "chat_template_kwargs.budget_tokens",
    ),
    (
        {"chat_template_kwargs": {"thinking": {"type": "enabled"}}},
        "chat_template_kwargs.thinking",
    ),
]
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "1 + 1?"}]},
    "/v1/messages": {
        "messages": [{"role": "user", "content": "1 + 1?"}],
        "max_tokens": 100,
    },
    "/v1/responses": {"input": "1 + 1?"},
}


@pytest.fixture(params=BODIES)
def budget_of(request):
    """The budget of a request to an interface."""

    def read(fields: dict, default: int | None = 77):
        body = {**BODIES[request.param], **fields}
        if request.param in TRANSLATED:
            body = TRANSLATED[request.param](body, ResponseStore()).chat
        check_body(body)
        policy = BudgetPolicy(ThinkingBudget(tokens=default))
        thinking = read_thinking(body, policy)
        check_template_arguments(body.get("chat_template_kwargs", {}), "{{ tools }}")
        return thinking.tokens

    return read


def test_a_number_of_tokens_holds(budget_of):
    assert [budget_of(fields) for fields in TOKENS] == [40] * len(TOKENS)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_holds(budget_of, level):
    (budget,) = {budget_of(fields(level)) for fields in OF_LEVEL}
    expected = {"none": 0, "max": None}
    if level in expected:
        assert budget == expected[level]
    else:
        assert isinstance(budget, Effort) and budget.without > 0


def test_thinking_is_switched_off(budget_of):
    assert [budget_of(fields) for fields in OFF] == [0] * len(OFF)


def test_thinking_is_switched_on(budget_of):
    assert [budget_of(fields) for fields in ON] == [77] * len(ON)
    assert [budget_of(fields, default=0) for fields in ON] == [None] * len(ON)


@pytest.mark.parametrize(("fields", "name"), REFUSED, ids=lambda value: str(value))
def test_what_is_not_understood_is_refused_by_name(budget_of, fields, name):
    with pytest.raises(RequestError) as refused:
        budget_of(fields)
    assert refused.value.field == name
    assert name.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize("path", BODIES)
def test_a_client_is_told_what_is_refused(server, path):
    for fields, name in REFUSED:
        request = urllib.request.Request(
            server.url + path,
            json.dumps({**BODIES[path], **fields}).encode(),
            {"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=SECONDS)
        with refused.value as answer:
            error = json.loads(answer.read())["error"]
        assert answer.code == 400
        assert name.rpartition(".")[2] in error["message"]
        assert path == "/v1/messages" or error["param"] == name


def test_a_request_that_says_nothing_gets_the_servers_own(budget_of):
    assert budget_of({}) == 77
    assert budget_of({"metadata": {"reason": "none"}, "user": "think tank"}) == 77
