"""Messages as users and datasets write them, to messages whose contents are texts.

Knows roles and OpenAI's content parts; nothing of chat templates or files.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Role and content of a message, and whatever else a chat template reads.
Message = dict[str, Any]
Chat = list[Message]

# What every template reads, or refuses; some know more.
ROLES = ("system", "user", "assistant", "tool")

_TEXT_PARTS = ("text", "input_text", "output_text")
# What other formats call them.
_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}


def as_chat(value: object) -> Chat | None:
    """The messages of a value, each as a dict, if it looks like a chat at all.

    A chat may be a text of JSON, as the cell of a table is. Keys whose value is None
    are left out: a table gives each message the keys that any message has.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(m, dict) and ("role" in m or "content" in m) for m in value):
        return None
    return [{k: v for k, v in m.items() if v is not None} for m in value]


def plain_chat(messages: Sequence[Mapping[str, Any]]) -> Chat:
    """Messages with their contents as texts.

    Raises:
        ValueError: Naming the message, by its number from 1, that has no role, no
            content, or a part that is not text.
    """
    chat = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is not an object with role and content")
        role = message.get("role")
        if not isinstance(role, str):
            raise ValueError(f"message {number} has no role{_fields(message)}")
        known = _ALIASES.get(role.lower(), role.lower().strip())
        if role not in ROLES and known in ROLES:
            raise ValueError(
                f"message {number} has the role {role!r}, which is written {known!r}"
            )
        if message.get("content") is None and message.get("tool_calls"):
            chat.append(dict(message))
            continue
        try:
            text = plain_content(message.get("content"))
        except ValueError as e:
            raise ValueError(f"message {number} ({role}) {e}") from None
        chat.append({**message, "content": text})
    return chat


def plain_content(content: object) -> str:
    """The text of a message's content: a text, or OpenAI's parts that are texts.

    Raises:
        ValueError: Saying what it has in their place, to be put behind its name.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(
            "has no content" if content is None else "has a content that is not a text"
        )
    return "".join(map(_text_of_part, content))


def as_prompt(value: object) -> str | Chat | None:
    """A text, or a chat without the reply that datasets have with it.

    Returns:
        The text of a text or of content parts, the messages of a chat, or None if the
        value is neither, or without text.

    Raises:
        ValueError: If it looks like one and cannot be read, saying why.
    """
    if isinstance(value, str):
        return value if value.strip() else None
    chat = as_chat(value)
    if chat is None:
        return as_prompt(plain_content(value)) if _are_parts(value) else None
    messages = plain_chat(chat)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if all(m["role"] in ("system", "developer") for m in messages):
        raise ValueError("none of its messages is the user's")
    return messages


def brief(value: object) -> str:
    """A value as a message shows it: its first 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe_fields(value: object) -> str:
    """The names of an object's fields in words, or what it is if it is none."""
    if not isinstance(value, Mapping):
        kinds = {
            list: "a list",
            str: "a text",
            type(None): "null",
            bool: "true or false",
        }
        return kinds.get(type(value), "a number")
    names = [str(name) for name in value]
    if not names:
        return "no fields"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"the fields {shown}" if len(names) > 1 else f"the field {shown} alone"


def _are_parts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, dict) and "type" in part for part in value
    )


def _text_of_part(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind not in _TEXT_PARTS:
        name = f"of type {kind}" if isinstance(kind, str) else "without a type"
        raise ValueError(f"has a part {name}: only parts of type text can be read")
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise ValueError("has a part of type text without a text")
    return text


def _fields(value: Mapping) -> str:
    return f": it has {describe_fields(value)}" if value else ""
