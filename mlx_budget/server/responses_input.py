"""The input of a request of OpenAI's Responses interface, as messages.

Knows the items of an input and the messages of chat completions; nothing of other
fields, of HTTP or of models.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import RequestError
from .translation import need, tool_call, unseal

_ITEMS = "message, reasoning, function_call or function_call_output"
_TEXTS = ("input_text", "output_text", "text", "refusal")


class _Turn:
    """The items of one turn of the assistant's, which are one message."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def message(self) -> dict[str, Any]:
        """The message."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self.texts),
        }
        if thinking := "\n".join(filter(None, self.thoughts)):
            message["reasoning_content"] = thinking
        if self.calls:
            message["tool_calls"] = self.calls
        return message


def read_input(
    value: Any, earlier: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages that an input holds.

    Args:
        value (Any): The input: a text, a list of items, or None.
        earlier (Iterable[Mapping]): Messages of the conversation before it.

    Raises:
        RequestError: Naming the item that is wrong or not served.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    calls = [call for m in earlier for call in m.get("tool_calls", ())]
    names = {call["id"]: call["function"]["name"] for call in calls}
    read: list[dict[str, Any] | _Turn] = []
    for i, item in enumerate(need(value, list, "input", "a text or a list of items")):
        field = f"input[{i}]"
        kind = need(item, dict, field, "an object").get("type", "message")
        is_reply = kind == "message" and item.get("role") == "assistant"
        if is_reply or kind in ("reasoning", "function_call"):
            if not read or not isinstance(read[-1], _Turn):
                read.append(_Turn())
            if isinstance(turn := read[-1], _Turn):
                _take(item, kind, field, turn)
                names |= {c["id"]: c["function"]["name"] for c in turn.calls[-1:]}
        elif kind == "message":
            read.append(_message(item, field))
        elif kind == "function_call_output":
            id = need(item.get("call_id"), str, f"{field}.call_id", "a text")
            text = _text(item.get("output"), f"{field}.output", "\n")
            message = {"role": "tool", "tool_call_id": id, "content": text}
            read.append({**message, "name": names[id]} if id in names else message)
        else:
            raise RequestError(
                f"{field}: {kind!r} is not served here, only {_ITEMS}.", field
            )
    return [m.message() if isinstance(m, _Turn) else m for m in read]


def name_within(namespace: Any, name: Any) -> Any:
    """What a tool of a namespace is called where there are none."""
    is_within = isinstance(namespace, str) and isinstance(name, str)
    return f"{namespace}__{name}" if is_within else name


def _take(item: Mapping[str, Any], kind: str, field: str, turn: _Turn) -> None:
    """Takes an item into the turn that it belongs to."""
    if kind == "message":
        turn.texts.append(_text(item.get("content"), f"{field}.content"))
    elif kind == "reasoning":
        turn.thoughts.append(_thought(item, field))
    else:
        arguments = need(item.get("arguments"), str, f"{field}.arguments", "a text")
        name = name_within(item.get("namespace"), item.get("name"))
        turn.calls.append(tool_call(item.get("call_id"), name, arguments, field))


def _message(item: Mapping[str, Any], field: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "system", "developer"):
        raise RequestError(
            f"{field}.role must be user, assistant, system or developer; not {role!r}.",
            f"{field}.role",
        )
    text = _text(item.get("content"), f"{field}.content", "\n\n")
    return {"role": "user" if role == "user" else "system", "content": text}


def _text(content: Any, field: str, between: str = "") -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(need(content, list, field, "a text or a list of parts")):
        where = f"{field}[{i}]"
        kind = need(part, dict, where, "an object").get("type")
        if kind not in _TEXTS:
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
