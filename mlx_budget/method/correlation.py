"""Rank correlation, by which predicted lengths are compared with those that came.

Knows pairs of numbers; nothing of predictors or of what the numbers measure.
"""

import math

import numpy as np

# Pairs that an interval takes at least.
LEAST_PAIRS = 10
_Z = 1.959963984540054


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties having their mean rank, of two (m,) arrays.

    Returns:
        float: From -1 to 1, or None of fewer than 3 pairs, or where all of ``a`` or of
        ``b`` are equal, or one is not a number.
    """
    if len(a) < 3 or np.isnan(a).any() or np.isnan(b).any():
        return None
    a, b = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else None


def rank_correlation_interval(
    correlation: float | None, pairs: int
) -> tuple[float, float] | None:
    """The interval of 95 % of a Spearman correlation.

    Fisher's z with the variance (1 + r^2 / 2) / (m - 3) of Bonett and Wright, "Sample
    size requirements for estimating Pearson, Kendall and Spearman correlations", 2000.

    Args:
        correlation (float, optional): r, from `rank_correlation`.
        pairs (int): m.

    Returns:
        tuple[float, float]: Its ends, or None if r is, or of fewer than `LEAST_PAIRS`
        pairs, where the formula does not hold.
    """
    if correlation is None or pairs < LEAST_PAIRS:
        return None
    # The largest below 1 is 1 - 12 / (m^3 - m), and z of 1 itself has no end.
    limit = 1 - 6 / (pairs**3 - pairs)
    r = min(max(correlation, -limit), limit)
    z, margin = math.atanh(r), _Z * math.sqrt((1 + r * r / 2) / (pairs - 3))
    return math.tanh(z - margin), math.tanh(z + margin)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]
