"""What a request's fields ask of thinking: each is honoured or refused by its name."""

import pytest

from mlx_budget.engine.settings import AutoBudget, ThinkingBudget
from mlx_budget.server.budgets import (
    EFFORTS,
    FIELDS,
    BudgetPolicy,
    RequestError,
    read_thinking,
)


def budget_of(body: dict, default: int | None = 77):
    policy = BudgetPolicy(ThinkingBudget(tokens=default))
    return read_thinking(body, policy).tokens


def in_body(field: str, value) -> dict:
    parent, _, name = field.rpartition(".")
    return {parent: {name: value}} if parent else {name: value}


@pytest.mark.parametrize("field", FIELDS)
def test_a_budget_is_known_by_every_name(field):
    for value in (40, 0, "auto"):
        expected = AutoBudget() if value == "auto" else value
        assert budget_of(in_body(field, value)) == expected
    assert budget_of(in_body(field, -1)) is None
    assert budget_of(in_body(field, None)) == 77
    with pytest.raises(RequestError, match=field.rpartition(".")[2]) as refused:
        budget_of(in_body(field, "many"))
    assert refused.value.field == field


@pytest.mark.parametrize("field", ["reasoning_effort", "reasoning.effort"])
def test_an_effort_is_known_by_both_names(field):
    for effort, budget in EFFORTS.items():
        assert budget_of(in_body(field, effort)) == budget
    assert {"none", "minimal", "low", "medium", "high", "xhigh", "max"} == {*EFFORTS}
    with pytest.raises(RequestError, match="must be none, minimal, low"):
        budget_of(in_body(field, "enormous"))


@pytest.mark.parametrize(
    ("field", "on", "off"),
    [
        ("enable_thinking", True, False),
        ("think", True, False),
        ("reasoning.enabled", True, False),
        ("thinking.type", "enabled", "disabled"),
        ("thinking.type", "adaptive", "disabled"),
    ],
)
def test_a_switch_turns_thinking_off_or_lets_the_default_be(field, on, off):
    assert budget_of(in_body(field, off)) == 0
    assert budget_of(in_body(field, on)) == 77
    assert budget_of(in_body(field, on), default=0) is None
    assert budget_of({**in_body(field, on), "thinking_budget": 40}) == 40
    for value, budget in ((off, 40), (on, 0)):
        with pytest.raises(RequestError, match="disagree"):
            budget_of({**in_body(field, value), "thinking_budget": budget})
    for wrong in (1, 0, "yes", [on]):
        with pytest.raises(RequestError) as refused:
            budget_of(in_body(field, wrong))
        assert refused.value.field == field


def test_an_object_is_read_as_clients_send_it():
    assert budget_of({"thinking": {"type": "enabled", "budget_tokens": 40}}) == 40
    assert budget_of({"thinking": {"type": "disabled"}}) == 0
    assert budget_of({"reasoning": {"max_tokens": 40}}) == 40
    assert budget_of({"reasoning": {"effort": "low"}}) == AutoBudget(0.4)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"thinking": 40}, "thinking"),
        ({"reasoning": "low"}, "reasoning"),
        ({"thinking": {"type": "enabled", "tokens": 4}}, "thinking.tokens"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(body, field):
    with pytest.raises(RequestError) as refused:
        budget_of(body)
    assert refused.value.field == field
