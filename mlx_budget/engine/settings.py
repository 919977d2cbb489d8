"""What may be asked for: budgets, hard stops, temperatures and tolerances, checked.

Knows nothing of generation; a check raises a ValueError that says what to do.
"""

import math
import re
from dataclasses import dataclass, replace

from ..method.predictor import Predictor

DEFAULT_HARD_STOP = 1.1
MAX_BUDGET = 2**31 - 1


_AUTO = re.compile(r"auto(?::(\d*\.?\d+))?")


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

    def __post_init__(self):
        share = self.share
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 < share <= 100:
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


def check_budget(
    thinking_budget: int | str | AutoBudget | None,
) -> int | AutoBudget | None:
    """The budget in tokens, or how to find it, or None for no budget.

    Raises:
        ValueError: If it is not an integer of -1 or more, "auto" or "auto:SHARE".
    """
    if thinking_budget is None or isinstance(thinking_budget, AutoBudget):
        return thinking_budget
    if isinstance(thinking_budget, str):
        if (found := _AUTO.fullmatch(thinking_budget)) is not None:
            return AutoBudget(float(found[1] or 1))
        raise ValueError(
            f"thinking_budget must be an integer number of tokens, auto, or auto and a "
            f"share such as auto:0.63; not {thinking_budget!r}."
        )
    if isinstance(thinking_budget, bool) or not isinstance(thinking_budget, int):
        raise ValueError(
            f"thinking_budget must be an integer number of tokens, not "
            f"{thinking_budget!r}."
        )
    if thinking_budget > MAX_BUDGET:
        raise ValueError(
            f"thinking_budget must be at most {MAX_BUDGET:,}, not {thinking_budget:,}."
        )
    if thinking_budget < -1:
        raise ValueError(
            f"thinking_budget must be -1 (no budget), 0 (close thinking at once) or "
            f"more, not {thinking_budget}."
        )
    return None if thinking_budget == -1 else thinking_budget


def limit_budget(
    budget: int | AutoBudget | None, most: int | None
) -> int | AutoBudget | None:
    """A budget that passes no ceiling, in tokens; the ceiling itself for none."""
    if most is None:
        return budget
    if isinstance(budget, AutoBudget):
        return replace(budget, most=min(most, budget.most or most))
    return most if budget is None else min(budget, most)


def check_hard_stop(hard_stop: float | None) -> None:
    """Raises a ValueError unless ``hard_stop`` is None or a finite factor >= 1."""
    if hard_stop is None:
        return
    number = isinstance(hard_stop, int | float) and not isinstance(hard_stop, bool)
    if not number or not 1 <= hard_stop < math.inf:
        raise ValueError(
            f"hard_stop must be a factor of the budget, 1 or more, or None; not "
            f"{hard_stop!r}."
        )


def check_temperature(temp: float) -> None:
    """Raises a ValueError unless ``temp`` is a finite number >= 0."""
    if not 0 <= temp < math.inf:
        raise ValueError(f"temp must be finite and 0 or more, not {temp}.")


def check_enforceable(
    budget: int | AutoBudget | None,
    predictor: Predictor | bool | None,
    hard_stop: float | None,
) -> None:
    """Raises a ValueError if nothing would hold the reply to its budget."""
    if not budget:
        return
    if isinstance(budget, AutoBudget) and predictor is False:
        raise ValueError(
            f"The thinking budget {budget} is a share of what a predictor expects, and "
            "there is none: name a predictor, or give the budget in tokens."
        )
    if predictor is None:
        raise ValueError(
            "A thinking budget needs a predictor, and none was found beside the model. "
            "Name one with --predictor, or ask for the hard stop alone with "
            "--predictor none (predictor=False in Python)."
        )
    if predictor is True or not isinstance(predictor, Predictor | bool):
        raise ValueError(
            f"predictor must be a Predictor, or False for none; not {predictor!r}. "
            "`mlx_budget.load` returns one."
        )
    if predictor is False and hard_stop is None:
        raise ValueError(
            "Without a predictor and without the hard stop nothing would hold thinking "
            "to its budget: leave one of them on."
        )


def thinking_limit(
    budget: int | AutoBudget | None, hard_stop: float | None
) -> int | None:
    """Most thinking tokens a reply can have, or None if nothing bounds them yet."""
    if budget is None or isinstance(budget, AutoBudget) or hard_stop is None:
        return None
    # 1.1 * 10 is a little more than 11 in binary: do not lose a token to rounding.
    return math.floor(min(hard_stop * budget + 1e-6, MAX_BUDGET))


def check_tolerance(guidance_tolerance: float) -> None:
    """Raises a ValueError unless it is a total variation distance, 0 to 1."""
    number = isinstance(guidance_tolerance, int | float)
    if (
        isinstance(guidance_tolerance, bool)
        or not number
        or not 0 <= guidance_tolerance <= 1
    ):
        raise ValueError(
            f"guidance_tolerance must be 0 to 1 (0 evaluates every token), not "
            f"{guidance_tolerance!r}."
        )
