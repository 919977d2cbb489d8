"""Metrics: against numbers worked out by hand."""

import json

import numpy as np
import pytest

from evaluation_records import record
from mlx_budget.evaluate.metrics import (
    accuracy_interval,
    area_over_tokens,
    area_under_accuracy,
    measure_arm,
    paired_difference,
    wilson_interval,
)
from mlx_budget.evaluate.paired import mcnemar_p, tango_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Of Newcombe, "Two-sided confidence intervals for the single proportion" (1998).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)],
)
def test_wilson_intervals_are_those_of_the_literature(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=6e-5)


def test_all_right_is_not_certain():
    low, high = wilson_interval(29, 29)
    assert (round(low, 4), high) == (0.8830, 1.0)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, n):
    with pytest.raises(ValueError, match=f"{correct} successes in {n} trials"):
        wilson_interval(correct, n)


def test_with_one_answer_a_problem_the_interval_is_wilsons():
    correct = [True] * 7 + [False] * 3
    problems = [str(i) for i in range(10)]
    assert accuracy_interval(correct, problems) == wilson_interval(7, 10)


def test_answers_to_the_same_problem_are_not_independent():
    # 50 problems, each answered 8 times alike: as good as 50 answers, not 400.
    correct = [i % 2 == 0 for i in range(50) for _ in range(8)]
    problems = [str(i) for i in range(50) for _ in range(8)]
    low, high = accuracy_interval(correct, problems)
    assert high - low > 0.8 * np.subtract(*wilson_interval(25, 50)[::-1])
    assert accuracy_interval(correct, problems) == (low, high)


def test_an_arm_by_hand():
    replies = [
        record("guidance", 20, 0, 10, probe_tokens=12),
        record(
            *("guidance", 20, 1, 25),
            closed_by="budget",
            after_close_tokens=8,
            forced_tokens=7,
        ),
        record("guidance", 20, 2, 30, closed_by=None, finish_reason="length"),
        record("guidance", 20, 3, 20, grading_problem="unclear", answer_tokens=9),
    ]
    found = measure_arm(replies)
    assert found["n"] == found["problems"] == 4
    assert found["accuracy"] == 0.75
    assert found["thinking_tokens"] == 21.25
    assert found["mean_budget"] == 20
    assert found["over_budget"] == 0.5
    assert found["excess_tokens"] == 7.5
    assert found["excess_share"] == 0.375
    assert found["deviation"] == (0.5 + 0.25 + 0.5 + 0) / 4
    assert found["closed_by_model"] == 0.5
    assert found["closed_by_budget"] == found["unfinished"] == 0.25
    assert found["answer_tokens"] == 6
    assert found["after_close_tokens"] == 2
    assert found["grading_problems"] == 1
    total = (85 + 24 + 8 + 4 + 7 + 12) / 4
    assert (found["forced_tokens"], found["probe_tokens"]) == (7 / 4, 3)
    assert (found["marker_tokens"], found["total_tokens"]) == (1, total)
    assert found["tokens_per_second"] == pytest.approx(4 * total / 0.4)
    assert found["e3"] == pytest.approx(0.75**2 / total)
    assert found["e3_thinking"] == pytest.approx(0.75**2 / 21.25)


def test_a_reply_without_thinking_is_not_unfinished():
    reply = record("no-thinking", 0, 0, 0, closed_by=None)
    found = measure_arm([reply])
    assert (found["unfinished"], found["e3_thinking"]) == (0, None)
    assert json.dumps(found, allow_nan=False)


def test_nothing_is_a_share_of_a_budget_of_0():
    found = measure_arm([record("truncate", 0, 0, 7), record("truncate", 20, 1, 25)])
    assert (found["over_budget"], found["excess_tokens"]) == (1, 6)
    assert found["excess_share"] == found["deviation"] == 0.25
    assert measure_arm([record("truncate", 0, 0, 7)])["excess_share"] is None


def test_an_arm_without_a_budget_is_not_over_it():
    found = measure_arm([record("full", None, 0, 10)])
    assert (
        found["over_budget"] is found["excess_tokens"] is found["mean_budget"] is None
    )


def test_the_area_is_a_mean_accuracy():
    points = [(20, 0.4), (10, 0.0), (40, 0.8)]
    # Triangle 0 to 0.4 over 10, trapezoid 0.4 to 0.8 over 20.
    assert area_under_accuracy(points, 40) == pytest.approx((2 + 12) / 30)
    # After the last point accuracy stays.
    assert area_under_accuracy(points, 50) == pytest.approx((2 + 12 + 8) / 40)
    assert area_under_accuracy(points, 40, 20) == pytest.approx(0.6)


def test_one_point_has_no_area():
    assert area_under_accuracy([(10, 0.5), (10, 0.7)], 40) is None
    assert area_under_accuracy([(10, 0.5), (20, 0.7)], 10) is None


def test_the_area_over_tokens_is_over_one_range_for_all():
    points = [(40, 0.8), (20, 0.4)]
    # Nothing below 20; a trapezoid over 20 tokens; then 0.8 over 60.
    assert area_over_tokens(points, 100) == pytest.approx((0.6 * 20 + 0.8 * 60) / 100)
    # It ends within the trapezoid.
    assert area_over_tokens(points, 30) == pytest.approx(0.5 * 10 / 30)
    assert area_over_tokens([(25, 0.9)], 100) == pytest.approx(0.9 * 0.75)
    assert area_over_tokens([(120, 0.9)], 100) == 0


def test_a_paired_difference_by_hand():
    # Right unless the tokens are a multiple of 3.
    a = [record("guidance", 9, i, t) for i, t in enumerate([10, 11, 12, 13])]
    b = [record("truncate", 9, i, t) for i, t in enumerate([9, 14, 15, 12, 8])]
    found = paired_difference(a, b)
    assert found["n"] == 4
    assert (found["a_accuracy"], found["b_accuracy"]) == (0.75, 0.25)
    assert found["difference"] == 0.5
    assert (found["wins"], found["losses"]) == (2, 0)
    assert found["tokens_difference"] == -1
    ends = (found["difference_low"], found["difference_high"])
    assert ends == tango_interval(2, 0, 4)
    assert found["p_value"] == 0.5
    assert found == paired_difference(a, b)
    swapped = paired_difference(b, a)
    assert swapped["difference"] == -0.5
    assert swapped["difference_low"] == pytest.approx(-found["difference_high"])


def test_equal_arms_may_still_differ():
    a = [record("guidance", 9, i, 10 + i) for i in range(40)]
    found = paired_difference(a, a)
    assert found["difference"] == found["tokens_high"] == 0
    assert found["difference_high"] == pytest.approx(-found["difference_low"])
    assert found["difference_high"] > 0.05
    assert found["p_value"] == 1
    # Several answers to the same problems tell no more of other problems.
    a += [{**r, "sample": 1} for r in a]
    again = paired_difference(a, a)
    assert again["n"] == 80
    assert again["difference_high"] == pytest.approx(found["difference_high"])


def test_with_several_answers_problems_are_drawn():
    # Of 50 problems 10 are won, each four times: as good as 10 wins, not 40.
    a = [
        record("a", 9, i, 1, sample=sample, correct=True)
        for i in range(50)
        for sample in range(4)
    ]
    b = [{**r, "correct": int(r["problem"]) >= 10} for r in a]
    found = paired_difference(a, b)
    assert (found["wins"], found["problems"]) == (40, 50)
    assert found["p_value"] == mcnemar_p(10, 0)
    width = found["difference_high"] - found["difference_low"]
    assert width > 0.8 * np.subtract(*tango_interval(10, 0, 50)[::-1])


def test_arms_without_a_pair_are_not_compared():
    assert paired_difference([record("a", 1, 0, 1)], [record("b", 1, 1, 1)]) is None


def test_doubled_replies_are_refused():
    doubled = [record("a", 1, 0, 1)] * 2
    with pytest.raises(ValueError, match="two replies to the same sample"):
        paired_difference(doubled, doubled)
