"""Strategies: what tells them apart, and how budgets are asked for."""

import pytest

from mlx_budget import batch_generate
from mlx_budget.engine.fields import keywords_of
from mlx_budget.engine.settings import AutoBudget, ThinkingBudget
from mlx_budget.evaluate.arms import Arm, BudgetRequest, parse_budgets
from mlx_budget.evaluate.options import EvaluateOptions
from mlx_budget.evaluate.strategies import (
    FORCED_ANSWER,
    STRATEGIES,
    check_guided,
    parse_strategies,
)
from scripted import ScriptedBatch

START, END = 423, 424


def say(loaded, script: list[int], arm: Arm, **options):
    """The reply of a model that wants to say ``script`` and then the end."""
    thinking = ThinkingBudget(message=options.pop("message", None))
    given = arm.generation(loaded[2], thinking)
    (reply,) = batch_generate(
        ScriptedBatch(script, 2),
        loaded[1],
        [[5, START]],
        batch_size=1,
        **given,
        **options,
    ).replies
    return reply


@pytest.mark.parametrize("text", ["9" * 400, "3000000000", "9" * 400 + "%", "20000%"])
def test_budgets_that_cannot_be_are_refused_at_once(text):
    with pytest.raises(ValueError, match="A (budget|share) must be"):
        parse_budgets(f"60,{text}")


@pytest.mark.parametrize("name", ["full", "truncate", "hard-stop", "wait", "guidance"])
def test_loops_are_stopped_in_all_arms_or_in_none(name):
    asked = ThinkingBudget(stop_loops=False)
    assert Arm(name, "40", 40).generation(None, asked)["stop_loops"] is False


def test_budgets_are_tokens_or_shares_of_the_mean():
    budgets = parse_budgets("60, 25%,62.5%")
    assert budgets == (
        BudgetRequest("60", tokens=60),
        BudgetRequest("25%", share=0.25),
        BudgetRequest("62.5%", share=0.625),
    )
    assert [b.resolve(101.0) for b in budgets] == [60, 25, 63]
    assert BudgetRequest("1%", share=0.01).resolve(3.0) == 1


@pytest.mark.parametrize("text", ["", "0", "-5", "x", "0%", "60,,70", "1.5", "auto"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="such as 500 or 63%; not"):
        parse_budgets(text)


def test_a_budget_named_twice_is_one():
    assert parse_budgets("60,50%,060,50.0%") == parse_budgets("60,50%")


def test_strategies_come_in_their_own_order_and_once():
    assert parse_strategies("wait, full,wait") == ("full", "wait")
    assert parse_strategies("all") == tuple(STRATEGIES)
    with pytest.raises(ValueError, match="no strategy 'cut': choose from full, no-th"):
        parse_strategies("full,cut")


def test_arms_have_names_of_their_own():
    assert Arm("full").name == "full"
    assert Arm("guidance", "25%", 37).name == "guidance@25%"


def test_only_prompt_states_the_budget():
    assert Arm("guidance", "60", 60).question("Why?") == "Why?"
    asked = Arm("prompt", "60", 60).question("Why?")
    assert asked == "Why?\n\nThink for at most 60 tokens."


def test_guided_strategies_differ_in_the_hard_stop_and_the_budget(loaded):
    predictor = loaded[2]
    thinking = ThinkingBudget(hard_stop=1.3, message="Time.", guidance_tolerance=0)
    with_stop = Arm("guidance", "9", 9).generation(predictor, thinking)
    assert with_stop == {
        **keywords_of(thinking),
        "predictor": predictor,
        "thinking_budget": 9,
        "hard_stop": 1.3,
        "thinking_budget_message": "Time.",
    }
    alone = Arm("guidance-no-hard-stop", "9", 9).generation(predictor, thinking)
    assert alone["hard_stop"] is None and alone["predictor"] is predictor
    auto = Arm("auto", "50%", AutoBudget(0.5)).generation(predictor, thinking)
    assert auto["thinking_budget"] == AutoBudget(0.5) and auto["hard_stop"] == 1.3
    prior = Arm("prior", "60", 60).generation(predictor, thinking)
    assert prior["thinking_budget"] == 60 and prior["predictor"] is None


def test_budgets_from_below_are_strategies_of_their_own(loaded):
    thinking, predictor = ThinkingBudget(hard_stop=1.3), loaded[2]
    about = Arm("about", "60", 60).generation(predictor, thinking)
    assert (about["thinking_budget"], about["budget_mode"]) == (60, "about")
    assert about["hard_stop"] == 1.3 and about["predictor"] is predictor
    floor = Arm("at-least", "60", 60).generation(predictor, thinking)
    assert (floor["thinking_budget"], floor["min_thinking_tokens"]) == (None, 60)
    assert floor["predictor"] is predictor
    for options in ({"mode": "about"}, {"least": 5}):
        with pytest.raises(ValueError, match="has the strategies about and at-least"):
            EvaluateOptions(thinking=ThinkingBudget(**options))


def test_what_guides_a_strategy_has_to_be_there(loaded):
    def is_refused(strategy: str, predictor: object) -> bool:
        try:
            check_guided(strategy, predictor)
        except ValueError:
            return True
        return False

    refused = {p: [s for s in STRATEGIES if is_refused(s, p)] for p in (None, False)}
    assert refused[None] == ["auto"]
    assert refused[False] == [
        "guidance",
        "guidance-no-hard-stop",
        "about",
        "at-least",
        "plan-guided",
        "plan-rollover",
        "auto",
    ]
    assert not any(is_refused(s, loaded[2]) for s in STRATEGIES)


def test_budget_forcing_cuts_at_the_budget_and_asks_for_the_answer(loaded):
    script = [10, 11, 12, 13, 14, 15, END, 20]
    reply = say(loaded, script, Arm("budget-forcing", "4", 4))
    tokenizer = loaded[1]
    forced = tokenizer.encode(FORCED_ANSWER, add_special_tokens=False)
    assert reply.tokens[: 4 + len(forced) + 1] == [*script[:4], *forced, END]
    assert (reply.thinking_tokens, reply.closed_by) == (4, "budget")
    # What was put in is neither thinking nor answer, and counted.
    assert reply.forced_tokens == len(forced) + 1
    assert reply.answer_tokens == len(reply.tokens) - 4 - len(forced) - 1
    assert reply.marker_tokens == 0


def test_truncate_closes_with_the_marker_and_the_message_alone(loaded):
    script = [10, 11, 12, 13, 14, 15, END, 20]
    arm = Arm("truncate", "4", 4)
    assert say(loaded, script, arm).tokens[:5] == [*script[:4], END]
    message = loaded[1].encode("Enough.", add_special_tokens=False)
    reply = say(loaded, script, arm, message="Enough.")
    assert reply.tokens[: 5 + len(message)] == [*script[:4], *message, END]


def test_a_reply_that_ends_before_the_budget_is_left_alone(loaded):
    script = [10, 11, END, 20]
    for strategy in ("budget-forcing", "truncate"):
        reply = say(loaded, script, Arm(strategy, "9", 9))
        assert (reply.tokens, reply.closed_by) == (script, "model")
        assert (reply.forced_tokens, reply.marker_tokens) == (0, 1)


def test_no_thinking_answers_at_once(loaded):
    reply = say(loaded, [10, 11, END, 20], Arm("no-thinking"))
    assert (reply.tokens[0], reply.thinking_tokens) == (END, 0)


def test_wait_takes_the_place_of_early_closing_markers(loaded):
    wait = loaded[1].encode("Wait", add_special_tokens=False)
    filler = [30] * (len(wait) - 1)  # what the model wants to say while Wait is put in
    script = [10, END, *filler, 11, END, *filler, 12, 13, END, 20]
    minimum = 3 + 2 * len(wait)
    reply = say(loaded, script, Arm("wait", str(minimum), minimum))
    assert reply.tokens == [10, *wait, 11, *wait, 12, 13, END, 20]
    # What was put in counts toward the minimum, and is counted apart.
    assert (reply.thinking_tokens, reply.forced_tokens) == (4, 2 * len(wait))
    assert reply.closed_by == "model"


def test_wait_leaves_thinking_alone_that_is_long_enough(loaded):
    script = [10, 11, 12, END, 20]
    assert say(loaded, script, Arm("wait", "3", 3)).tokens == script


def test_wait_replaces_the_beginning_of_a_marker_of_several_tokens(loaded):
    end = loaded[1].encode("</my thought>", add_special_tokens=False)
    (wait,) = loaded[1].encode("Wait", add_special_tokens=False)
    options = Arm("wait", "12", 12).generation(
        None, ThinkingBudget(end="</my thought>")
    )
    script = [10, *end, 20, *end, 20]
    (reply,) = batch_generate(
        ScriptedBatch(script, 2), loaded[1], [[5, START]], batch_size=1, **options
    ).replies
    # The script goes on as if nothing had been replaced.
    assert reply.tokens == [10, wait, *end[1:], 20, *end, 20]
    assert (reply.thinking_tokens, reply.closed_by) == (len(end) + 1, "model")


def test_every_strategy_says_where_it_stands(loaded):
    """Whoever adds one is told what is missing."""
    for name, strategy in STRATEGIES.items():
        assert strategy.does and not strategy.does.endswith(".")
        options = Arm(name, "20", 20).generation(loaded[2], ThinkingBudget())
        assert set(options) >= {"predictor", "thinking_budget", "hard_stop"}
        assert ("make_sampler" in options) == bool(strategy.sampler)
        assert strategy.way in ("replies", "exits", "votes", "plans", "anytime")


def test_only_strategies_that_need_the_hard_stop_are_refused_without(loaded):
    for name in ("hard-stop", "top-k-close"):
        with pytest.raises(ValueError, match=f"{name} needs a hard stop"):
            EvaluateOptions(strategies=(name,), thinking=ThinkingBudget(hard_stop=None))
    EvaluateOptions(strategies=("truncate",), thinking=ThinkingBudget(hard_stop=None))


def test_elastic_splits_its_budget(loaded):
    arm = Arm("elastic", "50", 50)
    options = arm.generation(None, ThinkingBudget())
    assert (options["thinking_budget"], options["hard_stop"]) == (40, 1.0)
    assert arm.max_answer_tokens(None) == 10
    assert arm.max_answer_tokens(4) == 4
    assert Arm("truncate", "50", 50).max_answer_tokens(None) is None


def test_prompts_state_what_their_strategies_say():
    question = "What is {1}?"
    assert Arm("tale", "60", 60).question(question) == (
        "What is {1}?\n\nLet's think step by step and use less than 60 tokens."
    )
    assert "5 words at most" in Arm("chain-of-draft").question(question)
