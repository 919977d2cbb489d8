"""What a thinking budget may be: tokens, a range of them, or a share of a prediction.

Knows how each is written and what it comes to in tokens; nothing of how it is kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

MAX_BUDGET = 2**31 - 1

# How a budget in tokens is meant: as the most there may be, or as what is to be used.
AT_MOST = "at-most"
ABOUT = "about"
# What "about" steers to, in shares of the budget, and how many tokens below the budget
# that begins at least: thinking ends where a line does, and a window that is narrow
# against a line often holds no line's end. Chosen on the built-in model
# (docs/method.md).
ABOUT_FROM = 0.9
ABOUT_TO = 0.97
ABOUT_LINE = 10

_AUTO = re.compile(r"auto(?::(\d*\.?\d+))?")
_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class AutoBudget:
    """A budget for each question: a share of the thinking that it is expected to take.

    Attributes:
        share: Of the median of the predictor's distribution at the first thinking
            token, > 0.
        most: Tokens that the budget never passes, whatever is predicted, if any.
    """

    share: float = 1.0
    most: int | None = None

    def __post_init__(self) -> None:
        share = self.share
        is_number = isinstance(share, Real) and not isinstance(share, bool)
        if not is_number or not 0 < share <= 100:
            raise ValueError(
                f"The share of an automatic budget must be above 0 and at most 100, "
                f"not {share!r}: auto:0.63 is 63 % of the predicted length."
            )

    def __str__(self) -> str:
        return "auto" if self.share == 1 else f"auto:{self.share:g}"

    def tokens(self, median: float) -> int:
        """The budget for a predicted median length, both in tokens."""
        budget = max(1, round(min(self.share * median, MAX_BUDGET)))
        return budget if self.most is None else min(budget, self.most)


@dataclass(frozen=True)
class BudgetRange:
    """A budget to be used: thinking is to end between two numbers of tokens.

    Attributes:
        low: Fewest tokens of thinking, 0 or more.
        high: Most tokens of thinking, 1 or more and at least ``low``.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.high <= MAX_BUDGET or not 0 <= self.low <= self.high:
            raise ValueError(
                f"A range of thinking_budget must go from 0 tokens or more up to at "
                f"most {MAX_BUDGET:,}, not from {self.low:,} to {self.high:,}."
            )

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


Budget = int | AutoBudget | BudgetRange | None
# How callers may give one.
BudgetLike = int | str | tuple[int, int] | list[int] | AutoBudget | BudgetRange | None


def about(tokens: int) -> tuple[int, int]:
    """The window of a budget that is to be used: fewest and most tokens of thinking."""
    low = min(ABOUT_FROM * tokens, tokens - ABOUT_LINE)
    return max(round(low), 0), max(round(ABOUT_TO * tokens), 1)


def check_budget(thinking_budget: Any) -> Budget:
    """The budget in tokens, or how to find it, or None for no budget.

    Raises:
        ValueError: If it is not an integer of -1 or more, two of them, "auto",
            "auto:SHARE" or "LOW-HIGH".
    """
    if thinking_budget is None:
        return None
    if isinstance(thinking_budget, AutoBudget | BudgetRange):
        return thinking_budget
    if hasattr(thinking_budget, "tolist"):  # NumPy's or MLX's
        thinking_budget = thinking_budget.tolist()
    if isinstance(thinking_budget, str):
        if (found := _AUTO.fullmatch(thinking_budget)) is not None:
            return AutoBudget(float(found[1] or 1))
        if (found := _RANGE.fullmatch(thinking_budget)) is not None:
            return BudgetRange(int(found[1]), int(found[2]))
        raise ValueError(
            f"thinking_budget must be an integer number of tokens, auto, or auto and a "
            f"share such as auto:0.63, or a range such as 800-1000; not "
            f"{thinking_budget!r}."
        )
    if isinstance(thinking_budget, Sequence):
        if len(thinking_budget) != 2 or not all(map(_is_whole, thinking_budget)):
            raise ValueError(
                f"A range of thinking_budget must be two integer numbers of tokens, "
                f"low and high; not {thinking_budget!r}."
            )
        return BudgetRange(*map(int, thinking_budget))
    if not _is_whole(thinking_budget):
        raise ValueError(
            f"thinking_budget must be an integer number of tokens, not "
            f"{thinking_budget!r}."
        )
    tokens = int(thinking_budget)
    if tokens > MAX_BUDGET:
        raise ValueError(
            f"thinking_budget must be at most {MAX_BUDGET:,}, not {tokens:,}."
        )
    if tokens < -1:
        raise ValueError(
            f"thinking_budget must be -1 (no budget), 0 (close thinking at once) or "
            f"more, not {tokens}."
        )
    return None if tokens == -1 else tokens


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
