"""Whether anything would hold a reply to its budget.

Knows budgets and predictors; nothing of replies or models.
"""

from ..method.predictor import Predictor
from .errors import NoPredictorError
from .settings import AutoBudget, ThinkingBudget


def knows_lengths(predictor: Predictor | bool | None) -> bool:
    """Whether there is a predictor that foretells how long thinking will be."""
    return isinstance(predictor, Predictor) and predictor.knows_lengths


def for_predictor(
    thinking: ThinkingBudget, predictor: Predictor | bool | None
) -> ThinkingBudget:
    """The same, where a level is its tokens unless the predictor foretells lengths."""
    return thinking if knows_lengths(predictor) else thinking.without_prediction()


def check_enforceable(
    thinking: ThinkingBudget, predictor: Predictor | bool | None
) -> None:
    """Raises a ValueError if nothing would hold a reply to its budget."""
    if thinking.is_free or thinking.tokens == 0:
        return
    if predictor is True or not isinstance(predictor, Predictor | bool | None):
        raise ValueError(
            "predictor must be a Predictor, None for a prior, or False for the hard "
            f"stop alone; not {predictor!r}. `mlx_budget.load` returns one."
        )
    thinking = for_predictor(thinking, predictor)
    if isinstance(thinking.tokens, AutoBudget) and not knows_lengths(predictor):
        raise NoPredictorError(
            f"The thinking budget {thinking.tokens} is a share of what a predictor "
            "expects, and there is none: name one with --predictor, "
            "make one with `mlx-budget learn`, or give the budget in tokens or as a "
            "level such as low."
        )
    has_budget = thinking.tokens is not None
    if has_budget and predictor is False and thinking.hard_stop is None:
        raise ValueError(
            "Without a predictor and without the hard stop nothing would hold thinking "
            "to its budget: leave one of them on."
        )
