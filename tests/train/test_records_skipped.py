"""Records that cannot be used are counted with the reason, or are errors."""

import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from chats import USER, chat, read
from conversions import REFERENCE
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.train.records import SkippedRecords, read_records


@pytest.fixture
def tokenizer():
    return load_tokenizer(REFERENCE)


def with_messages(*messages) -> dict:
    return {"messages": list(messages)}


REPLY = {"role": "assistant", "content": "x</think>"}
BAD = [
    ({}, "no messages"),
    (with_messages(), "no messages"),
    ({"messages": None, "a": 1}, "no messages, but the field a alone"),
    ({"question": 1, "answer": 2}, "no messages, but the fields question, answer"),
    ({"messages": "hi"}, "messages without role and content as texts"),
    ({"messages": '[{"role": '}, "messages without role and content as texts"),
    (with_messages(USER), "last message not the assistant's"),
    (with_messages(REPLY, USER), "last message not the assistant's"),
    (with_messages(REPLY), "no prompt before the reply"),
    (
        with_messages({"role": "user", "content": " "}, REPLY),
        "no prompt before the reply",
    ),
    (with_messages(USER, "x"), "messages without role and content as texts"),
    (with_messages({"role": "user"}, REPLY), "message 1 (user) has no content"),
    (
        with_messages(USER, {"role": "assistant", "content": None}),
        "message 2 (assistant) has no content",
    ),
    (
        with_messages({"role": "human", "content": "hi"}, REPLY),
        "message 1 has the role 'human', which is written 'user'",
    ),
    (
        with_messages({"content": "hi"}, REPLY),
        "message 1 has no role: it has the field content alone",
    ),
    (
        with_messages({"role": "user", "content": [{"type": "image_url"}]}, REPLY),
        "message 1 (user) has a part of type image_url: only parts of type text can be "
        "read",
    ),
    (chat("x\ud800</think>"), "text that is not Unicode"),
    (chat("x"), "thinking not closed"),
    (chat(""), "thinking not closed"),
    (chat("x</think>", raw_prompt=True), "no thinking block"),
    (
        {**with_messages(USER, USER, REPLY), "raw_prompt": True},
        "a raw prompt of several messages",
    ),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_record_is_counted_or_an_error(tokenizer, record, reason):
    skipped = SkippedRecords()
    good = chat("x</think>")
    (found,) = read(tokenizer, good, record, skipped=skipped)
    assert found.name == "record 1"
    assert skipped.summary() == [f"1 record skipped, {reason}: record 2"]
    with pytest.raises(ValueError) as caught:
        read(tokenizer, good, record, strict=True)
    message = f"record 2 cannot be trained on: {reason}. Mend or remove it."
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('No users, please.') }}", "No users, please"),
        (None, "The tokenizer has no chat template for chat messages"),
    ],
)
def test_a_template_that_fails_is_a_reason(tokenizer, template, reason):
    tokenizer._tokenizer.chat_template = template
    tokenizer.has_chat_template = template is not None
    skipped = SkippedRecords()
    assert read(tokenizer, chat("x</think>"), skipped=skipped) == []
    assert skipped.counts == {f"chat template fails ({reason})": 1}


def test_a_template_that_renders_nothing_leaves_no_prompt(tokenizer):
    tokenizer._tokenizer.chat_template = "{% if false %}{% endif %}"
    skipped = SkippedRecords()
    record = chat("<think>x</think>")
    assert read(tokenizer, record, positions="all", skipped=skipped) == []
    assert skipped.counts == {"no prompt before the reply": 1}


def test_skipped_records_are_summed_up():
    skipped = SkippedRecords()
    assert (skipped.total, skipped.summary()) == (0, [])
    skipped.add("f, line 1", "rare")
    for i in range(2, 7):
        skipped.add(f"f, line {i}", "frequent")
    assert skipped.total == 6
    assert skipped.counts == {"rare": 1, "frequent": 5}
    assert skipped.summary() == [
        "5 records skipped, frequent: f, line 2; f, line 3; f, line 4; ...",
        "1 record skipped, rare: f, line 1",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "some"}, "positions must be newline, all, or .* not 'some'"),
        ({"max_length": 1}, "max_length must be an integer >= 2, not 1"),
        ({"limit": 0}, "limit must be an integer >= 1, not 0"),
        ({"seed": -1}, "seed must be an integer >= 0, not -1"),
        ({"augment": "long"}, "augment must be None or concise, not 'long'"),
        ({"thinking": ThinkingBudget(end=" ")}, "closing thinking marker"),
    ],
)
def test_bad_options_are_refused_before_reading(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        read_records("none.jsonl", tokenizer, skipped=SkippedRecords(), **options)


def test_what_begins_behind_the_cut_is_skipped_even_if_strict(tokenizer):
    prompt = len(encode_chat(tokenizer, [USER]))
    skipped = SkippedRecords()
    record = chat("x</think>")
    options = {"max_length": prompt, "strict": True, "skipped": skipped}
    assert read(tokenizer, record, **options) == []
    assert skipped.counts == {"no position within --max-length": 1}


def test_without_an_answer_there_is_no_concise_copy(tokenizer):
    data = chat("x</think>\n"), chat("x</think>z", finish_reason="length")
    skipped = SkippedRecords()
    options = {"augment": "concise", "strict": True, "skipped": skipped}
    found = read(tokenizer, *data, **options)
    assert [record.name for record in found] == ["record 1", "record 2"]
    assert skipped.summary() == [
        "1 record skipped, no answer, so no concise copy: record 1 (concise)",
        "1 record skipped, answer cut off, so no concise copy: record 2 (concise)",
    ]
