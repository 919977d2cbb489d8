"""Anytime answers: one full reply cut at each budget, and what that comes to."""

import json

import pytest

from mlx_budget.evaluate.arms import parse_budgets
from mlx_budget.evaluate.metrics import measure_anytime
from mlx_budget.evaluate.options import EvaluateOptions
from mlx_budget.evaluate.outcomes import Maker
from mlx_budget.evaluate.run import evaluate
from mlx_budget.evaluate.strategies import ANYTIME_ANSWER, ANYTIME_CUT
from mlx_budget.evaluate.summary import markdown, summarize
from mlx_budget.evaluate.tasks import Problem, Task

END = "</think>"
PUT_IN = f"{ANYTIME_CUT}{END}{ANYTIME_ANSWER}"
TASK = Task(
    name="sums",
    problems=tuple(
        Problem(str(i), f"What is {a} + {b}?", str(a + b), False)
        for i, (a, b) in enumerate([(14, 7), (3, 9), (20, 5)])
    ),
    instruction="",
)
BUDGETS = (8, 16, 48)


def run(loaded, output, **options) -> dict[str, dict]:
    defaults = dict(
        budgets=parse_budgets(",".join(map(str, BUDGETS))),
        strategies=("full", "anytime"),
        max_tokens=90,
        temp=1.0,
        seed=3,
        batch_size=4,
    )
    records = evaluate(*loaded, TASK, output, **{**defaults, **options})
    return {record["id"]: record for record in records}


@pytest.fixture(scope="module")
def records(loaded, tmp_path_factory) -> dict[str, dict]:
    """A run of all budgets; do not write into it."""
    return run(loaded, tmp_path_factory.mktemp("anytime") / "run")


def test_thinking_is_that_of_the_full_reply_up_to_the_budget(loaded, records):
    tokenizer, were_cut = loaded[1], set()
    for problem in TASK.problems:
        full = records[f"full/{problem.id}-0"]
        for budget in BUDGETS:
            record = records[f"anytime@{budget}/{problem.id}-0"]
            used = record["thinking_tokens"]
            assert used == min(full["thinking_tokens"], budget)
            is_cut = record["closed_by"] == "budget"
            were_cut.add(is_cut)
            # The template opens thinking in the prompt; the model's marker is a token.
            begun = tokenizer.decode(full["tokens"][: used + (not is_cut)])
            put_in = PUT_IN if is_cut else ANYTIME_ANSWER
            assert record["reply"].startswith(begun + put_in)
            assert is_cut != begun.endswith(END)
            assert record["answer_tokens"] <= 128
            assert record["answer"].startswith(ANYTIME_ANSWER.lstrip())
            assert record["total_tokens"] == sum(
                record[f"{kind}_tokens"]
                for kind in ("thinking", "answer", "forced", "marker", "after_close")
            )
    assert were_cut == {True, False}


def test_a_cut_reply_is_the_one_that_truncation_gives(loaded, records, tmp_path):
    """Draws included: they go on where the thinking has ended."""
    cut = run(
        loaded,
        tmp_path / "run",
        strategies=("truncate",),
        thinking_budget_message=PUT_IN,
        max_answer_tokens=128,
        budgets=parse_budgets("8,16"),
    )
    compared = 0
    for name, other in cut.items():
        record = records[name.replace("truncate", "anytime")]
        if record["closed_by"] != "budget" or other["finish_reason"] == "length":
            continue
        compared += 1
        fields = ("reply", "extracted", "thinking_tokens", "answer_tokens")
        assert [record[f] for f in fields] == [other[f] for f in fields]
    assert compared > 1


def test_an_answer_is_generated_once_where_thinking_had_ended(
    loaded, records, tmp_path, monkeypatch
):
    made = []
    replies = Maker.replies

    def counted(self, prompts, *args, **options):
        made.extend(prompts)
        return replies(self, prompts, *args, **options)

    monkeypatch.setattr(Maker, "replies", counted)
    assert run(loaded, tmp_path / "run").keys() == records.keys()
    there = [r for r in records.values() if r["strategy"] == "anytime"]
    cut = sum(r["closed_by"] == "budget" for r in there)
    settled = {r["problem"] for r in there if r["closed_by"] == "model"}
    assert 0 < len(settled)
    assert len(made) == len(TASK.problems) + cut + len(settled)


def test_a_stopped_run_goes_on_to_the_same_answers(loaded, records, tmp_path):
    folder = tmp_path / "run"
    run(loaded, folder, budgets=parse_budgets("16"))
    assert run(loaded, folder) == {
        name: {**record, "seconds": pytest.approx(record["seconds"], abs=60)}
        for name, record in records.items()
    }


def test_the_replies_of_an_earlier_run_are_cut_by_their_text(loaded, tmp_path):
    folder = tmp_path / "run"
    full = run(loaded, folder, strategies=("full",))
    assert not any("tokens" in record for record in full.values())
    grown = run(loaded, folder)
    for name, record in full.items():
        assert grown[name]["reply"] == record["reply"]
        cut = grown[name.replace("full", "anytime@8")]
        assert cut["reply"].partition(PUT_IN)[0] in record["reply"]


def test_the_measure_is_the_mean_over_budgets_of_whole_replies(records):
    def fake(budget: int, problem: int, correct: bool) -> dict:
        return {
            "budget": str(budget),
            "thinking_budget": budget,
            "problem": str(problem),
            "sample": 0,
            "correct": correct,
        }

    right = {2000: (0, 0), 4000: (1, 0), 6000: (1, 0), 8000: (1, 1)}
    answers = [
        fake(b, p, bool(ok)) for b, oks in right.items() for p, ok in enumerate(oks)
    ]
    answers.append(fake(2000, 2, True))  # of a reply that is not finished
    measured = measure_anytime(answers)
    assert measured["budgets"] == ["2000", "4000", "6000", "8000"]
    assert (measured["n"], measured["accuracy"]) == (2, 0.5)
    assert measured["accuracy_low"] <= 0.5 <= measured["accuracy_high"]
    assert measure_anytime([]) is None
    summary = summarize(list(records.values()))
    assert summary["anytime"]["n"] == len(TASK.problems)
    assert "Anytime accuracy, the mean over budgets of 8, 16, 48:" in markdown(summary)
    json.dumps(summary)


def test_anytime_stands_alone_at_the_published_budgets_unless_others_are_named():
    alone = EvaluateOptions(anytime=True)
    assert alone.strategies == ("full", "anytime")
    assert [b.tokens for b in alone.budgets] == [2000, 4000, 6000, 8000]
    both = EvaluateOptions(
        anytime=True, strategies=("truncate",), budgets=parse_budgets("50,100")
    )
    assert both.strategies == ("truncate", "anytime")
    assert [b.tokens for b in both.budgets] == [50, 100]
    assert EvaluateOptions().strategies == ("full", "guidance", "budget-forcing")


def test_a_budget_that_no_full_reply_can_reach_is_refused():
    for options in ({"max_tokens": 8000}, {"budgets": parse_budgets("9000")}):
        with pytest.raises(ValueError, match="--max-tokens"):
            EvaluateOptions(anytime=True, **options)
