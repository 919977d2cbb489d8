"""The chat of a record: its messages, checked, and the reply to learn from.

Knows rows and messages; nothing of templates, tokenizers or targets.
"""

import json
from contextlib import suppress
from dataclasses import dataclass

from ..engine.messages import Chat, as_chat, describe_fields, plain_chat
from ..engine.thinking import ThinkingMarkers
from ..files.rows import Row
from .targets import UnusableRecord

_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class ChatRecord:
    """A record whose parts are of the right types.

    Attributes:
        messages: Those before the reply.
        content: The reply, with its thinking between the markers.
        tokens: Its token ids, if they are given.
        is_raw: Whether the prompt has no chat template.
        is_cut: Whether the reply was ended by a limit.
    """

    messages: Chat
    content: str
    tokens: list[int]
    is_raw: bool
    is_cut: bool


def chat_of(row: Row, markers: ThinkingMarkers) -> ChatRecord:
    """The chat of a row.

    Raises:
        UnusableRecord: If it is no chat with a reply, saying why.
    """
    value, messages, reasoning = messages_of(row)
    *before, last = messages
    content = last["content"]
    if reasoning:
        content = markers.start + reasoning + markers.end + content
    return ChatRecord(
        messages=before,
        content=content,
        tokens=_ids(value.get("tokens")),
        is_raw=value.get("raw_prompt") in (True, 1, "true", "True", "TRUE"),
        is_cut=value.get("finish_reason") == "length",
    )


def messages_of(row: Row) -> tuple[dict, Chat, str | None]:
    """A row, its messages, and the last one's thinking if that is apart.

    Raises:
        UnusableRecord: As `chat_of`.
    """
    if not row.is_json:
        raise UnusableRecord("not JSON")
    value = row.value if isinstance(row.value, dict) else {"messages": row.value}
    messages = as_chat(value.get("messages"))
    if messages is None:
        if value.get("messages"):
            raise UnusableRecord("messages without role and content as texts")
        others = {k: v for k, v in value.items() if k != "messages"}
        found = f", but {describe_fields(others)}" if others else ""
        raise UnusableRecord(f"no messages{found}")
    *before, last = messages
    if last.get("role") != "assistant":
        raise UnusableRecord("last message not the assistant's")
    reasoning = next(
        (r for key in _REASONING if isinstance(r := last.get(key), str) and r), None
    )
    if reasoning or last.get("tool_calls"):
        last.setdefault("content", "")
    if not before:
        raise UnusableRecord("no prompt before the reply")
    try:
        messages = plain_chat(messages)
    except ValueError as e:
        raise UnusableRecord(str(e)) from None
    try:
        canonical(messages).encode()
    except UnicodeEncodeError:  # JSON can name half a character
        raise UnusableRecord("text that is not Unicode") from None
    return value, messages, reasoning


def canonical(messages: Chat) -> str:
    """A text that is the same for the same messages."""
    return json.dumps(messages, ensure_ascii=False, sort_keys=True, default=str)


def _ids(value: object) -> list[int]:
    if isinstance(value, str):  # in the cell of a table
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return value if isinstance(value, list) and all(map(_is_id, value)) else []


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
