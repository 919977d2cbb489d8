"""A conversation that goes on from another's turns is that other, to the token."""

import pytest

from conversations import (
    FIRST,
    KEEPING,
    SECOND,
    SWITCHED,
    ask,
    assert_same,
    tokens,
    with_template,
)
from mlx_budget import load
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.turns import Turn

REASONING = KEEPING.replace("m.content", "(m.reasoning_content or '') + m.content")
THIRD = "What is 9 - 5 + 1?"


@pytest.mark.parametrize(
    ("template", "is_new"),
    [(None, True), (KEEPING, False), (SWITCHED, False), (REASONING, False)],
)
def test_the_next_reply_is_that_of_the_chat_that_went_on(template, is_new):
    loaded = load("demo") if template is None else with_template(template)
    options = {"temp": 0.7, "seed": 5, "max_tokens": 30}
    one = Conversation(*loaded, system_prompt="Add up.", **options)
    ask(one, FIRST, 5)
    ask(one, SECOND, 0)
    turns, asked = one.turns, one.asked
    whole = ask(one, THIRD, 30)
    other = Conversation(*loaded)
    if not is_new:  # its cache holds something else, that begins alike
        ask(other, FIRST, 9)
        ask(other, THIRD, 0)
    other.go_on_from(turns, asked, "Add up.", one.options)
    again = ask(other, THIRD, 30)
    assert_same(again, whole)
    assert other.turns == one.turns and other.messages == one.messages
    assert other.prompt_tokens == one.prompt_tokens


def test_what_the_cache_has_read_is_not_read_again():
    conversation = Conversation(*load("demo"))
    ask(conversation, FIRST, 20)
    turns = conversation.turns
    ask(conversation, SECOND, 20)
    conversation.go_on_from(turns, 1, None, {})
    first = ask(conversation, THIRD, 20)[0]
    assert first.prompt_tokens < conversation.prompt_tokens - 10
    assert conversation.read_again == 0


def test_turns_of_another_model_get_the_markers_of_this_one():
    conversation = Conversation(*with_template(KEEPING))
    turn = Turn(FIRST, "12", "7 + 1", "[THINK]7 + 1[/THINK]12").without_text()
    conversation.go_on_from([turn, Turn(SECOND, "4")], 2, None, {})
    contents = [m["content"] for m in conversation.messages]
    assert contents == [FIRST, "<think>\n7 + 1\n</think>\n\n12", SECOND, "4"]
    assert tokens(ask(conversation, THIRD, 10))


@pytest.mark.parametrize(
    ("turns", "options", "message"),
    [
        ([], {"temp": -1}, "temp"),
        ([], {"temp": "hot"}, "temp"),
        ([], {"hard_stop": 0.5}, "hard_stop"),
        ([], {"nope": 1}, "no option 'nope'"),
        ([], {"max_tokens": 0}, "max_tokens"),
        ([], {"chat_template_config": [1]}, "chat_template_config"),
        ([Turn("no", "x")], {}, "cannot render"),
    ],
)
def test_what_cannot_go_on_changes_nothing(turns, options, message):
    refusing = KEEPING.replace(
        "{{",
        "{%- if m.content == 'no' %}{{ raise_exception('Never') }}{% endif %}{{",
        1,
    )
    conversation = Conversation(*with_template(refusing))
    ask(conversation, FIRST, 0)
    before = conversation.messages, conversation.options, conversation.asked
    with pytest.raises(ValueError, match=message):
        conversation.go_on_from(turns, 5, "x", options)
    after = conversation.messages, conversation.options, conversation.asked
    assert after == before and conversation.system_prompt is None
