"""What a thinking budget may be: tokens, a range of them, a share of a prediction, or a
level.

Knows how each is written and what it comes to in tokens; nothing of how it is kept.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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

# The levels, and how much of the predicted length each may think: 0 answers at once,
# None is no budget.
EFFORTS: dict[str, float | None] = {
    "none": 0.0,
    "minimal": 0.2,
    "low": 0.4,
    "medium": 0.7,
    "high": 1.0,
    "xhigh": 1.5,
    "max": None,
}
# Tokens of each level for models whose lengths nothing predicts.
EFFORT_TOKENS = {
    "minimal": 128,
    "low": 512,
    "medium": 2048,
    "high": 8192,
    "xhigh": 32768,
}
# What a budget may be, as a line that refuses one says it.
KINDS = (
    "an integer number of tokens, auto, or auto and a share such as auto:0.63, which "
    f"is 63%, a level ({', '.join(EFFORTS)}), or a range such as 800-1000"
)

_AUTO = re.compile(r"auto(?::(\d*\.?\d+))?")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s?%")
_NUMBER = re.compile(r"\s*[+-]?\d{1,4000}\s*")
_RANGE = re.compile(r"(\d{1,4000})-(\d{1,4000})")


@dataclass(frozen=True)
class AutoBudget:
    """A budget for each question: a share of the thinking that it is expected to take.

    Attributes:
        share: Of the median of the predictor's distribution at the first thinking
            token, > 0.
        most: Tokens that the budget never passes, whatever is predicted, if any.
        written: How the user wrote it; empty for as `str` does by itself.
    """

    share: float = 1.0
    most: int | None = None
    written: str = field(default="", compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        share = self.share
        is_number = isinstance(share, Real) and not isinstance(share, bool)
        if not is_number or not 0 < share <= 100:
            raise ValueError(
                f"The share of an automatic budget in thinking_budget must be above 0 "
                f"and at most 100, not {self.written or repr(share)}: auto:0.63 is 63 "
                f"% of the predicted length."
            )

    def __str__(self) -> str:
        if self.written:
            return self.written
        return "auto" if self.share == 1 else f"auto:{self.share:g}"

    def tokens(self, median: float) -> int:
        """The budget for a predicted median length, both in tokens."""
        budget = max(1, round(min(self.share * median, MAX_BUDGET)))
        return budget if self.most is None else min(budget, self.most)


@dataclass(frozen=True)
class Effort(AutoBudget):
    """The budget of a level: a share of the predicted length, or else tokens.

    Attributes:
        without: Tokens of thinking for a model whose lengths nothing predicts.
    """

    without: int = 0

    @property
    def in_tokens(self) -> int:
        """The budget where there is no prediction, under its ceiling."""
        return self.without if self.most is None else min(self.without, self.most)


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


def budget_of_level(
    level: str, tokens: Mapping[str, int] | None = None
) -> Effort | int | None:
    """The budget of a level: 0 for "none", None for "max", which is no budget.

    Args:
        level (str): One of `EFFORTS`.
        tokens (Mapping, optional): Of the levels, where nothing predicts lengths, in
            place of `EFFORT_TOKENS`.
    """
    share = EFFORTS[level]
    if not share:
        return None if share is None else 0
    without = (EFFORT_TOKENS if tokens is None else tokens)[level]
    return Effort(share, without=without, written=level)


def with_tokens(budget: Budget, tokens: Mapping[str, int]) -> Budget:
    """The same, with other tokens for its level if it is one."""
    if isinstance(budget, Effort) and budget.written in tokens:
        return replace(budget, without=tokens[budget.written])
    return budget


def read_budget(text: str) -> Budget:
    """A budget as a person types it: `check_budget` that takes digits as well.

    Args:
        text (str): Such as "500", "low", "50%", "auto" or "800-1000".

    Raises:
        ValueError: As `check_budget`.
    """
    return check_budget(int(text) if _NUMBER.fullmatch(text) else text)


def check_budget(thinking_budget: Any) -> Budget:
    """The budget in tokens, or how to find it, or None for no budget.

    Raises:
        ValueError: If it is not an integer of -1 or more, two of them, a level, "50%",
            "auto", "auto:SHARE" or "LOW-HIGH".
    """
    if thinking_budget is None:
        return None
    if isinstance(thinking_budget, AutoBudget | BudgetRange):
        return thinking_budget
    if hasattr(thinking_budget, "tolist"):  # NumPy's or MLX's
        thinking_budget = thinking_budget.tolist()
    if isinstance(thinking_budget, str):
        return _budget_in(thinking_budget)
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


def _budget_in(text: str) -> Budget:
    """The budget that a text other than a number stands for."""
    # Help shows the words in capitals, as click does with all that stands for a value.
    written = text.strip().lower()
    if written in EFFORTS:
        return budget_of_level(written)
    if (found := _AUTO.fullmatch(written)) is not None:
        return AutoBudget(float(found[1] or 1))
    if (found := _PERCENT.fullmatch(written)) is not None:
        return AutoBudget(float(found[1]) / 100, written=f"{found[1]}%")
    if (found := _RANGE.fullmatch(written)) is not None:
        return BudgetRange(int(found[1]), int(found[2]))
    raise ValueError(f"thinking_budget must be {KINDS}; not {text!r}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
