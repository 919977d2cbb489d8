"""What two arms that answered the same questions differ by: intervals and p-values.

Knows counts of pairs; nothing of records, strategies or files.
"""

import math
from collections.abc import Callable, Sequence

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
_HALVINGS = 60  # of an interval no wider than 2: to the last bit of a float


def tango_interval(wins: float, losses: float, pairs: int) -> tuple[float, float]:
    """95 % score interval of the difference of two paired shares.

    Tango, "Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design" (Statistics in Medicine 17, 1998, 891-908): the
    differences that a score test does not reject. It has a width where no pair differs
    at all, unlike a bootstrap.

    Args:
        wins: Pairs of which the first alone is right.
        losses: Pairs of which the second alone is right.
        pairs: All pairs.

    Returns:
        tuple[float, float]: Its ends, from -1 to 1.

    Raises:
        ValueError: If there are no pairs, or more that differ than there are.
    """
    if pairs < 1 or min(wins, losses) < 0 or wins + losses > pairs:
        raise ValueError(
            f"There cannot be {wins} wins and {losses} losses in {pairs} pairs."
        )
    seen = (wins - losses) / pairs

    def score(difference: float) -> float:
        """How far what was seen lies from a difference, in standard errors."""
        return _score(wins, losses, pairs, difference)

    low = -1.0 if losses == pairs else _crossing(score, -1.0, seen, Z)
    high = 1.0 if wins == pairs else _crossing(score, seen, 1.0, -Z)
    return low, high


def _score(wins: float, losses: float, pairs: int, difference: float) -> float:
    # The likeliest share of losses under this difference solves a quadratic equation.
    spread = difference * (1 - difference)
    a = 2 * pairs
    b = (2 * pairs - wins + losses) * difference - wins - losses
    c = -losses * spread
    lost = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
    variance = pairs * (2 * lost + spread)
    distance = wins - losses - pairs * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _crossing(
    score: Callable[[float], float], low: float, high: float, value: float
) -> float:
    """Where a falling function has a value."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if score(middle) > value:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided p-value of McNemar's exact test: whether wins are as likely as losses.

    Args:
        wins: Pairs of which the first alone is right.
        losses: Pairs of which the second alone is right.
    """
    differing = wins + losses
    tail = sum(math.comb(differing, k) for k in range(min(wins, losses) + 1))
    # Whole numbers of any size, so that thousands of pairs are no trouble.
    return min(1.0, 2 * tail / 2**differing)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm, 1979), in the order given.

    The chance that any true hypothesis is rejected stays below the level, whatever the
    tests have in common.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
