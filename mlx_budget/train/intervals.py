"""Intervals of 95 % for means over positions that come in groups.

Knows numbers and the groups they belong to; nothing of what they measure.
"""

import math
from dataclasses import dataclass

import numpy as np

# Groups that an interval takes at least.
LEAST_GROUPS = 10
_Z = 1.959963984540054


@dataclass(frozen=True)
class Mean:
    """A mean and its interval of 95 %.

    Attributes:
        value: The mean.
        low, high: Ends of the interval; None of fewer than `LEAST_GROUPS` groups.
        groups: How many there are.
    """

    value: float
    low: float | None
    high: float | None
    groups: int


def grouped_mean(values: np.ndarray, groups: np.ndarray) -> Mean:
    """The mean of values, of which those of one group are not independent.

    The variance is the cluster-robust one of a mean (Liang and Zeger, "Longitudinal
    data analysis using generalized linear models", 1986), with Student's t of one
    degree of freedom less than there are groups.

    Args:
        values (np.ndarray): Numbers, shape (n,), n >= 1.
        groups (np.ndarray): The group that each belongs to, shape (n,).
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    names, rows = np.unique(groups, return_inverse=True)
    count = len(names)
    if count < LEAST_GROUPS or not math.isfinite(mean):
        return Mean(mean, None, None, count)
    sums = np.bincount(rows, values - mean)
    variance = count / (count - 1) * float(sums @ sums) / len(values) ** 2
    margin = student_t(count - 1) * math.sqrt(variance)
    return Mean(mean, mean - margin, mean + margin, count)


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5).

    Right to 1e-4 from 9 degrees of freedom on.
    """
    z, v = _Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**i for i, term in enumerate(terms, 1))
