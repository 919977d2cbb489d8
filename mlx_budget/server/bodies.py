"""The types of a request's fields. Knows fields; nothing of HTTP or of models."""

from typing import Any

from .errors import RequestError


def check_body(body: dict[str, Any]) -> None:
    """Checks the fields whose types mlx-lm takes for granted.

    Args:
        body (dict): Of a request.

    Raises:
        RequestError: Naming the field that is wrong, and what it must be.
    """
    for field, is_right, what in _FIELDS:
        value = body.get(field)
        if field in body and not is_right(value):
            raise RequestError(f"{field} must be {what}.", field)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and all(_is_content(m.get("content")) for m in value)
    )


def _is_content(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, dict) and _is_part(part) for part in value)
    return value is None or isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_part(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(part.get("text"), str) if kind == "text" else _is_text(kind)


def _is_stop(value: object) -> bool:
    words = value if isinstance(value, list) else [value]
    return all(isinstance(word, str) and word for word in words)


_FIELDS = (
    ("messages", _are_messages, "a list of one or more messages with role and content"),
    ("prompt", _is_text, "a text"),
    ("stop", _is_stop, "a text or a list of texts, none of them empty"),
    ("max_tokens", _is_count, "a whole number of 1 or more"),
    ("max_completion_tokens", _is_count, "a whole number of 1 or more"),
    ("tools", lambda v: isinstance(v, list), "a list"),
    ("model", _is_text, "a text"),
    ("chat_template_kwargs", lambda v: isinstance(v, dict), "an object"),
    ("role_mapping", lambda v: isinstance(v, dict), "an object"),
    (
        "stream_options",
        lambda v: isinstance(v, dict) and isinstance(v.get("include_usage"), bool),
        "an object with include_usage true or false",
    ),
)
