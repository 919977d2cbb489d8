"""Which of several predictors to keep, by how they steer and what they foretell.

Knows measured numbers; nothing of how they were measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Of a normal distribution: 95 % lie below, as many above its negative.
_ONE_SIDED = 1.645


@dataclass(frozen=True)
class Steered:
    """How held-out prompts were steered.

    Attributes:
        name: "table", "linear" and so on, "prior", or "cut".
        costs: For each prompt, how far its reply was moved from the model's own
            distribution, in nats: see `mlx_budget.train.cost.steering_cost`.
        closed_by_model: Share that was not closed by force.
        deviation: Mean of abs(used - budget) / budget.
        val_loss: On held-out positions, in nats; None where nothing was trained.
    """

    name: str
    costs: list[float]
    closed_by_model: float
    deviation: float
    val_loss: float | None = None

    @property
    def cost(self) -> float:
        """The mean over the prompts."""
        return float(np.mean(self.costs))


def choose(steered: Sequence[Steered]) -> str:
    """The predictor to keep.

    Of those that move the model no further than the best does, to a standard error of
    the difference over the same prompts, it is the one of the lowest held-out loss.

    Args:
        steered (Sequence): How each has steered, over the same prompts.
    """
    best = min(steered, key=lambda s: s.cost)

    def is_as_good(other: Steered) -> bool:
        mean, error = _difference(other, best)
        return mean <= error

    def loss(s: Steered) -> float:
        return math.inf if s.val_loss is None else s.val_loss

    return min(filter(is_as_good, steered), key=loss).name


def verdict(chosen: str, steered: Mapping[str, Steered]) -> str:
    """What a run has come to, in a sentence.

    Args:
        chosen (str): The predictor that is kept.
        steered (Mapping): How each has steered, "prior" and "cut" included.
    """
    own, prior, cut = (steered[name] for name in (chosen, "prior", "cut"))
    told = (
        f"to keep the budget, {chosen} moves the model by {own.cost:.1f} nats a reply, "
        f"the prior by {prior.cost:.1f}, a cut by {cut.cost:.1f} "
        f"({len(own.costs)} held-out prompts)"
    )
    mean, error = _difference(prior, own)
    if mean > _ONE_SIDED * error:
        return f"Worth using: {told}."
    if mean > 0:
        return f"Likely worth using, but not shown by so few: {told}."
    return f"Not worth using: {told}. Leave it out, or learn from more replies."


def _difference(one: Steered, other: Steered) -> tuple[float, float]:
    """Mean difference in cost over the same prompts, and its standard error."""
    differences = np.subtract(one.costs, other.costs)
    if len(differences) < 2:
        return float(differences.mean()), math.inf
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return float(differences.mean()), float(error)
