"""Which of several predictors to keep, by how they steer and what they foretell.

Knows measured shares and losses; nothing of how they were measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Steered:
    """How well held-out prompts were steered.

    Attributes:
        name: "table", "linear" and so on, "prior", or "cut".
        prompts: How many prompts.
        landed: Share that the model closed by itself, no later than the hard stop.
        deviation: Mean of abs(used - budget) / budget.
        val_loss: On held-out positions, in nats; None where nothing was trained.
    """

    name: str
    prompts: int
    landed: float
    deviation: float
    val_loss: float | None = None


def choose(steered: Sequence[Steered]) -> str:
    """The predictor to keep.

    Of those that land no fewer replies than the best, by more than chance may make of
    so few, it is the one of the lowest held-out loss.

    Args:
        steered (Sequence): How well each has steered.
    """
    best = max(s.landed for s in steered)
    prompts = steered[0].prompts
    # One standard error of the best share; that of 0 or 1 is of one reply more or less.
    share = min(max(best, 1 / (prompts + 1)), prompts / (prompts + 1))
    error = math.sqrt(share * (1 - share) / prompts)
    good = [s for s in steered if s.landed >= best - error]

    def loss(s: Steered) -> float:
        return math.inf if s.val_loss is None else s.val_loss

    return min(good, key=loss).name


def verdict(chosen: str, steered: Mapping[str, Steered]) -> str:
    """What a run has come to, in a sentence.

    Args:
        chosen (str): The predictor that is kept.
        steered (Mapping): How well each has steered, the prior included.
    """
    own, prior = steered[chosen], steered["prior"]
    n = own.prompts
    of_own, of_prior = (round(s.landed * n) for s in (own, prior))
    told = (
        f"the model ends {of_own} of {n} held-out replies by itself before the hard "
        f"stop, with the prior {of_prior}"
    )
    if own.landed > prior.landed:
        return f"Worth using: with {chosen} {told}."
    if own.deviation < prior.deviation and own.landed == prior.landed:
        return (
            f"Worth using: with {chosen} {told}, and it keeps closer to the budget "
            f"(off by {own.deviation:.0%} on average, the prior by "
            f"{prior.deviation:.0%})."
        )
    return (
        f"Not worth using: with {chosen} {told}. Leave it out, or learn from more "
        "replies."
    )
