"""Automatic budgets: a share of the length that a predictor expects of a question."""

import mlx_lm
import pytest

from mlx_budget import batch_generate, estimate, make_budget_sampler, stream_generate
from mlx_budget.engine.settings import MAX_BUDGET, AutoBudget, check_budget


def expected(loaded, prompt: list[int], share: float) -> int:
    return max(1, round(share * estimate(*loaded, prompt).median))


@pytest.mark.parametrize(
    "text, share", [("auto", 1), ("auto:0.63", 0.63), ("auto:1", 1), ("auto:.5", 0.5)]
)
def test_a_share_is_read_from_its_text(text, share):
    assert check_budget(text) == AutoBudget(share)
    assert check_budget(check_budget(text)) == AutoBudget(share)


@pytest.mark.parametrize("text", ["automatic", "auto:", "auto:63%", "auto:-1", "60"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="auto, or auto and a share such as auto:0.63"):
        check_budget(text)


@pytest.mark.parametrize("share", [0, -1, 101, float("nan"), True, "1"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        AutoBudget(share)


def test_a_budget_is_a_share_of_the_median():
    assert AutoBudget(0.63).tokens(100.2) == 63
    assert AutoBudget(0.01).tokens(1) == 1
    assert AutoBudget(1).tokens(float("inf")) == MAX_BUDGET


def test_texts_of_budgets():
    assert [str(AutoBudget(s)) for s in (1, 0.63)] == ["auto", "auto:0.63"]


def test_replies_are_those_of_the_budget_that_is_found(loaded, cases):
    prompts = [case["prompt_ids"] for case in list(cases.values())[:3]]
    for prompt in prompts:
        budget = expected(loaded, prompt, 0.2)
        runs = [
            list(
                stream_generate(
                    *loaded[:2],
                    prompt,
                    predictor=loaded[2],
                    thinking_budget=given,
                    max_tokens=120,
                )
            )
            for given in ("auto:0.2", budget)
        ]
        tokens = [[r.token for r in run] for run in runs]
        assert tokens[0] == tokens[1]
        assert {r.thinking_budget for r in runs[0]} == {budget}


def test_each_reply_of_a_batch_has_a_budget_of_its_own(loaded, cases):
    prompts = list(
        {str(c["prompt_ids"]): c["prompt_ids"] for c in cases.values()}.values()
    )
    result = batch_generate(
        *loaded[:2],
        prompts,
        predictor=loaded[2],
        thinking_budget="auto:0.2",
        max_tokens=60,
        batch_size=3,
    )
    budgets = [r.thinking_budget for r in result.replies]
    assert budgets == [expected(loaded, prompt, 0.2) for prompt in prompts]
    assert len(set(budgets)) > 1


def test_the_stock_loop_takes_an_automatic_budget(loaded, cases):
    model, tokenizer, predictor = loaded
    prompt = next(iter(cases.values()))["prompt_ids"]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=prompt, thinking_budget="auto:0.2"
    )
    assert sampler.budget is None
    for _ in mlx_lm.stream_generate(
        model, tokenizer, prompt, sampler=sampler, max_tokens=3
    ):
        pass
    assert sampler.budget == expected(loaded, prompt, 0.2)
    sampler.close()


def test_without_a_predictor_there_is_nothing_to_take_a_share_of(loaded, cases):
    prompt = next(iter(cases.values()))["prompt_ids"]
    with pytest.raises(ValueError, match="auto:0.5 is a share of what a predictor"):
        make_budget_sampler(
            *loaded[:2], False, prompt=prompt, thinking_budget="auto:0.5"
        )
    with pytest.raises(ValueError, match="auto is a share of what a predictor"):
        make_budget_sampler(*loaded[:2], prompt=prompt, thinking_budget="auto")


def test_a_request_with_a_seed_draws_the_same_whatever_runs_beside_it(loaded, cases):
    prompts = [case["prompt_ids"] for case in list(cases.values())[:4]]

    def replies(prompts: list, seeds: list, batch_size: int) -> list[list[int]]:
        result = batch_generate(
            *loaded[:2],
            prompts,
            predictor=loaded[2],
            thinking_budget=20,
            max_tokens=40,
            temp=1.0,
            seed=seeds,
            batch_size=batch_size,
        )
        return [r.tokens for r in result.replies]

    together = replies(prompts, [1, 2, 3, 4], 4)
    assert together == replies(prompts, [1, 2, 3, 4], 1)
    assert together[2:] == replies(prompts[2:], [3, 4], 2)
    assert together[0] != replies(prompts[:1], [5], 1)[0]


def test_seeds_out_of_range_are_refused(loaded, cases):
    prompt = next(iter(cases.values()))["prompt_ids"]
    for seed in (-1, 2**64):
        with pytest.raises(
            ValueError, match=rf"seed must be 0 to 2\^64 - 1, not {seed}"
        ):
            make_budget_sampler(*loaded[:2], False, prompt=prompt, seed=seed)
