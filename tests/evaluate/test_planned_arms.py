"""The strategies that plan: one plan for all arms, counted in each of them."""

import json
from pathlib import Path

import pytest

from mlx_budget import load
from mlx_budget.evaluate import plans
from mlx_budget.evaluate.arms import parse_budgets
from mlx_budget.evaluate.run import evaluate
from mlx_budget.evaluate.tasks import Problem, Task, load_task
from mlx_budget.planning.plans import plan_from
from mlx_budget.planning.shares import split

PLANNING = ("plan-words", "plan-guided", "plan-rollover")
GIVEN = {
    "parts": [
        {"question": "What is 7 + 1?", "credits": 70},
        {"question": "+ 5?", "credits": 30},
    ]
}
PROBLEMS = (
    Problem("own", "What is 3 + 4 - 2?", "5", False),
    Problem("given", "What is 7 + 1 + 5?", "13", False, plan_from(GIVEN)),
)


@pytest.fixture(scope="module")
def demo():
    return load("demo")


def run(demo, output: Path, *strategies: str, **options) -> dict[str, dict]:
    task = Task("sums", PROBLEMS, "")
    defaults = {"budgets": parse_budgets("80"), "max_tokens": 400, "temp": 1.0}
    records = evaluate(
        *demo, task, output, strategies=strategies, **{**defaults, **options}
    )
    return {record["id"]: record for record in records}


@pytest.fixture(scope="module")
def records(demo, tmp_path_factory) -> dict[str, dict]:
    """A run of all of them; do not write into it."""
    folder = tmp_path_factory.mktemp("plans") / "run"
    return run(demo, folder, "guidance", *PLANNING)


def test_all_arms_follow_one_plan_and_each_is_charged_for_it(records):
    for problem in ("own", "given"):
        plans = [records[f"{arm}@80/{problem}-0"]["plan"] for arm in PLANNING]
        assert plans[0] == plans[1] == plans[2]
        for arm in PLANNING:
            record = records[f"{arm}@80/{problem}-0"]
            assert record["probe_tokens"] == record["plan"]["tokens"]
    assert records["plan-guided@80/own-0"]["probe_tokens"] > 0
    assert records["plan-guided@80/given-0"]["probe_tokens"] == 0


def test_a_plan_of_the_row_is_followed_and_its_shares_kept(records):
    record = records["plan-guided@80/given-0"]
    assert record["shares"] == split(80, [70, 30])
    assert "Part 1 of 2: What is 7 + 1?" in record["reply"]
    used = record["stretches"]
    assert [s["share"] for s in used] == record["shares"]
    assert sum(s["used"] for s in used) <= 1.1 * 80
    for stretch in used:
        assert stretch["closed_by"] in ("model", "budget", "loop")


def test_with_the_question_as_its_plan_a_reply_is_that_of_guidance(records):
    guided, planned = (records[f"{a}@80/own-0"] for a in ("guidance", "plan-guided"))
    assert planned["plan"]["problems"]
    assert planned["reply"] == guided["reply"]
    assert planned["total_tokens"] == guided["total_tokens"] + planned["probe_tokens"]


def test_asked_in_words_nothing_is_kept(records):
    record = records["plan-words@80/given-0"]
    assert record["forced_tokens"] == 0
    assert "stretches" not in record


def test_a_run_that_is_gone_on_with_plans_no_question_twice(
    demo, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    before = run(demo, folder, "plan-guided")
    planned = []
    monkeypatch.setattr(
        plans, "make_plans", lambda *args, **_: planned.extend(args[2]) or []
    )
    after = run(demo, folder, "plan-guided", "plan-rollover")
    assert planned == []
    name = "plan-{}@80/own-0"
    rolled, guided = after[name.format("rollover")], before[name.format("guided")]
    assert rolled["plan"] == guided["plan"]


def test_a_plan_is_read_from_a_row(tmp_path):
    file = tmp_path / "p.jsonl"
    row = {"question": "What is 7 + 1 + 5?", "answer": 13, "plan": GIVEN}
    text = {**row, "plan": json.dumps(GIVEN)}
    file.write_text("\n".join(map(json.dumps, (row, text))))
    assert [p.plan for p in load_task(None, file).problems] == [plan_from(GIVEN)] * 2


@pytest.mark.parametrize("plan", [3, "{", {"parts": []}, []])
def test_a_plan_of_a_row_that_is_none_is_refused(tmp_path, plan):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": 1, "plan": plan}))
    with pytest.raises(ValueError, match="row 1|line 1|p.jsonl"):
        load_task(None, file)
