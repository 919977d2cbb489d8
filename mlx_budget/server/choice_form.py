"""What is told of one choice beside what mlx-lm's handler tells of it.

Knows the form of a completion's choice; nothing of HTTP or of models.
"""

from typing import Any

from .exchange import Exchange

REASONING = "reasoning"
REASONING_CONTENT = "reasoning_content"
BOTH = "both"
FIELDS = (REASONING, REASONING_CONTENT, BOTH)


def complete(choice: dict[str, Any], exchange: Exchange, is_chat: bool) -> None:
    """Puts in log-probabilities, and before a text its prompt where that is asked for.

    Args:
        choice (dict): Of a whole completion, or of a piece of one.
        exchange (Exchange): Of its reply.
        is_chat (bool): Which form it has.
    """
    if not is_chat and (prompt := exchange.echo()) is not None:
        choice["text"] = prompt + choice["text"]
    if exchange.logprobs is not None:
        choice["logprobs"] = exchange.logprobs.told(is_chat)


def name_thinking(choice: dict[str, Any], field: str) -> None:
    """Tells thinking in the field, or the fields, that clients are to find it in.

    Args:
        choice (dict): With thinking in ``reasoning``, if there is any.
        field (str): One of `FIELDS`.
    """
    for place in (choice, choice.get("message"), choice.get("delta")):
        if place is None or REASONING not in place or field == REASONING:
            continue
        place[REASONING_CONTENT] = place[REASONING]
        if field == REASONING_CONTENT:
            del place[REASONING]


def keep_one_call(choice: dict[str, Any], has_called: bool) -> bool:
    """Leaves out calls of tools behind the first; whether there has been one."""
    place = choice.get("message") or choice.get("delta") or {}
    calls = place.get("tool_calls") or []
    kept = [] if has_called else calls[:1]
    if kept:
        place["tool_calls"] = kept
    else:
        place.pop("tool_calls", None)
    return has_called or bool(kept)
