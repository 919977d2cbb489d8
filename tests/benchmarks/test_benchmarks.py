"""The tools that the benchmarks share; the benchmarks themselves are run by hand."""

import json
import sys
from collections import Counter
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import demo_budgets
import demo_reliability
import planned_sums
import timing
import workload
from mlx_budget import make_budget_sampler
from mlx_budget.method import guidance
from mlx_budget.planning.plans import plan_from


def test_ratios_are_taken_round_by_round():
    seconds = {"slow": [2.0, 30, 4, 8, 10], "plain": [1.0, 10, 4, 2, 2]}
    # The ratios are 2, 3, 1, 4, 5.
    found = timing.ratio(seconds, "slow", "plain")
    assert found == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_rounds_alternate_after_one_to_warm_up():
    calls = []

    def variant(name: str):
        return lambda: calls.append(name) or float(len(calls))

    seconds = timing.run_rounds({"a": variant("a"), "b": variant("b")}, 2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_variants_take_turns_in_every_round():
    calls = []

    def variant(name: str):
        return lambda: calls.append(name)

    variants = {"a": variant("a"), "b": variant("b")}
    seconds = timing.run_in_turns(variants, rounds=1, steps=4, turn=2)
    turns = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert len(turns) == 4
    assert set(turns) == {"aabb", "bbaa"}  # each has its turn, in no fixed order
    assert all(len(each) == 1 and each[0] > 0 for each in seconds.values())


def test_the_report_is_a_table_and_json(tmp_path, capsys):
    row = {"part": "x", "ms": 1.5, "r": {"median": 1.0, "low": 0.5, "high": 2.0}}
    timing.report("Title", [row], tmp_path / "out.json")
    assert "| x | 1.5 | 1.000 (0.500 to 2.000) |" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == [row]
    assert written["machine"]["cores"] >= 1


@pytest.mark.parametrize(("every", "offset"), [(4, 0), (4, 1), (0, 0)])
def test_newlines_come_where_they_are_wanted(loaded, cases, every, offset):
    model, tokenizer, _ = loaded
    prompt = cases["p0_b40"]["prompt_ids"]
    processor = workload.NewlineEvery(tokenizer, 448, every, len(prompt), offset)
    pieces = []
    for step in range(12):
        tokens = mx.zeros((len(prompt) + step,), dtype=mx.uint32)
        best = mx.argmax(processor(tokens, mx.zeros((1, 448))), axis=-1)
        pieces.append(tokenizer.decode([best.item()]))
    found = [i for i, piece in enumerate(pieces) if "\n" in piece]
    assert found == ([] if not every else list(range(every - 1 - offset, 12, every)))


def test_guidance_trusts_the_random_predictor(loaded):
    predictor = workload.make_predictor(64, 3, 448, "tiny")
    states = mx.random.normal((5, 4, 64))
    weights = np.exp(np.array(guidance.log_weights(*predictor(states), 60)))
    assert (weights > 0).mean() > 0.99
    assert 0.1 < weights.mean() < 0.9


def test_a_twin_shares_weights_and_nothing_else(loaded):
    model, _, _ = loaded
    twin = workload.twin(model)
    tokens = mx.array([[5, 6, 7]])
    assert mx.array_equal(twin(tokens), model(tokens))
    assert twin.layers[0] is not model.layers[0]
    assert twin.layers[0].mlp.up_proj is not model.layers[0].mlp.up_proj
    weights = (m.layers[1].mlp.up_proj.weight for m in (twin, model))
    assert len({id(w) for w in weights}) == 1


def test_a_free_predictor_guides_at_the_same_steps(loaded, cases, monkeypatch):
    model, tokenizer, predictor = loaded
    prompt = cases["p0_b40"]["prompt_ids"]

    def guided_steps(predictor) -> list[int]:
        sampler = make_budget_sampler(
            model, tokenizer, predictor, prompt=prompt, thinking_budget=40
        )
        for _ in mlx_lm.stream_generate(
            model,
            tokenizer,
            prompt,
            sampler=sampler,
            max_tokens=20,
            logits_processors=[workload.NewlineEvery(tokenizer, 448, 4, len(prompt))],
        ):
            pass
        sampler.close()
        return sampler.guided_steps

    free = workload.FreePredictor(predictor)
    with_real = guided_steps(predictor)
    assert with_real[:4] == [0, 4, 8, 12]
    monkeypatch.setattr(type(predictor), "encode", None)  # not to be called again
    assert guided_steps(free) == with_real


def test_calculations_are_told_apart_and_judged_by_their_own_expression():
    text = (
        "It is 5 + 4 - 3.\nNext 5 + 4 = 9, so 9 - 3.\nNext 9 - 3 = 6, so 6.\n"
        "Wait, let me check that: 9 - 3 = 6, so 6.\nCheck: 6 + 3 = 9 - 4 = 5, right.\n"
        "Again 5 + 4 - 3.\nQuickly: 5 + 4 = 9 - 3 = 7.\n"
        "Again 5 + 4 - 3.\nNext 5 + 4 = 9, so 9 - 3.\nQuickly: 9 - 3 = 6.\n"
        "Again 5 + 4 - 3.\n**Final Answer**\n"
    )
    found = list(demo_reliability.calculations(text))
    assert found == [("careful", 3, True), ("terse", 3, False), ("turned", 3, True)]


def test_reliability_is_compared_at_like_length():
    """Terse ones are worse in long chains, and the careful ones are mostly short."""
    counts = Counter()
    for kind, operands, right, wrong in (
        ("careful", 4, 90, 10),
        ("careful", 8, 10, 0),
        ("terse", 4, 9, 1),
        ("terse", 8, 80, 20),
    ):
        counts[kind, operands, True] += right
        counts[kind, operands, False] += wrong
    points, spread = demo_reliability.difference(counts)
    weight = 100 * 10 / 110  # of either length
    assert points == pytest.approx(weight * 0.2 / (2 * weight))
    assert spread > 0
    apart = Counter({("careful", 4, True): 1, ("terse", 8, True): 1})
    assert np.isnan(demo_reliability.difference(apart)).all()


def test_a_plan_of_a_sum_has_all_of_it():
    plan = plan_from(planned_sums.planned((7, 1, 5, -9, 8)))
    assert [part.question for part in plan.parts] == [
        "What is 7 + 1?",
        "And then + 5 - 9 + 8?",
    ]
    assert [part.credits for part in plan.parts] == [40, 60]


def test_a_row_of_budgets_counts_what_must_not_be():
    replies = [
        demo_budgets.Reply(10, "The answer is 7.", 10, 18, True),
        demo_budgets.Reply(10, "It is 7.\n</think>\n\nThe answer is 7.", 10, 32, True),
        demo_budgets.Reply(10, "\n\nMy guess is 3.", 4, 12, False),
        demo_budgets.Reply(10, "My guess is 9.", 8, 26, False),
    ]
    # At most 1.1 x 10 + 15 = 26 tokens.
    row = demo_budgets.row("at-most", replies)
    assert row == "| at-most | 10 | 50.0% | 2 | 8.0 | 14.0 | 32 | 1 | 1 | 1 |"


def test_replies_are_held_to_their_own_budgets():
    replies = [
        demo_budgets.Reply(10, "The answer is 7.", 10, 27, True),
        demo_budgets.Reply(20, "The answer is 7.", 18, 27, True),
    ]
    row = demo_budgets.row("server", replies)
    assert row.startswith("| server | 10 to 20 |")
    assert row.endswith("| 27 | 0 | 0 | 1 |")


def test_a_second_marker_is_part_of_what_was_said():
    text = "It is 7.\n</think>\n\nMy guess is 1Find\n</think>\n\nThe answer is 7."
    said = "\n\nMy guess is 1Find\n</think>\n\nThe answer is 7."
    assert demo_budgets.behind_the_first_marker(text) == said
    assert demo_budgets.behind_the_first_marker("My guess is 3.") == "My guess is 3."


@pytest.mark.parametrize(
    "answer, right",
    [("The answer is 12.", True), ("My guess is 2.", False), ("The answer is.", False)],
)
def test_the_last_number_of_an_answer_counts(answer, right):
    assert demo_budgets.is_right(answer, {"answer": "12"}) == right
