"""A request of OpenAI's Responses interface, as the body of a chat completion.

Knows the fields of both; nothing of replies, of HTTP or of models.
"""

import json
from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .responses_input import name_within, read_input
from .translation import function_tool, in_turns, need, passed, refuse_fields

WHERE = "the Responses interface"
# What chat completions call otherwise.
NAMES = {"max_tokens": "max_output_tokens", "response_format": "text.format"}
# What cannot be done here, each with values that ask for nothing. Taken and without
# effect are metadata, user, prompt_cache_key and what else says nothing of the reply:
# docs/serving.md lists them.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_tokens": (),
    "max_completion_tokens": (),
    "messages": (),
    "moderation": (),
    "prompt": (),
    "response_format": (),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "n": (1,),
    "logprobs": (False,),
}
_NOT_INCLUDED = ("message.output_text.logprobs",)
# What of `reasoning` says how thinking is told; the rest is a budget.
_TOLD = {
    "summary": ("auto", "concise", "detailed"),
    "generate_summary": ("auto", "concise", "detailed"),
    "context": ("auto", "current_turn", "all_turns"),
    "mode": ("standard",),
}


def read_responses(
    body: Mapping[str, Any], earlier: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The body of the chat completion that a request asks for.

    Args:
        body (Mapping): Of the request.
        earlier (list[dict]): Messages of the conversation that it goes on with.

    Returns:
        tuple: The body, and its messages without the instructions.

    Raises:
        RequestError: Naming the field that is wrong or cannot be honoured.
    """
    refuse_fields(body, _REFUSED, WHERE)
    _check_include(body.get("include"))
    chat = passed(body, "stop")
    if (form := _read_text(body.get("text"))) is not None:
        chat["response_format"] = form
    if isinstance(reasoning := chat.get("reasoning"), dict):
        for name, values in _TOLD.items():
            if reasoning.get(name) not in (None, *values):
                field = f"reasoning.{name}"
                raise RequestError(
                    f"{field} must be {', '.join(values)}; not {reasoning[name]!r}.",
                    field,
                )
        chat["reasoning"] = {k: v for k, v in reasoning.items() if k not in _TOLD}
    if "max_output_tokens" in body:
        most = body["max_output_tokens"]
        if need(most, int, "max_output_tokens", "a whole number of 1 or more") < 1:
            raise RequestError(
                "max_output_tokens must be a whole number of 1 or more.",
                "max_output_tokens",
            )
        chat["max_tokens"] = most
    messages = [*earlier, *read_input(body.get("input"), earlier)]
    if not messages:
        raise RequestError("The request has no input.", "input")
    instructions = body.get("instructions")
    told = []
    if instructions is not None:
        text = need(instructions, str, "instructions", "a text")
        told = [{"role": "system", "content": text}] if text else []
    chat["messages"] = in_turns(told + messages)
    tools = [tool for _, _, tool in read_tools(body.get("tools"))]
    choice = _read_choice(body.get("tool_choice"))
    if tools and choice != "none":
        chat["tools"] = tools
    if choice not in ("auto", "none"):
        chat["tool_choice"] = choice
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    return chat, messages


def wants_summary(body: Mapping[str, Any]) -> bool:
    """Whether thinking is to be told as a summary, which is all of it here."""
    reasoning = body.get("reasoning")
    if not isinstance(reasoning, dict):
        return False
    return bool(reasoning.get("summary") or reasoning.get("generate_summary"))


def _read_text(text: Any) -> dict[str, Any] | None:
    """What a chat completion calls the format that is asked for, if one is."""
    if text is None:
        return None
    form = need(text, dict, "text", "an object").get("format") or {}
    kind = need(form, dict, "text.format", "an object").get("type")
    if text.get("verbosity") not in (None, "medium"):
        raise RequestError(
            "text.verbosity is not served here: leave it out.", "text.verbosity"
        )
    if kind in (None, "text"):
        return None
    if kind == "json_schema":
        schema = {k: v for k, v in form.items() if k != "type"}
        return {"type": kind, "json_schema": schema}
    if kind != "json_object":
        raise RequestError(
            f"text.format: {kind!r} is not served here, only text, json_object and "
            "json_schema.",
            "text.format",
        )
    return {"type": kind}


def _check_include(include: Any) -> None:
    for name in need(include or [], list, "include", "a list of texts"):
        if name in _NOT_INCLUDED:
            raise RequestError(
                f"include: {name!r} is not served here: leave it out.", "include"
            )


def read_tools(tools: Any) -> list[tuple[str | None, str, dict[str, Any]]]:
    """The tools of a request: namespace if any, name within it, and the tool.

    Raises:
        RequestError: Naming the tool that is wrong or not served.
    """
    read: list[tuple[str | None, str, dict[str, Any]]] = []
    for i, tool in enumerate(need(tools or [], list, "tools", "a list of tools")):
        field = f"tools[{i}]"
        kind = need(tool, dict, field, "an object").get("type")
        if kind != "namespace":
            read.append((None, tool.get("name"), _tool(tool, field)))
            continue
        space = need(tool.get("name"), str, f"{field}.name", "a text")
        within = need(tool.get("tools"), list, f"{field}.tools", "a list of tools")
        for j, own in enumerate(within):
            where = f"{field}.tools[{j}]"
            need(own, dict, where, "an object")
            name = name_within(space, own.get("name"))
            made = _tool({**own, "name": name}, where)
            read.append((space, own["name"], made))
    return read


def _tool(tool: Mapping[str, Any], field: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestError(
            f"{field}: {tool.get('type')!r} is not served here, only tools of type "
            "function.",
            field,
        )
    return function_tool(tool, field)


def _read_choice(choice: Any) -> Any:
    """What a chat completion calls the choice of a tool."""
    if choice in (None, "auto", "none", "required"):
        return choice or "auto"
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        name = name_within(choice.get("namespace"), choice.get("name"))
        return {"type": kind, "function": {"name": name}}
    raise RequestError(
        "tool_choice must be auto, none, required or a function by its name; "
        f"{json.dumps(choice):.80} is not served here.",
        "tool_choice",
    )
