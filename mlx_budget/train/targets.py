"""Where the thinking of a reply is, which of its positions to train on, and their L.

Knows tokens and markers; nothing of chat records or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from ..engine.thinking import ThinkingTracker


class UnusableRecord(Exception):
    """Raised with the reason why nothing can be learned from a record.

    Attributes:
        is_bad: Whether the record is at fault, not the options.
    """

    def __init__(self, reason: str, is_bad: bool = True):
        super().__init__(reason)
        self.is_bad = is_bad


@dataclass(frozen=True)
class ThinkingSpan:
    """The first thinking block of a reply, in indices of its tokens.

    Attributes:
        start: The first thinking token, or the marker's if there is none.
        end: The first token of the closing marker.
        newlines: Those above ``start``, to ``end`` inclusive, that follow a token whose
            text contains a newline.
    """

    start: int
    end: int
    newlines: tuple[int, ...]


def find_thinking(tracker: ThinkingTracker, reply: Sequence[int]) -> ThinkingSpan:
    """The first thinking block of a reply.

    Args:
        tracker (ThinkingTracker): Of the prompt that the reply follows; it is used up.
        reply (Sequence[int]): Token ids of the reply.

    Raises:
        UnusableRecord: If the reply does not think, or its thinking is not closed.
    """
    start = 0 if tracker.thinking else None
    newlines: list[int] = []
    for i, token in enumerate(reply, 1):
        tracker.update(token)
        if start is None:
            start = i if tracker.thinking else None
        elif not tracker.thinking:
            # The tracker counts the tokens before the marker, and tells at its last.
            end = start + tracker.thinking_tokens
            return ThinkingSpan(start, end, tuple(n for n in newlines if n <= end))
        elif tracker.after_newline:
            newlines.append(i)
    raise UnusableRecord(
        "no thinking block" if start is None else "thinking not closed"
    )


def check_positions(positions: str | int) -> str | int:
    """``positions`` as `choose_positions` takes it.

    Raises:
        ValueError: If it is neither "newline" nor "all" nor a number >= 1.
    """
    number = positions
    if isinstance(positions, str) and positions.isascii() and positions.isdigit():
        number = int(positions)
    if isinstance(number, Integral) and not isinstance(number, bool):
        number = int(number)  # of NumPy, too
    is_number = type(number) is int and number > 0
    if not is_number and number not in ("newline", "all"):
        raise ValueError(
            f"positions must be newline, all, or how many to draw at random from each "
            f"record (1 or more), not {positions!r}."
        )
    return number


def choose_positions(
    span: ThinkingSpan, positions: str | int, rng: np.random.Generator
) -> np.ndarray:
    """The positions of a thinking block to train on.

    Args:
        span (ThinkingSpan): The block.
        positions (str or int): "newline" for those that guidance acts at: the first
            thinking token, and each token after a newline; "all"; or how many to draw
            at random.
        rng (np.random.Generator): What to draw them with.

    Returns:
        np.ndarray: Indices from ``span.start`` to ``span.end`` inclusive, ascending.
    """
    if isinstance(positions, str):
        if positions == "all":
            return np.arange(span.start, span.end + 1)
        return np.array([span.start, *span.newlines])
    available = span.end - span.start + 1
    drawn = rng.choice(available, size=min(positions, available), replace=False)
    return span.start + np.sort(drawn)
