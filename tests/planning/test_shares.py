"""How a budget is split among parts, against numbers computed by hand."""

import random

import pytest

from mlx_budget.planning.shares import SCHEDULES, split


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        # Of 50, 30 and 20 credits, times the weights in brackets.
        ("constant", [50, 30, 20]),  # (1, 1, 1)
        ("linear", [66, 26, 8]),  # (3, 2, 1): 150, 60 and 20 of 230
        ("polynomial", [77, 20, 3]),  # (9, 4, 1): 450, 120 and 20 of 590
        ("exponential", [54, 29, 17]),  # (1, 0.9, 0.81): 50, 27 and 16.2 of 93.2
        ("cosine", [74, 24, 2]),  # (1.1, 0.6, 0.1): 55, 18 and 2 of 75
    ],
)
def test_each_schedule(schedule, shares):
    assert split(100, [50, 30, 20], schedule) == shares


def test_a_single_part_has_it_all():
    assert {tuple(split(77, [100], s)) for s in SCHEDULES} == {(77,)}


def test_what_is_left_goes_to_the_largest_and_of_equal_ones_to_the_earlier():
    assert split(8, [1, 1, 1]) == [3, 3, 2]
    assert split(11, [20, 40, 40]) == [2, 5, 4]


def test_a_share_that_is_whole_is_not_rounded_down():
    # 0.6 and 0.1 are just below or above in binary.
    assert split(75, [50, 30, 20], "cosine") == [55, 18, 2]
    assert split(10, [0.1, 0.2, 0.7]) == [1, 2, 7]


def test_nothing_is_split_into_nothings():
    assert split(0, [60, 40]) == [0, 0]


def test_shares_add_up_and_are_within_a_token_of_their_own():
    rng = random.Random(0)
    for _ in range(500):
        budget, n = rng.randrange(10_000), rng.randint(1, 5)
        credits = [rng.randint(0, 100) for _ in range(n - 1)] + [rng.randint(1, 100)]
        schedule = rng.choice([*SCHEDULES])
        shares = split(budget, credits, schedule)
        weights = [float(c * SCHEDULES[schedule](i, n)) for i, c in enumerate(credits)]
        assert sum(shares) == budget
        for share, weight in zip(shares, weights, strict=True):
            exact = budget * weight / sum(weights)
            assert exact - 1 - 1e-6 < share < exact + 1 + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, [1]), "0 or more, not -1"),
        ((9, [0, 0]), "not all 0"),
        ((9, [1, -1]), "0 or more"),
        ((9, [1, float("nan")]), "0 or more"),
        ((9, []), "not all 0"),
        ((9, [1], "square"), "one of constant, linear"),
    ],
)
def test_what_cannot_be_split_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        split(*arguments)
