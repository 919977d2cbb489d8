"""Chat records become tokens, positions and lengths that can be counted by hand.

In the fixture's tokenizer each of the letters x, y, z and w is a token, and the chat
template ends with the opening marker.
"""

import json

import mlx_lm
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from chats import USER, chat, read
from conversions import REFERENCE
from mlx_budget import make_budget_sampler
from mlx_budget.engine.prompts import encode_chat
from scripted import ScriptedModel, indifferent_predictor

NEWLINE, START, END, EOS = 201, 423, 424, 2
X, Y, Z, W = 90, 91, 92, 89
PLAIN = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
OPENING = PLAIN + "<think>\n\n"  # Jinja drops the last newline


@pytest.fixture
def tokenizer():
    return load_tokenizer(REFERENCE)


@pytest.fixture
def plain(tokenizer):
    """A tokenizer whose template leaves it to the model to open the block."""
    tokenizer._tokenizer.chat_template = PLAIN
    return tokenizer


def only(tokenizer, record, **options):
    (found,) = read(tokenizer, record, **options)
    return found


def parts(tokenizer, record, **options) -> tuple[list[int], list[int], list[int]]:
    """Tokens, positions and lengths behind the prompt."""
    found = only(tokenizer, record, **options)
    prompt = encode_chat(tokenizer, [USER])
    assert found.tokens[: len(prompt)].tolist() == prompt
    tokens = found.tokens[len(prompt) :].tolist()
    return tokens, (found.positions - len(prompt)).tolist(), found.lengths.tolist()


def text(record, tokenizer) -> str:
    return tokenizer.decode(record.tokens.tolist())


def test_numbers_of_numpy_are_numbers(tokenizer):
    record = chat("<think>x\ny\nz</think>\nw")
    options = {"positions": 2, "max_length": 60, "limit": 1, "seed": 3}
    want = only(tokenizer, record, **options)
    options = {name: np.int64(value) for name, value in options.items()}
    found = only(tokenizer, record, **options)
    assert found.positions.tolist() == want.positions.tolist()


def test_lengths_count_the_candidate_and_the_closing_marker(tokenizer):
    record = chat("<think>x\ny\nz</think>\nw")
    assert parts(tokenizer, record) == (
        [X, NEWLINE, Y, NEWLINE, Z],
        [0, 2, 4],
        [6, 4, 2],
    )
    tokens = [X, NEWLINE, Y, NEWLINE, Z, END]
    everywhere = tokens, [0, 1, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1]
    assert parts(tokenizer, record, positions="all") == everywhere


def test_the_closing_marker_is_a_position_after_a_newline(tokenizer):
    assert parts(tokenizer, chat("<think>x\n</think>w")) == (
        [X, NEWLINE, END],
        [0, 2],
        [3, 1],
    )


def test_an_empty_block_is_its_closing_marker(tokenizer):
    assert parts(tokenizer, chat("<think></think>w")) == ([END], [0], [1])


def test_a_record_says_where_it_is_from_and_where_thinking_begins(tokenizer):
    found = only(tokenizer, chat("<think>x</think>w"))
    assert found.name == "record 1"
    assert found.start == len(encode_chat(tokenizer, [USER])) == found.positions[0]
    assert json.loads(found.group) == [USER]
    kinds = {a.dtype for a in (found.tokens, found.positions, found.lengths)}
    assert kinds == {np.dtype(np.int32)}


def test_a_group_is_a_prompt_however_it_is_written(tokenizer):
    turned = {"content": "hi", "role": "user", "name": None}
    same = {"messages": [turned, {"role": "assistant", "content": "y</think>"}]}
    other = {"messages": [{**USER, "content": "ho"}, same["messages"][1]]}
    a, b, c = read(tokenizer, chat("x</think>"), same, other)
    assert a.group == b.group != c.group


def test_the_model_may_open_the_block(plain):
    assert parts(plain, chat("<think>\nx\n</think>y")) == (
        [START, NEWLINE, X, NEWLINE, END],
        [1, 2, 4],
        [4, 3, 1],
    )


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        ("<think>\nx</think>", [X]),
        ("\n <think>\nx</think>", [X]),
        ("<think>\n\nx</think>", [NEWLINE, X]),
        ("<think>x</think>", [X]),
        ("<think> \nx</think>", [223, NEWLINE, X]),
        ("x</think>", [X]),
        ("\nx</think>", [NEWLINE, X]),
        ("<think>\n</think>", []),
    ],
)
def test_a_block_is_not_opened_twice(tokenizer, content, reply):
    tokenizer._tokenizer.chat_template = OPENING
    assert encode_chat(tokenizer, [USER])[-2:] == [START, NEWLINE]
    tokens, _, lengths = parts(tokenizer, chat(content), positions="all")
    assert tokens == [*reply, END]
    assert lengths[0] == len(reply) + 1


def test_replies_may_begin_by_thinking(plain):
    markers = {"thinking_start": "", "thinking_end": "</think>"}
    assert parts(plain, chat("x\ny</think>z"), **markers) == (
        [X, NEWLINE, Y],
        [0, 2],
        [4, 2],
    )


def test_markers_may_be_texts(plain):
    markers = {"thinking_start": "<a>", "thinking_end": "</a>"}
    tokens, positions, lengths = parts(plain, chat("<a>x\ny</a>z"), **markers)
    assert plain.decode(tokens) == "<a>x\ny"
    assert (positions, lengths) == ([3, 5], [4, 2])


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_beside_the_content_is_the_same(plain, key):
    apart = chat("\nz")
    apart["messages"][1][key] = "\nx\n"
    expected = parts(plain, chat("<think>\nx\n</think>\nz"))
    assert parts(plain, apart) == expected
    apart["messages"][1]["content"] = None
    assert parts(plain, apart) == expected


def test_a_system_prompt_is_for_records_without_one(tokenizer):
    own = chat("x</think>")
    own["messages"].insert(0, {"role": "system", "content": "own"})
    without, with_own = read(
        tokenizer, chat("x</think>"), own, system_prompt="Be terse."
    )
    assert text(without, tokenizer).startswith(
        "<|im_start|>system\nBe terse.<|im_end|>"
    )
    assert text(with_own, tokenizer).startswith("<|im_start|>system\nown<|im_end|>")


def test_the_template_takes_its_arguments(tokenizer):
    tokenizer._tokenizer.chat_template = "{{ word }}" + OPENING
    found = only(tokenizer, chat("x</think>"), chat_template_config={"word": "Okay"})
    assert text(found, tokenizer) == "Okayuser:hi\n<think>\nx"


def test_a_raw_prompt_has_no_template(tokenizer):
    record = chat("<think>x</think>", raw_prompt=True)
    found = only(tokenizer, record, system_prompt="none", positions="all")
    assert text(found, tokenizer) == "hi<think>x</think>"
    assert found.lengths.tolist() == [2, 1]
    record["messages"][0] = {"role": "user", "content": "w<think>"}
    assert only(tokenizer, record).tokens.tolist() == [W, START, X]


def test_the_tokens_of_a_reply_are_used_as_they_were(tokenizer):
    assert tokenizer.encode("First\n") == [421, NEWLINE]
    letters = [tokenizer.encode(c)[0] for c in "First"]
    tokens = [*letters, NEWLINE, END, X, EOS]
    for content in ("First\n</think>x", "<think>First\n</think>x"):
        assert parts(tokenizer, chat(content, tokens=tokens)) == (
            [*letters, NEWLINE, END],
            [0, 6],
            [7, 1],
        )


@pytest.mark.parametrize(
    "tokens", [[421, END], [], ["a"], [-1], [2**40], [True], "a", 5, None]
)
def test_tokens_of_something_else_are_not_used(tokenizer, tokens):
    record = chat("First\n</think>x", tokens=tokens)
    assert parts(tokenizer, record) == ([421, NEWLINE, END], [0, 2], [3, 1])


@pytest.mark.parametrize("special", ["", "<|endoftext|>"])
def test_the_content_may_leave_special_tokens_out(tokenizer, special):
    letters = [tokenizer.encode(c)[0] for c in "First"]
    record = chat(f"{special}First</think>x", tokens=[0, *letters, END, X, EOS])
    tokens, _, lengths = parts(tokenizer, record, positions="all")
    assert tokens == [0, *letters, END]
    assert lengths == [7, 6, 5, 4, 3, 2, 1]


def test_targets_are_those_of_the_whole_reply_when_it_is_cut(tokenizer):
    prompt = len(encode_chat(tokenizer, [USER]))
    record = chat("x\ny\nz\n</think>")

    def cut(length: int, **options):
        return parts(tokenizer, record, max_length=prompt + length, **options)

    assert cut(7) == (
        [X, NEWLINE, Y, NEWLINE, Z, NEWLINE, END],
        [0, 2, 4, 6],
        [7, 5, 3, 1],
    )
    assert cut(4) == ([X, NEWLINE, Y], [0, 2], [7, 5])
    assert cut(2) == cut(1) == ([X], [0], [7])
    assert cut(2, positions="all") == ([X, NEWLINE], [0, 1], [7, 6])


def test_drawn_positions_depend_on_seed_and_place_alone(tokenizer):
    record = chat("xyz\n" * 20 + "</think>")
    first, second = read(tokenizer, record, record, positions=5)
    (again,) = read(tokenizer, chat("bad"), record, positions=5)
    (other,) = read(tokenizer, record, positions=5, seed=1)
    assert len(second.positions) == 5
    assert (np.diff(second.positions) > 0).all()
    assert first.start == second.start <= second.positions[0]
    end = second.start + 80
    assert (second.lengths == end - second.positions + 1).all()
    assert again.positions.tolist() == second.positions.tolist()
    # Chance makes two draws of 5 in 81 equal with odds of 4e-8.
    assert first.positions.tolist() != second.positions.tolist()
    assert first.positions.tolist() != other.positions.tolist()


def test_a_concise_copy_thinks_its_answer(plain):
    record = chat("<think>\nx\ny\n</think>\n\nz w\n")
    original, copy = read(plain, record, augment="concise", positions="all")
    assert text(original, plain).endswith("<think>\nx\ny\n</think>")
    assert text(copy, plain).endswith("hi\n<think>\nz w\n</think>")
    assert copy.lengths.tolist() == list(range(len(copy.lengths), 0, -1))
    assert copy.name == "record 1 (concise)"
    assert (copy.group, copy.start) == (original.group, original.start)


@pytest.mark.parametrize(
    ("content", "tokens", "reply"),
    [
        ("x\n</think>\n\nz", [], "z\n</think>"),
        ("<think>x</think>z", [], "z</think>"),
        ("\n\n</think>z", [], "\n\nz</think>"),
        ("x</think>z", [X, END, Z, EOS], "z</think>"),
        ("x</think>z</think>w", [], "z</think>"),
    ],
)
def test_a_concise_copy_keeps_what_was_around_thinking(
    tokenizer, content, tokens, reply
):
    record = chat(content, tokens=tokens)
    _, copy = read(tokenizer, record, augment="concise", positions="all")
    assert text(copy, tokenizer).endswith(f"<think>{reply}")


def test_the_limit_is_of_usable_records(tokenizer):
    data = [chat("bad"), *[chat("x</think>y")] * 5]
    names = [r.name for r in read(tokenizer, *data, limit=2, augment="concise")]
    twice = ["record 2", "record 2 (concise)", "record 3", "record 3 (concise)"]
    assert names == twice
    assert len(read(tokenizer, *data, limit=9)) == 5


def test_golden_guided_steps_are_the_newline_positions(tokenizer, golden):
    for case in golden.cases:
        tokens = case["guided_tokens"]
        if END not in tokens:  # cut off, or ended without it
            tokens = [*(t for t in tokens if t != EOS), END]
        record = chat(tokenizer.decode(tokens).split("<|im_end|>")[0], tokens=tokens)
        found = only(tokenizer, record)
        steps = (found.positions - found.start).tolist()
        assert [n for n in steps if n < len(case["guided_tokens"])] == (
            case["guided_steps"]
        )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("opening", [[], [W, START], [NEWLINE, START]])
def test_newline_positions_are_where_the_sampler_guides(tokenizer, seed, opening):
    rng = np.random.default_rng(seed)
    thinking = rng.choice([X, Y, NEWLINE, START, 393, 421, 421], 60).tolist()
    # An opening marker that repeats the prompt's would be dropped.
    reply = [*opening, X, *thinking, END, NEWLINE, START, X, NEWLINE, X, END]
    prompt = "w" if opening else "w<think>"
    record = chat(tokenizer.decode(reply), tokens=reply, raw_prompt=True)
    record["messages"][0] = {"role": "user", "content": prompt}
    found = only(tokenizer, record)

    ids = tokenizer.encode(prompt)
    model = ScriptedModel(reply, len(ids))
    sampler = make_budget_sampler(
        model,
        tokenizer,
        indifferent_predictor(),
        prompt=ids,
        thinking_budget=999,
        hard_stop=None,
    )
    said = mlx_lm.stream_generate(
        model, tokenizer, ids, sampler=sampler, max_tokens=len(reply)
    )
    assert [r.token for r in said] == reply
    sampler.close()
    # The loop runs a step past the last token.
    guided = [len(ids) + step for step in sampler.guided_steps if step < len(reply)]
    assert found.positions.tolist() == guided
