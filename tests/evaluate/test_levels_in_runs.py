"""Levels in an evaluation are what they are in a reply."""

import pytest

from mlx_budget import estimate
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.evaluate.arms import BudgetRequest, parse_budgets
from mlx_budget.evaluate.options import EvaluateOptions
from mlx_budget.evaluate.run import evaluate
from mlx_budget.evaluate.tasks import Problem, Task

QUESTIONS = ("What is 14 + 7?", "What is 3 + 9?", "What is 20 + 5?")


def run(loaded, output, count: int = 2, **options) -> dict[str, list[int]]:
    """The budgets of each arm's replies, in the order of the questions."""
    problems = [Problem(str(i), q, "1", False) for i, q in enumerate(QUESTIONS)]
    task = Task("sums", tuple(problems[:count]), instruction="")
    options = {"max_tokens": 4, "temp": 0.0, "batch_size": 4, **options}
    records = evaluate(*loaded, task, output, **options)
    found: dict[str, list[int]] = {}
    for record in sorted(records, key=lambda r: r["problem"]):
        name = f"{record['strategy']}@{record['budget']}"
        found.setdefault(name, []).append(record["thinking_budget"])
    return found


def test_a_level_is_read_among_other_budgets():
    low, share, tokens = parse_budgets("LOW,50%,60,low")
    assert (low.label, low.tokens, low.share) == ("low", None, None)
    assert low.effort is not None and low.effort.without == 512
    assert share == BudgetRequest("50%", share=0.5)
    assert tokens == BudgetRequest("60", 60)


@pytest.mark.parametrize("text", ["none", "max", "lo", "auto", "low-high", ""])
def test_what_is_no_length_is_no_budget_of_a_run(text):
    with pytest.raises(ValueError, match="a level .minimal, low, medium, high, xhigh."):
        parse_budgets(f"60,{text}")


def test_a_level_is_of_each_question_where_lengths_are_known(loaded, tmp_path):
    medians = [estimate(*loaded, encode_chat(loaded[1], q)).median for q in QUESTIONS]
    own = [round(0.4 * median) for median in medians]
    options = {
        "strategies": ("guidance", "budget-forcing", "auto"),
        "budgets": parse_budgets("low"),
    }
    budgets = run(loaded, tmp_path / "run", **options)
    assert budgets["guidance@low"] == budgets["auto@low"] == own[:2]
    # A strategy that needs a number gets that of the questions on average.
    mean = round(sum(own[:2]) / 2)
    assert budgets["budget-forcing@low"] == [mean, mean]
    # Nothing has to be known of replies without a budget.
    assert not any(name.startswith("full") for name in budgets)
    more = run(loaded, tmp_path / "run", 3, **options)
    assert more["guidance@low"] == own
    assert more["budget-forcing@low"] == [mean] * 3


def test_a_level_is_its_tokens_where_nothing_knows_lengths(loaded, tmp_path):
    budgets = run(
        (*loaded[:2], None),
        tmp_path / "run",
        strategies=("guidance", "truncate"),
        budgets=parse_budgets("low,medium"),
    )
    assert budgets["guidance@low"] == budgets["truncate@low"] == [512, 512]
    assert budgets["truncate@medium"] == [2048, 2048]


def test_the_strategy_auto_takes_levels():
    options = EvaluateOptions(strategies=("auto",), budgets=parse_budgets("low"))
    assert options.budgets[0].label == "low"
