"""What a request's fields ask of thinking, within the server's policy."""

import pytest

from mlx_budget.engine.budgets import BudgetRange, Effort
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.server.budgets import (
    BudgetPolicy,
    asked_floor,
    leaving_room,
    limit_of,
    read_thinking,
)
from mlx_budget.server.errors import RequestError


def read(policy: BudgetPolicy = BudgetPolicy(), **body) -> ThinkingBudget:  # noqa: B008
    return read_thinking(body, policy)


def test_a_range_a_floor_and_a_mode_are_read():
    assert read(thinking_budget=[800, 1000]).tokens == BudgetRange(800, 1000)
    assert read(thinking_budget="800-1000").tokens == BudgetRange(800, 1000)
    assert read(thinking_budget_tokens=[8, 9]).tokens == BudgetRange(8, 9)
    assert read(min_thinking_tokens=50) == ThinkingBudget(least=50)
    asked = read(thinking_budget=60, budget_mode="about", min_thinking_tokens=55)
    assert asked == ThinkingBudget(60, mode="about", least=55)
    asked = read(reasoning_effort="low", min_thinking_tokens=5, budget_mode="about")
    assert asked == ThinkingBudget(Effort(0.4, without=512), mode="about", least=5)


def test_fields_that_are_null_say_nothing():
    policy = BudgetPolicy(ThinkingBudget(90, mode="about", least=50))
    fields = ("thinking_budget", "budget_mode", "min_thinking_tokens")
    assert read(policy, **dict.fromkeys(fields)) == policy.thinking


def test_what_a_request_asks_for_beats_the_servers_own():
    policy = BudgetPolicy(ThinkingBudget(least=50))
    assert read(policy, thinking_budget=20) == ThinkingBudget(20, least=20)
    assert read(policy, thinking_budget=80) == ThinkingBudget(80, least=50)
    assert read(policy, thinking_budget=0) == ThinkingBudget(0)
    assert read(policy, thinking_budget=[10, 30]).bounds == (30, 30)
    assert read(policy, min_thinking_tokens=0).is_free
    assert read(policy).bounds == (50, None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"thinking_budget": [9, 5]}, "thinking_budget"),
        ({"thinking_budget_tokens": [5]}, "thinking_budget_tokens"),
        ({"thinking_budget": [5, "9"]}, "thinking_budget"),
        ({"min_thinking_tokens": -1}, "min_thinking_tokens"),
        ({"min_thinking_tokens": "50"}, "min_thinking_tokens"),
        ({"min_thinking_tokens": True}, "min_thinking_tokens"),
        ({"min_thinking_tokens": 2.0}, "min_thinking_tokens"),
        ({"min_thinking_tokens": 2**40}, "min_thinking_tokens"),
        ({"min_thinking_tokens": 61, "thinking_budget": 60}, "min_thinking_tokens"),
        ({"budget_mode": "exactly"}, "budget_mode"),
        ({"budget_mode": ["about"]}, "budget_mode"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(body, field):
    with pytest.raises(RequestError) as caught:
        read(**body)
    assert caught.value.field == field
    assert field in str(caught.value) and "\n" not in str(caught.value)


def test_no_floor_passes_the_servers_ceiling():
    policy = BudgetPolicy(ThinkingBudget(least=40), most=30)
    for body in ({"min_thinking_tokens": 31}, {"thinking_budget": [31, 40]}):
        with pytest.raises(RequestError, match="for more than 30"):
            read(policy, **body)
    # The server's own gives way.
    assert read(policy) == ThinkingBudget(30, least=30)
    assert read(policy, thinking_budget=[20, 90]).tokens == BudgetRange(20, 30)


def test_a_floor_that_was_asked_for_needs_its_room():
    body = {"thinking_budget": [50, 60]}
    thinking, asked = read(**body), asked_floor(body)
    assert asked == 50
    assert leaving_room(thinking, 200, 1, asked) == thinking
    with pytest.raises(RequestError, match="leaves room for 40 tokens of thinking"):
        leaving_room(thinking, 60, 1, asked)
    assert asked_floor({"min_thinking_tokens": 70, **body}) == 70
    # One that the server has for all requests is lowered.
    assert leaving_room(ThinkingBudget(least=50), 60, 1) == ThinkingBudget(least=44)
    assert leaving_room(thinking, 60, 1).tokens == BudgetRange(40, 40)


def test_a_reply_without_a_limit_gets_what_its_interface_gives():
    assert limit_of(ThinkingBudget()) is None
    assert limit_of(ThinkingBudget(100)) == 110 + 2048
    # A level is a prediction or its tokens, which is not known yet.
    assert limit_of(read(reasoning_effort="low")) == 8192
    assert limit_of(read(reasoning_effort="xhigh")) > 32768
    for thinking in (ThinkingBudget(), ThinkingBudget(100)):
        assert limit_of(thinking, is_open=True) > 1_000_000
