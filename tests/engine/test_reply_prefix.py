"""A text that replies begin with, and the tags of AdaCtrl, read back."""

import mlx.core as mx
import pytest

from formats import ANSWER
from formats.chatml import M1, OLMO3, QWEN3
from mlx_budget import batch_generate, generate, stream_generate
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.tags import tag_of
from mlx_budget.evaluate.rivals.lasting import Lasting
from replies import say

QUESTION = "What is 2 + 3?"
PREFIX = "[Easy]"


@pytest.fixture(scope="module", params=(QWEN3, OLMO3), ids=lambda f: f.name)
def format(request):
    """One whose template leaves it to the model to open thinking, and one whose not."""
    return request.param


@pytest.fixture(scope="module")
def tokenizer(format, tmp_path_factory):
    return format.tokenizer(tmp_path_factory.mktemp("tokenizer"))


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def said_behind(format, tokenizer, text: str, prefix: str = PREFIX, **options):
    """What becomes of a text of which the model is not asked the first tokens."""
    unheard = ids(tokenizer, ".") * len(ids(tokenizer, prefix))
    script = [*unheard, *ids(tokenizer, text)]
    prompt = encode_chat(tokenizer, QUESTION)
    given = {**format.markers, **options}
    return say(tokenizer, prompt, script, reply_prefix=prefix, **given)


@pytest.mark.parametrize("budget", [None, 40])
def test_a_reply_begins_with_it_as_if_the_model_had_written_it(
    format, tokenizer, budget
):
    said = said_behind(
        format, tokenizer, format.text(format.says), thinking_budget=budget
    )
    assert said.text == PREFIX + format.text(format.says)
    assert said.forced == frozenset()
    thinking, answer = said.last.reply.split()
    assert answer.strip().removeprefix(PREFIX).strip() == ANSWER
    # Behind an opened block it is thought; before one the model opens, it is not.
    assert thinking.startswith(PREFIX) == format.is_opened
    own = len(ids(tokenizer, PREFIX)) if format.is_opened else 0
    assert said.last.thinking_tokens == format.tokens + own
    assert said.last.closed_by == "model"
    batch = said.batch
    assert (batch.text, batch.thinking_tokens) == (said.text, said.last.thinking_tokens)
    assert tag_of(said.text, format.start) == PREFIX


def test_a_budget_counts_it_and_closes_behind_it(format, tokenizer):
    said = said_behind(format, tokenizer, "." * 40, prefix="I think", thinking_budget=0)
    assert said.text.startswith("I think")
    closed = "budget" if format.is_opened else None
    assert said.last.closed_by == closed
    if format.is_opened:
        assert said.last.thinking_tokens == len(ids(tokenizer, "I think"))


def test_it_may_open_thinking_itself(tmp_path):
    tokenizer = M1.tokenizer(tmp_path)
    opening = f"{M1.start}\n"
    rest = M1.text(M1.says).removeprefix(opening)
    said = said_behind(M1, tokenizer, rest, prefix=opening, thinking_budget=40)
    assert said.text == M1.text(M1.says)
    assert said.last.reply.split()[1].strip() == ANSWER
    assert said.last.closed_by == "model"


def test_what_would_end_the_reply_is_refused(format, tokenizer):
    with pytest.raises(ValueError, match="would end the reply"):
        said_behind(format, tokenizer, "", prefix=f"So.{format.eos}")


def test_without_it_nothing_changes_and_draws_go_on_behind_it(loaded):
    prompt = encode_chat(loaded[1], QUESTION)
    options = {"predictor": False, "max_tokens": 30, "temp": 1.0, "seed": 5}
    plain = generate(*loaded[:2], prompt, **options)
    assert generate(*loaded[:2], prompt, reply_prefix=None, **options) == plain
    assert generate(*loaded[:2], prompt, reply_prefix="", **options) == plain
    begun = generate(*loaded[:2], prompt, reply_prefix="So 5.", **options)
    assert begun.startswith("So 5.") and begun != plain
    (batch,) = batch_generate(
        *loaded[:2], [prompt], reply_prefix="So 5.", **options
    ).texts
    assert batch == begun
    # A reply's own beginning, given in advance, leaves it as it is.
    tokens = ids(loaded[1], plain)[:4]
    again = generate(
        *loaded[:2], prompt, reply_prefix=loaded[1].decode(tokens), **options
    )
    assert again == plain


def test_rivals_begin_with_it_as_well(loaded):
    options = {"predictor": False, "max_tokens": 30, "reply_prefix": "So 5."}
    (reply,) = batch_generate(
        *loaded[:2],
        [encode_chat(loaded[1], QUESTION)],
        make_sampler=Lasting,
        min_thinking_tokens=9,
        **options,
    ).replies
    assert reply.text.startswith("So 5.")
    assert reply.forced_tokens <= reply.text.count("Wait")


@pytest.mark.parametrize(
    "option", [{"json_schema": "{}"}, {"sampler": lambda x: mx.argmax(x, axis=-1)}]
)
def test_what_cannot_go_with_it_is_named(loaded, option):
    pytest.importorskip("llguidance")
    with pytest.raises(ValueError, match="reply_prefix cannot be combined"):
        list(
            stream_generate(
                *loaded[:2], [5, 6], predictor=False, reply_prefix="So", **option
            )
        )


@pytest.mark.parametrize(
    ("reply", "tag"),
    [
        ("[Easy] It is 5.", "[Easy]"),
        ("<think>\n[Hard]\nLet me see", "[Hard]"),
        ("\n [Hard]<think>Let", "[Hard]"),
        ("It is [Easy].", None),
        ("[Easier] It", None),
        ("", None),
    ],
)
def test_a_tag_counts_at_the_very_beginning_alone(reply, tag):
    assert tag_of(reply, "<think>") == tag


def test_a_bracket_that_is_no_tag_ends_what_may_open_thinking(tmp_path):
    tokenizer = QWEN3.tokenizer(tmp_path)
    prompt = encode_chat(tokenizer, QUESTION)
    for text, blocks in (("[Hard]<think>", 1), ("[Hardly]<think>", 0)):
        said = say(tokenizer, prompt, ids(tokenizer, f"{text}So it is.</think>Five."))
        assert (said.last.closed_by == "model") == bool(blocks)


def test_every_turn_of_a_chat_begins_with_it(loaded):
    options = {"reply_prefix": "So 5.", "max_tokens": 60, "answer_anyway": True}
    chat = Conversation(*loaded[:2], False, **options)
    for turn in (1, 2):
        *_, last = chat.ask(QUESTION, 12)
        assert last.reply.text.startswith("So 5.")
        assert len(chat.turns) == turn
    assert chat.options["reply_prefix"] == "So 5."
