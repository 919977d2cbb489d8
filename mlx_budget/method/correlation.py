"""Rank correlation, by which predicted lengths are compared with those that came.

Knows pairs of numbers; nothing of predictors or of what the numbers measure.
"""

import math

import numpy as np


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


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]
