"""Whether a text has begun to repeat itself, told token by token.

Knows token ids; nothing of what they mean, of replies or of budgets.

A loop is an exact cycle: the last r * p tokens are p tokens, r times over. How often it
must come depends on d, how many different tokens it has:

    r >= max(4, 200 / d, 1600 / d^2)

Ordinary text has exact cycles too, and they are short or few or poor. A passage is
quoted, checked and checked again: three times, so four are asked for. Rows of a grid,
blank cells, closing braces, dots and zeros come dozens of times, out of few different
tokens: a cycle counts its different tokens alone, and 200 must have come, half a page;
of fewer than 8 a sentence can hardly be made, so these need more, up to 1,600 times the
same token. Items of a list and lines of a table that differ anywhere are no cycle. A
line of ten words in a loop is known as one after 20 times, some 200 tokens, a paragraph
after 4 times.
"""

from dataclasses import dataclass
from enum import Enum

# Copies of a cycle at least, different tokens in all of them together, and how many
# different ones make a cycle rich.
_COPIES, _DIFFERENT, _RICH = 4, 200, 8
# A loop that has not been left after so many times the copies that it took will not be.
_PATIENCE = 1.5
# So many tokens that were there before make a cycle worth following. The longest cycle
# that is found has `LONGEST` tokens.
_GRAM = 8
LONGEST = 2048
# Cycles that are followed at a time. Most end with the next token.
_MOST_CYCLES = 8


class Repetition(Enum):
    """How far a text has gone in repeating itself."""

    NONE = "it goes on"
    LOOP = "it is in a loop"
    STUCK = "it does not leave the loop"


@dataclass
class _Cycle:
    """A distance at which the text agrees with itself.

    Attributes:
        period: The distance, in tokens.
        start: Index of the first token that is that of a period before.
        copies: How many make a loop, once that was worked out.
    """

    period: int
    start: int
    copies: float = 0.0


class LoopFinder:
    """Takes the tokens of a text in order, and says whether it repeats itself.

    A token costs a few steps, however long the text is. Memory: the tokens, and a
    table of the places of the last `LONGEST` of them.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # Where so many tokens in a row were last, by the index of their last one.
        self._places: dict[tuple[int, ...], int] = {}
        self._cycles: list[_Cycle] = []

    def take(self, token: int) -> None:
        """Takes the next token."""
        tokens = self._tokens
        tokens.append(token)
        last = len(tokens) - 1
        self._cycles = [c for c in self._cycles if tokens[last - c.period] == token]
        if last + 1 < _GRAM:
            return
        gram = tuple(tokens[-_GRAM:])
        before = self._places.get(gram)
        self._places[gram] = last
        self._forget(last - LONGEST)
        if before is not None:
            self._follow(last - before, last)

    @property
    def repetition(self) -> Repetition:
        """How far the text so far goes in repeating itself."""
        excess = max(map(self._excess, self._cycles), default=0.0)
        if excess < 1:
            return Repetition.NONE
        return Repetition.LOOP if excess < _PATIENCE else Repetition.STUCK

    @property
    def cycle(self) -> list[int]:
        """The tokens that come again and again; none if nothing does."""
        longest = max(self._cycles, key=self._excess, default=None)
        return [] if longest is None else self._tokens[-longest.period :]

    def _follow(self, period: int, last: int) -> None:
        tokens = self._tokens
        if any(cycle.period == period for cycle in self._cycles):
            return
        start = last + 1 - _GRAM
        while start > period and tokens[start - 1] == tokens[start - 1 - period]:
            start -= 1
        self._cycles.append(_Cycle(period, start))
        if len(self._cycles) > _MOST_CYCLES:
            # The one that has agreed for the shortest time.
            self._cycles.remove(max(self._cycles, key=lambda cycle: cycle.start))

    def _excess(self, cycle: _Cycle) -> float:
        """Copies of a cycle so far, in shares of those that make a loop."""
        period = cycle.period
        copies = (len(self._tokens) - cycle.start + period) / period
        if copies < _COPIES:
            return 0.0
        if not cycle.copies:
            different = len(set(self._tokens[-period:]))
            needed = _DIFFERENT / different * max(1, _RICH / different)
            cycle.copies = max(_COPIES, needed)
        return copies / cycle.copies

    def _forget(self, place: int) -> None:
        """Drops what was last at a place that is too far back."""
        if place < _GRAM - 1:
            return
        gram = tuple(self._tokens[place + 1 - _GRAM : place + 1])
        if self._places.get(gram) == place:
            del self._places[gram]
