"""Levels: low, medium, high and the others mean the same wherever a budget is given."""

import pytest

from mlx_budget import batch_generate, estimate, make_budget_sampler, stream_generate
from mlx_budget.engine.budgets import (
    EFFORT_TOKENS,
    EFFORTS,
    AutoBudget,
    BudgetRange,
    Effort,
    check_budget,
    read_budget,
)
from mlx_budget.engine.enforcing import for_predictor
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.server.budgets import BudgetPolicy, read_thinking
from mlx_budget.server.errors import RequestError
from mlx_budget.server.options import take_options

# Those that stand for a length; "none" and "max" stand for no thinking and no budget.
LENGTHS = [level for level in EFFORTS if level in EFFORT_TOKENS]


@pytest.mark.parametrize("level", EFFORTS)
def test_a_level_is_what_it_is_in_a_request(level):
    asked = read_thinking({"reasoning_effort": level}, BudgetPolicy()).tokens
    for given in (level, level.upper(), f" {level} "):
        assert check_budget(given) == read_budget(given) == asked
    assert read_thinking({"thinking_budget": level}, BudgetPolicy()).tokens == asked
    assert take_options({"thinking_budget": level}).policy.thinking.tokens == asked


@pytest.mark.parametrize("level", LENGTHS)
def test_a_level_is_told_as_it_was_given(level):
    budget = check_budget(level)
    assert isinstance(budget, Effort)
    assert str(budget) == level
    assert budget == Effort(EFFORTS[level] or 0, without=EFFORT_TOKENS[level])


def test_a_share_in_percent_is_that_of_auto():
    assert check_budget("50%") == check_budget("auto:0.5") == AutoBudget(0.5)
    assert check_budget("62.5 %") == AutoBudget(0.625)
    assert check_budget("150%") == AutoBudget(1.5)
    assert str(check_budget("50%")) == "50%"


@pytest.mark.parametrize(
    ("text", "budget"),
    [("500", 500), ("-1", None), ("0", 0), ("80-100", BudgetRange(80, 100))],
)
def test_a_typed_budget_may_be_a_number(text, budget):
    assert read_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["lo", "", "off", "5%%", "%", "-5%", "low-high", "1e3"]
)
def test_other_words_are_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="thinking_budget must be") as refused:
        read_budget(text)
    message = str(refused.value)
    assert repr(text) in message and "\n" not in message
    for allowed in ("tokens", "low, medium, high", "63%", "auto", "800-1000"):
        assert allowed in message


@pytest.mark.parametrize("text", ["0%", "10001%", "auto:0"])
def test_a_share_of_nothing_is_refused(text):
    with pytest.raises(ValueError, match="thinking_budget must be above 0"):
        read_budget(text)


def test_the_tokens_of_a_level_are_the_servers_to_set():
    options = take_options({"thinking_budget": "low", "effort": "low=300"})
    assert options.policy.thinking.without_prediction().tokens == 300
    for field in ("thinking_budget", "reasoning_effort"):
        asked = read_thinking({field: "low"}, options.policy)
        assert asked.without_prediction().tokens == 300
    with pytest.raises(RequestError, match="thinking_budget must be"):
        read_thinking({"thinking_budget": "lo"}, options.policy)


def test_without_a_prediction_a_level_is_its_tokens_and_a_share_is_none(loaded):
    low, half = ThinkingBudget("low"), ThinkingBudget("50%")
    for predictor in (None, False):
        assert for_predictor(low, predictor).tokens == 512
        assert for_predictor(ThinkingBudget("low", least=600), predictor).tokens == 600
        assert for_predictor(half, predictor) is half
    assert for_predictor(low, loaded[2]) is low
    sampler = make_budget_sampler(
        *loaded[:2], None, prompt="Hm.", thinking_budget="low"
    )
    assert sampler.record.budget == 512
    with pytest.raises(ValueError, match="budget 50% is a share.*level such as low"):
        make_budget_sampler(*loaded[:2], None, prompt="Hm.", thinking_budget="50%")


def budget_of(loaded, predictor, prompt, budget) -> int | None:
    responses = stream_generate(
        *loaded[:2], prompt, predictor=predictor, thinking_budget=budget, max_tokens=3
    )
    return list(responses)[-1].thinking_budget


def test_a_reply_has_the_budget_of_its_level(loaded, cases):
    prompt = next(iter(cases.values()))["prompt_ids"]
    median = estimate(*loaded, prompt).median
    predictor = loaded[2]
    assert budget_of(loaded, predictor, prompt, "low") == round(0.4 * median)
    assert budget_of(loaded, predictor, prompt, "50%") == round(0.5 * median)
    assert budget_of(loaded, None, prompt, "low") == 512
    assert budget_of(loaded, False, prompt, "high") == 8192
    assert budget_of(loaded, False, prompt, "none") == 0
    assert budget_of(loaded, False, prompt, "max") is None


def test_each_prompt_of_a_batch_may_have_its_level(loaded, cases):
    prompt = next(iter(cases.values()))["prompt_ids"]
    median = estimate(*loaded, prompt).median
    budgets = ["low", "50%", "none", "max", 7]
    result = batch_generate(
        *loaded[:2],
        [prompt] * len(budgets),
        predictor=loaded[2],
        thinking_budget=budgets,
        max_tokens=3,
    )
    found = [reply.thinking_budget for reply in result.replies]
    assert found == [round(0.4 * median), round(0.5 * median), 0, None, 7]
    alone = batch_generate(
        *loaded[:2], [prompt], predictor=None, thinking_budget="low", max_tokens=3
    )
    assert alone.replies[0].thinking_budget == 512
