"""What a request's fields ask of thinking: each is honoured or refused by its name."""

import pytest

from mlx_budget.engine.budgets import EFFORTS, Effort
from mlx_budget.engine.settings import AutoBudget, ThinkingBudget
from mlx_budget.server.budget_fields import (
    EFFORT_FIELDS,
    FIELDS,
    check_template_arguments,
    read_efforts,
)
from mlx_budget.server.budgets import BudgetPolicy, read_thinking
from mlx_budget.server.errors import RequestError
from mlx_budget.server.options import take_options


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


@pytest.mark.parametrize("field", [*EFFORT_FIELDS, "think"])
def test_an_effort_is_known_by_every_name(field):
    expected = {
        "none": 0,
        "minimal": Effort(0.2, without=128),
        "low": Effort(0.4, without=512),
        "medium": Effort(0.7, without=2048),
        "high": Effort(1.0, without=8192),
        "xhigh": Effort(1.5, without=32768),
        "max": None,
    }
    assert {*expected} == {*EFFORTS}
    for effort, budget in expected.items():
        assert budget_of(in_body(field, effort)) == budget
    with pytest.raises(RequestError, match="must be none, minimal, low") as refused:
        budget_of(in_body(field, "enormous"))
    assert refused.value.field == field


def test_an_effort_without_a_prediction_is_its_tokens():
    policy = BudgetPolicy(most=1000, efforts=read_efforts("low=300, high=9000"))
    for effort, tokens in (("minimal", 128), ("low", 300), ("high", 1000)):
        asked = read_thinking({"reasoning_effort": effort}, policy)
        assert isinstance(asked.tokens, AutoBudget)
        assert asked.without_prediction().tokens == tokens
    auto = ThinkingBudget("auto")
    assert auto.without_prediction() is auto


def test_the_tokens_of_efforts_are_an_option_of_the_server():
    efforts = take_options({"effort": "low=300"}).policy.efforts
    assert (efforts["low"], efforts["medium"]) == (300, 2048)


@pytest.mark.parametrize("text", ["low", "low=", "low=x", "huge=3", "low=3;high=4", ""])
def test_efforts_that_are_no_table_are_refused(text):
    with pytest.raises(ValueError, match="--effort must give tokens to levels"):
        read_efforts(text)


@pytest.mark.parametrize("number", FIELDS)
@pytest.mark.parametrize("level", EFFORT_FIELDS)
def test_a_number_beats_a_level(number, level):
    body = in_body(level, "high")
    for name, value in in_body(number, 40).items():
        body[name] = {**body[name], **value} if name in body else value
    assert budget_of(body) == 40
    with pytest.raises(RequestError, match="disagree"):
        budget_of({**body, "thinking_budget": 41, "thinking_token_budget": 42})


def test_levels_that_disagree_are_refused():
    body = {"reasoning_effort": "low", "reasoning": {"effort": "high"}}
    with pytest.raises(RequestError, match="disagree"):
        budget_of(body)
    with pytest.raises(RequestError, match="disagree"):
        budget_of({"reasoning_effort": "low", "think": False})
    # That of an output is not of its thinking alone.
    body = {"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}}
    assert budget_of(body) == 0


@pytest.mark.parametrize(
    ("field", "on", "off"),
    [
        ("enable_thinking", True, False),
        ("think", True, False),
        ("thinking", True, False),
        ("chat_template_kwargs.enable_thinking", True, False),
        ("chat_template_kwargs.thinking", True, False),
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
    assert budget_of({"reasoning": {"effort": "low"}}) == Effort(0.4, without=512)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"thinking": 40}, "thinking"),
        ({"reasoning": "low"}, "reasoning"),
        ({"thinking": {"type": "enabled", "tokens": 4}}, "thinking.tokens"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude"),
        ({"reasoning": {"budget": 4}}, "reasoning.budget"),
        ({"output_config": {"format": {}}}, "output_config.format"),
        ({"thinkingBudget": 40}, "thinkingBudget"),
        ({"thinking_config": {"thinking_budget": 40}}, "thinking_config"),
        ({"budget_tokens": 40}, "budget_tokens"),
        ({"effort": "low"}, "effort"),
        ({"include_reasoning": False}, "include_reasoning"),
        ({"reasoning_format": "hidden"}, "reasoning_format"),
        ({"extra_body": {"thinking_budget": 40}}, "extra_body"),
        ({"google": {"thinking_config": {"thinking_budget": 4}}}, "google"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(body, field):
    with pytest.raises(RequestError) as refused:
        budget_of(body)
    assert refused.value.field == field


def test_what_only_says_how_thinking_is_told_asks_nothing():
    body = {"include_reasoning": True, "reasoning": {"exclude": False}}
    assert budget_of({**body, "reasoning_format": "parsed", "metadata": {}}) == 77


def test_an_argument_that_no_template_reads_is_refused_by_name():
    template = "{% if reasoning_mode %}{% endif %}"
    check_template_arguments({"reasoning_mode": 1, "colour": 2}, template)
    check_template_arguments({"enable_thinking": False}, template)
    with pytest.raises(RequestError) as refused:
        check_template_arguments({"think_hard": 1}, template)
    assert refused.value.field == "chat_template_kwargs.think_hard"
