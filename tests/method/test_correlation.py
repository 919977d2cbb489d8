"""Rank correlation, by hand and by SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from mlx_budget.method.correlation import (
    rank_correlation,
    rank_correlation_interval,
)


def test_rank_correlation_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4.
    got = rank_correlation(np.array([1, 5, 5, 9]), np.array([20, 10, 30, 40]))
    assert got == pytest.approx(3 / math.sqrt(4.5 * 5), rel=1e-12)
    up = np.array([1.0, 2.0, 30.0])
    assert rank_correlation(up, up**2) == 1
    assert rank_correlation(up, -up) == -1


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    rng = np.random.default_rng(2)
    for size, kinds in ((3, 3), (20, 4), (500, 60)):
        a = rng.integers(0, kinds, size)
        b = a + rng.integers(0, kinds, size)
        want = stats.spearmanr(a, b).statistic
        assert rank_correlation(a, b) == pytest.approx(want, rel=1e-12)


def test_rank_correlation_is_none_where_it_is_undefined() -> None:
    two, up = np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    assert rank_correlation(two, two) is None
    assert rank_correlation(np.ones(3), up) is None
    assert rank_correlation(up, np.ones(3)) is None
    assert rank_correlation(np.array([1, math.nan, 2]), up) is None


def test_the_interval_of_a_rank_correlation_by_hand() -> None:
    # atanh(0.6) = 0.693147, and 1.959964 sqrt(1.18 / 31) = 0.382391.
    low, high = rank_correlation_interval(0.6, 34)
    assert (low, high) == pytest.approx(
        (math.tanh(0.310756), math.tanh(1.075538)), 1e-5
    )
    assert rank_correlation_interval(-0.6, 34) == pytest.approx((-high, -low))


def test_perfect_order_has_an_interval_too_and_few_pairs_have_none() -> None:
    low, high = rank_correlation_interval(1.0, 10)
    assert 0.9 < low < high < 1
    assert rank_correlation_interval(0.5, 9) is None
    assert rank_correlation_interval(None, 50) is None
