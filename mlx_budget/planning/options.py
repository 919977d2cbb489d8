"""How a plan is made and kept: a frozen value that is checked when it is made.

Knows numbers and words alone.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..engine.budgets import BudgetRange
from ..engine.fields import check_numbers, setting
from ..engine.settings import ThinkingBudget
from .shares import LEVEL_BUDGETS, SCHEDULES

GUIDED, WORDS = "guided", "words"


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is made and kept.

    Attributes:
        schedule: How shares fall from part to part, one of `shares.SCHEDULES`.
        keep: "guided": each part is steered to its share. "words": the prompt asks for
            lengths in words, as the published code does, and nothing keeps them.
        rollover: Whether what a part leaves over goes to the next; a part that was cut
            passes nothing on.
        levels: Tokens for questions of difficulty 1 to 5, where no budget is given.

    Raises:
        ValueError: Naming the value that is not allowed.
    """

    GROUP: ClassVar[str] = "Plan"

    schedule: str = setting(
        "constant",
        "How the shares of the parts fall, from the first to the last.",
        choices=tuple(SCHEDULES),
    )
    keep: str = setting(
        GUIDED,
        "How the shares are kept: by guidance, or asked for in words as published.",
        choices=(GUIDED, WORDS),
    )
    rollover: bool = setting(
        False, "Pass on to the next part what a part leaves over of its share."
    )
    levels: tuple[int, ...] = setting(
        LEVEL_BUDGETS,
        "Tokens for a question of each difficulty, 1 to 5, where no budget is given.",
        shown=",".join(map(str, LEVEL_BUDGETS)),
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        levels = tuple(self.levels)
        is_whole = all(
            isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in levels
        )
        if len(levels) != len(LEVEL_BUDGETS) or not is_whole:
            raise ValueError(
                f"levels must be five numbers of tokens above 0, for difficulties 1 to "
                f"5; not {list(levels)}."
            )
        object.__setattr__(self, "levels", levels)
        if self.rollover and self.keep == WORDS:
            raise ValueError(
                "--rollover (rollover=True) passes on what guidance leaves over: leave "
                "it out, or keep the shares by guidance."
            )


def check_divisible(thinking: ThinkingBudget) -> None:
    """Raises a ValueError if a budget is none that a plan can split."""
    if isinstance(thinking.tokens, BudgetRange) or thinking.least:
        raise ValueError(
            "A plan splits one budget: give thinking_budget as a number of tokens, a "
            "level or auto, without a range and without min_thinking_tokens."
        )
    if thinking.tokens == 0:
        raise ValueError("A plan needs a thinking_budget above 0.")
