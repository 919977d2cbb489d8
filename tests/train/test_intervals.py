"""Intervals of means over groups: by hand, by SciPy, and how often they hold."""

import math

import numpy as np
import pytest
from scipy import stats

from mlx_budget.train.intervals import LEAST_GROUPS, grouped_mean, student_t


@pytest.mark.parametrize("freedom", [9, 12, 29, 400])
def test_student_t_is_that_of_scipy(freedom: int) -> None:
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-4)


def test_groups_of_one_make_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, 25)
    found = grouped_mean(values, np.arange(25))
    low, high = stats.t.interval(0.95, 24, values.mean(), stats.sem(values))
    assert (found.value, found.groups) == (pytest.approx(values.mean()), 25)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_groups_by_hand() -> None:
    # Ten groups of two equal values, 0 or 1: the sums of their distances from 1/2 are
    # -1 or 1, so that the variance is 10/9 of 10 / 20^2.
    found = grouped_mean(np.repeat([0, 1] * 5, 2), np.repeat(np.arange(10), 2))
    margin = 2.2622 * math.sqrt(10 / 9 * 10 / 400)
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.5 - margin, 0.5 + margin), 1e-4)


def test_few_groups_have_no_interval() -> None:
    values = np.arange(100.0)
    found = grouped_mean(values, np.arange(100) % (LEAST_GROUPS - 1))
    assert (found.value, found.low, found.high) == (49.5, None, None)
    assert grouped_mean(np.array([np.inf] * 20), np.arange(20)).low is None


def test_intervals_hold_the_mean_19_times_in_20() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        sizes = rng.integers(1, 9, 30)
        groups = np.repeat(np.arange(30), sizes)
        values = rng.normal(0, 1, 30)[groups] + rng.normal(0, 0.5, len(groups))
        found = grouped_mean(values, groups)
        hits += found.low < 0 < found.high
    # Four standard deviations of a share of 400 are 4.4 %.
    assert abs(hits / 400 - 0.95) < 0.044
