"""A request of OpenAI's Responses interface, as the body of a chat completion.

Knows the fields of both; nothing of replies, of HTTP or of models.
"""

import json
from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .translation import (
    function_tool,
    in_turns,
    need,
    passed,
    refuse_fields,
    tool_call,
    unseal,
)

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
_ITEMS = "message, reasoning, function_call or function_call_output"


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
    messages = [*earlier, *_input(body.get("input"), earlier)]
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


def _input(value: Any, earlier: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    calls = [call for m in earlier for call in m.get("tool_calls", ())]
    names = {call["id"]: call["function"]["name"] for call in calls}
    read: list[dict[str, Any]] = []
    # The items of one turn of the assistant's are one message.
    turn: dict[str, Any] | None = None
    for i, item in enumerate(need(value, list, "input", "a text or a list of items")):
        field = f"input[{i}]"
        kind = need(item, dict, field, "an object").get("type", "message")
        is_own = kind in ("reasoning", "function_call")
        is_own |= kind == "message" and item.get("role") == "assistant"
        if not is_own:
            turn = None
        elif turn is None:
            turn = {"role": "assistant", "content": ""}
            read.append(turn)
        if kind == "message":
            _read_message(item, field, read, turn)
        elif turn is not None and kind == "reasoning":
            thought = _thought(item, field)
            before = turn.get("reasoning_content", "")
            if thought:
                turn["reasoning_content"] = (
                    f"{before}\n{thought}" if before else thought
                )
        elif turn is not None and kind == "function_call":
            arguments = need(item.get("arguments"), str, f"{field}.arguments", "a text")
            id = item.get("call_id")
            name = name_within(item.get("namespace"), item.get("name"))
            call = tool_call(id, name, arguments, field)
            turn.setdefault("tool_calls", []).append(call)
            names[call["id"]] = call["function"]["name"]
        elif kind == "function_call_output":
            id = need(item.get("call_id"), str, f"{field}.call_id", "a text")
            text = _text(item.get("output"), f"{field}.output", "\n")
            message = {"role": "tool", "tool_call_id": id, "content": text}
            read.append({**message, "name": names[id]} if id in names else message)
        else:
            raise RequestError(
                f"{field}: {kind!r} is not served here, only {_ITEMS}.", field
            )
    return read


def _read_message(
    item: Mapping[str, Any],
    field: str,
    read: list[dict[str, Any]],
    turn: dict[str, Any] | None,
) -> None:
    role = item.get("role")
    between = "" if role == "assistant" else "\n\n"
    text = _text(item.get("content"), f"{field}.content", between)
    if turn is not None:
        turn["content"] += text
    elif role in ("user", "system", "developer"):
        read.append({"role": "user" if role == "user" else "system", "content": text})
    else:
        raise RequestError(
            f"{field}.role must be user, assistant, system or developer; not {role!r}.",
            f"{field}.role",
        )


def _text(content: Any, field: str, between: str = "") -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(need(content, list, field, "a text or a list of parts")):
        where = f"{field}[{i}]"
        kind = need(part, dict, where, "an object").get("type")
        if kind not in ("input_text", "output_text", "text", "refusal"):
            raise RequestError(
                f"{where}: {kind!r} is not served here, only text.", where
            )
        name = "refusal" if kind == "refusal" else "text"
        texts.append(need(part.get(name), str, f"{where}.{name}", "a text"))
    return between.join(texts)


def _thought(item: Mapping[str, Any], field: str) -> str:
    """The thinking of an item: what it was, or at least what was told of it."""
    for name in ("content", "summary"):
        parts = need(item.get(name) or [], list, f"{field}.{name}", "a list")
        texts = (part.get("text") for part in parts if isinstance(part, dict))
        if text := "\n".join(text for text in texts if isinstance(text, str)):
            return text
    return unseal(item.get("encrypted_content"))


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


def name_within(namespace: Any, name: Any) -> Any:
    """What a tool of a namespace is called where there are none."""
    is_within = isinstance(namespace, str) and isinstance(name, str)
    return f"{namespace}__{name}" if is_within else name


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
