"""What is known of the requests that are there and of the last ones.

Knows counts, times and names; never what a prompt or a reply says. Nothing of HTTP.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..engine.follower import ReplyFollower

LAST = 100
_MOST_REASON = 200
logger = logging.getLogger("mlx_budget.requests")

_INTERFACES = {
    "/v1/chat/completions": "chat",
    "/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/responses": "responses",
    "/responses": "responses",
}


def interface_of(path: str) -> str:
    """The interface that a path belongs to, in a word; "other" for all other paths."""
    return _INTERFACES.get(path.partition("?")[0], "other")


@dataclass(eq=False)
class Record:
    """One request: where it stands, and what became of it.

    Attributes:
        interface: That was asked, as `interface_of` tells it.
        status: Of HTTP, once it is known.
        reason: Why there is no reply, or no whole one.
        source: What set the budget: a field of the request, or "server".
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that were in the cache.
        tokens: Tokens of the reply so far.
        finish_reason: Why the reply ended.
        reply: Follows the reply, if the model may think.
        at: When it came, in seconds since 1970.
    """

    interface: str = "other"
    status: int | None = None
    reason: str | None = None
    source: str = "server"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    finish_reason: str | None = None
    reply: ReplyFollower | None = None
    at: float = field(default_factory=time.time)
    _begun: float = field(default_factory=time.monotonic)
    _waits: bool = False
    _first: float | None = None
    _last: float | None = None
    _end: float | None = None

    def wait(self) -> None:
        """Says that it waits for its first token."""
        self._waits = True

    def touch(self) -> None:
        """Says that it moves on, though no token has come."""
        self._last = time.monotonic()

    def take(self, finish_reason: str | None) -> None:
        """Takes note of a token."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        self._last = now
        self.tokens += 1
        self.finish_reason = finish_reason

    def fail(self, error: object) -> None:
        """Says why it is not answered, or not to the end."""
        self.reason = " ".join(str(error).split())[:_MOST_REASON]

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its first token."""
        return self._waits and self._first is None

    @property
    def is_generating(self) -> bool:
        """Whether tokens come."""
        return self._first is not None and self._end is None

    @property
    def first_token_seconds(self) -> float | None:
        """From when it came to its first token."""
        return None if self._first is None else self._first - self._begun

    @property
    def idle_seconds(self) -> float:
        """Since it last moved on, or since it came."""
        return time.monotonic() - (self._last or self._begun)

    @property
    def tokens_per_second(self) -> float | None:
        """From its first token to its last."""
        if self._first is None or self._last is None or self._last == self._first:
            return None
        return (self.tokens - 1) / (self._last - self._first)

    @property
    def thinking(self) -> dict[str, Any] | None:
        """Budget, tokens by kind and what closed thinking; None without thinking."""
        reply = self.reply
        if reply is None or not reply.thinks:
            return None
        return {
            "budget": reply.thinking_budget,
            "source": self.source,
            "thinking_tokens": reply.thinking_tokens,
            "after_close_tokens": reply.after_close_tokens,
            "answer_tokens": reply.answer_tokens,
            "closed_by": reply.closed_by,
        }

    def told(self) -> dict[str, Any]:
        """All of it, for a program to read."""
        seconds = (self._end or time.monotonic()) - self._begun
        told = {
            "at": round(self.at, 3),
            "interface": self.interface,
            "status": self.status,
            "reason": self.reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "tokens": self.tokens,
            **(self.thinking or {}),
            "finish_reason": self.finish_reason,
            "first_token_seconds": _rounded(self.first_token_seconds),
            "tokens_per_second": _rounded(self.tokens_per_second),
            "seconds": _rounded(seconds),
        }
        return {name: value for name, value in told.items() if value is not None}

    def __str__(self) -> str:
        parts = [self.interface, str(self.status or "-")]
        if (thinking := self.thinking) is not None:
            budget = thinking["budget"]
            parts += [
                f"budget {'none' if budget is None else budget} ({self.source})",
                f"thinking {thinking['thinking_tokens']}",
                f"after close {thinking['after_close_tokens']}",
                f"answer {thinking['answer_tokens']}",
                f"closed by {thinking['closed_by'] or 'nothing'}",
            ]
        elif self.tokens:
            parts.append(f"tokens {self.tokens}")
        if (speed := self.tokens_per_second) is not None:
            parts.append(f"{speed:.1f} tokens/s")
        reason = self.reason or self.finish_reason
        return ", ".join([*parts, *([reason] if reason else [])])


class Ledger:
    """The requests that are there, and the last ones that were.

    Args:
        observe (Callable, optional): Is told of each request that is over.
    """

    def __init__(self, observe: Callable[[Record], None] | None = None):
        self.observe = observe
        self._open: set[Record] = set()
        self._last: deque[Record] = deque(maxlen=LAST)
        self._lock = threading.Lock()

    def open(self) -> Record:
        """Begins a record."""
        record = Record()
        with self._lock:
            self._open.add(record)
        return record

    def close(self, record: Record) -> None:
        """Ends a record, and logs a line."""
        record._end = time.monotonic()
        is_asked = record.interface != "other"
        is_told = is_asked or (record.status or 0) >= 400
        with self._lock:
            self._open.discard(record)
            if is_asked:
                self._last.append(record)
        if is_asked and self.observe is not None:
            self.observe(record)
        level = logging.INFO if is_told else logging.DEBUG
        logger.log(level, "%s", record, extra={"request": record.told()})

    @property
    def waiting(self) -> int:
        """Requests that wait for their first token."""
        return sum(record.is_waiting for record in self._now())

    @property
    def generating(self) -> int:
        """Requests whose tokens come."""
        return sum(record.is_generating for record in self._now())

    @property
    def idle_seconds(self) -> float | None:
        """Since any request that is there moved on; None if none is there."""
        found = [r.idle_seconds for r in self._now() if r.is_waiting or r.is_generating]
        return min(found, default=None)

    def last(self) -> list[dict[str, Any]]:
        """What became of the last requests, newest first."""
        with self._lock:
            records = list(self._last)
        return [record.told() for record in reversed(records)]

    def _now(self) -> list[Record]:
        with self._lock:
            return list(self._open)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
