"""Prompts are measured before they are tokenised whole."""

import json
import random
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from mlx_lm.tokenizer_utils import load as load_tokenizer

from chats import chat, read
from conversions import REFERENCE
from mlx_budget import estimate, generate, make_budget_sampler, stream_batch_generate
from mlx_budget.cli import cli
from mlx_budget.engine.context import UNKNOWN_LENGTH, check_length, context_length
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.prompts import encode_chat, encode_prompt
from mlx_budget.train.records import SkippedRecords
from mlx_budget.train.traces import write_traces

# More than the 2,048 tokens of the model, and far more than it takes to see that.
LONG = "What is 14 + 7? " * 300_000
HALF = "What is 1\ud83d + 7?"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(REFERENCE)


class Counting:
    """A tokenizer that counts the characters it is given: a token for each three."""

    def __init__(self, longest: int = 128):
        self.seen = 0
        self._longest = longest

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, " " * self._longest: 1}

    def encode(self, text: str, **_) -> list[int]:
        self.seen += len(text)
        return [0] * -(-len(text) // 3)


@pytest.mark.parametrize(
    ("settings", "own", "expected"),
    [
        ({"max_position_embeddings": 4096}, 10**30, 4096),
        ({"max_position_embeddings": 40960}, 131072, 131072),
        ({"max_position_embeddings": 131072}, 16384, 131072),
        ({"n_positions": 1024}, None, 1024),
        ({}, 2048, 2048),
        ({"max_position_embeddings": None}, 10**30, UNKNOWN_LENGTH),
        ({"text_config": {"max_position_embeddings": 8192}}, None, 8192),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            None,
            131072,
        ),
        ({"max_position_embeddings": 64, "rope_scaling": {"factor": "x"}}, None, 64),
    ],
)
def test_the_length_is_the_largest_that_is_named(settings, own, expected):
    model = SimpleNamespace(args=SimpleNamespace(**settings))
    assert context_length(model, SimpleNamespace(model_max_length=own)) == expected
    assert context_length(object(), object()) == UNKNOWN_LENGTH
    # With a limited KV cache nothing that is seen is far away.
    limited = context_length(model, SimpleNamespace(), max_kv_size=512)
    assert limited == UNKNOWN_LENGTH


def test_no_more_is_tokenised_than_it_takes_to_refuse():
    tokenizer = Counting()
    with pytest.raises(ValueError) as e:
        check_length(tokenizer, ["x" * 30_000_000, "y" * 20_000_000], 100_000)
    assert str(e.value) == (
        "The prompt is too long: it has 50,000,000 characters, and the model reads at "
        "most 100,000 tokens. Shorten it."
    )
    assert tokenizer.seen < 6 * 100_000
    # Of many short texts together, and of what is surely too long, nothing is.
    tokenizer = Counting(longest=3)
    with pytest.raises(ValueError, match="it has 400,001 characters"):
        check_length(tokenizer, ["x"] * 400_001, 100_000)
    assert tokenizer.seen == 0
    tokenizer = Counting()
    with pytest.raises(ValueError, match="it has 400,001 characters"):
        check_length(tokenizer, ["x"] * 400_001, 100_000)
    assert tokenizer.seen == 100_001


def test_what_is_short_enough_is_not_measured():
    tokenizer = Counting()
    check_length(tokenizer, ["x" * 399_999], 100_000)
    check_length(tokenizer, ["x" * 16_000], 1)
    assert tokenizer.seen == 0


def test_a_text_that_fits_is_never_refused(tokenizer):
    rng = random.Random(5)
    words = ["What is ", "14", " + ", "7", "?\n", "\n\n", "     ", "é", "中文", "aaaa"]
    for _ in range(6):
        text = "".join(rng.choices(words, k=rng.randrange(9_000, 14_000)))
        tokens = len(tokenizer.encode(text, add_special_tokens=False))
        check_length(tokenizer, [text], tokens)
        with pytest.raises(ValueError, match="too long"):
            check_length(tokenizer, [text], tokens // 9)


def test_every_way_of_asking_is_measured(loaded, tmp_path):
    model, tokenizer, predictor = loaded
    most = context_length(model, tokenizer)
    assert most == 2048
    message = "The prompt is too long: it has 4,800,000 characters"
    for ask in (
        lambda: encode_chat(tokenizer, LONG, most_tokens=most),
        lambda: encode_prompt(tokenizer, LONG, most),
        lambda: encode_chat(
            tokenizer, LONG, ignore_chat_template=True, most_tokens=most
        ),
        lambda: generate(model, tokenizer, LONG),
        lambda: estimate(model, tokenizer, predictor, LONG),
        lambda: list(stream_batch_generate(model, tokenizer, [LONG])),
        lambda: list(Conversation(model, tokenizer).ask(LONG, None)),
        lambda: write_traces(model, tokenizer, [LONG], tmp_path / "a.jsonl"),
        lambda: make_budget_sampler(
            model, tokenizer, predictor, prompt=LONG, thinking_budget=9
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_a_little_too_long_is_counted(loaded):
    model, tokenizer, _ = loaded
    text = "1 + " * 2048
    tokens = len(encode_prompt(tokenizer, text))
    assert tokens > 2048
    with pytest.raises(ValueError) as e:
        generate(model, tokenizer, text)
    assert str(e.value) == (
        f"The prompt is too long: it has {tokens:,} tokens, and the model reads at "
        "most 2,048. Shorten it."
    )


def test_half_a_character_is_named_wherever_it_is(loaded, tmp_path):
    model, tokenizer, _ = loaded
    message = (
        "The prompt has half of a character in it (the lone surrogate '\\ud83d', "
        "character {}): remove it."
    )
    for ask, place in (
        (lambda: encode_prompt(tokenizer, HALF), 10),
        (lambda: encode_chat(tokenizer, HALF, ignore_chat_template=True), 10),
        (lambda: generate(model, tokenizer, HALF), 10),
        (lambda: encode_chat(tokenizer, HALF), None),
        (lambda: encode_chat(tokenizer, "hi", system_prompt=HALF), None),
        (lambda: write_traces(model, tokenizer, [HALF], tmp_path / "a.jsonl"), None),
    ):
        with pytest.raises(ValueError) as e:
            ask()
        shown = str(e.value)
        assert message.partition("{")[0] in shown
        assert place is None or shown == message.format(place)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def data(tmp_path):
    """Makes a file of one prompt that can be used and one that cannot."""

    def data(prompt: str):
        file = tmp_path / "prompts.jsonl"
        rows = [{"question": text, "answer": 2} for text in ("What is 1 + 1?", prompt)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return data


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [(LONG, "the model reads at most 2,048 tokens"), (HALF, "half of a character")],
)
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("traces", "Prompt 1 (the first is 0) cannot be used: "),
        ("evaluate", ("Problem 1 cannot be asked: ", "prompts.jsonl, line 2 has half")),
        ("estimate", ""),
    ],
)
def test_commands_name_the_prompt_in_one_line_and_leave_nothing(
    converted, data, tmp_path, command, name, prompt, reason
):
    output = ["--output", str(tmp_path / "new" / "out.jsonl")]
    arguments = ["--model", str(converted), "--data", str(data(prompt))]
    arguments += [] if command == "estimate" else output
    result = CliRunner().invoke(cli, [command, *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and reason in line
    names = name if isinstance(name, tuple) else (name,)
    assert any(text in line for text in names)
    assert not (tmp_path / "new").exists()


def test_generate_measures_what_comes_from_standard_input(converted):
    arguments = ["generate", "--model", str(converted), "--prompt", "-"]
    result = CliRunner().invoke(cli, arguments, input=LONG)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "it has 4,800,000 characters" in line


@pytest.mark.parametrize("place", ["prompt", "raw prompt", "reply"])
def test_records_longer_than_the_model_reads_are_skipped(tokenizer, place):
    record = chat("x</think>" + (LONG if place == "reply" else ""))
    if place != "reply":
        record["messages"][0] = {"role": "user", "content": LONG}
        record["raw_prompt"] = place == "raw prompt"
    skipped = SkippedRecords()
    good = chat("x</think>")
    assert len(read(tokenizer, good, record, skipped=skipped, most_tokens=2048)) == 1
    assert skipped.counts == {"longer than what the model reads": 1}
