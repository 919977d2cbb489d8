"""The built-in demo model: what ships, that it reasons, and that a budget steers it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from mlx_budget import batch_generate, demo, load
from mlx_budget.cli import cli
from mlx_budget.engine.prompts import encode_chat
from recipes.demo.chat import make_chat, make_tokenizer, write_prompt, write_reply
from recipes.demo.make import draw_problems, quantise, write_problems
from recipes.demo.pretrain import Pool, Stage, pretrain
from recipes.demo.problems import is_held_out

QUESTION = "What is 7 + 1 + 5 - 9 + 8?"


@pytest.fixture(scope="module")
def model():
    return load("demo")


def run(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


def ask(model, count: int, earlier: int = 0, **options):
    """Replies to the first problems, and how many of them are right.

    Some earlier problems stand before each in the same chat.
    """
    problems = draw_problems()[:count]
    others = draw_problems(count * earlier, seed=3)
    prompts = [
        encode_chat(model[1], make_chat(problem.question, others[i::count]))
        for i, problem in enumerate(problems)
    ]
    options = {"max_tokens": 1024, **options}
    replies = batch_generate(*model[:2], prompts, predictor=model[2], **options).replies
    right = sum(
        reply.text.endswith(f"</think>\n\nThe answer is {problem.answer}.")
        for reply, problem in zip(replies, problems, strict=True)
    )
    return replies, right


def test_model_and_predictor_are_at_most_6_mb():
    files = [f for f in demo.FOLDER.iterdir() if f.is_file()]
    assert {"model.safetensors", "predictor.safetensors"} <= {f.name for f in files}
    assert sum(f.stat().st_size for f in files) <= 6e6


def test_the_problems_are_those_of_the_seed_and_were_never_trained_on(tmp_path):
    write_problems(tmp_path / "problems.jsonl", draw_problems())
    assert (tmp_path / "problems.jsonl").read_bytes() == (
        demo.PROBLEMS_FILE.read_bytes()
    )
    problems = draw_problems()
    assert len({p.chain for p in problems}) == len(problems) == 500
    assert all(is_held_out(p.chain) for p in problems)


def test_it_is_right_most_of_the_time_and_steered_to_less_thinking(model):
    free, right = ask(model, 48)
    assert right >= 0.85 * 48
    mean = sum(r.thinking_tokens for r in free) / 48
    tight, still_right = ask(model, 48, thinking_budget=round(0.45 * mean))
    assert sum(r.thinking_tokens for r in tight) / 48 < 0.55 * mean
    cut, guessed = ask(
        (*model[:2], False), 48, thinking_budget=round(0.45 * mean), hard_stop=1.0
    )
    assert still_right >= guessed + 12


@pytest.mark.parametrize("earlier", [1, 3])
def test_later_questions_of_a_chat_are_answered_and_steered_too(model, earlier):
    _, right = ask(model, 32, earlier)
    assert right >= 0.85 * 32
    steered, still_right = ask(model, 32, earlier, thinking_budget=70)
    assert still_right >= 0.75 * 32
    assert all(r.thinking_tokens <= 1.1 * 70 for r in steered)


def test_commands_without_a_model_use_it_and_say_so():
    result = run("generate", "-p", QUESTION, "--thinking-budget", 60, "--json")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == demo.NOTICE
    reply = json.loads(result.stdout)
    assert reply["answer"] == "The answer is 12."
    assert reply["thinking_tokens"] <= 66
    found = run("estimate", "-p", QUESTION)
    assert found.exit_code == 0
    assert demo.NOTICE in found.stderr


def test_a_model_that_is_named_brings_no_notice():
    result = run("generate", "--model", "demo", "-p", QUESTION)
    assert result.exit_code == 0
    assert demo.NOTICE not in result.stderr


def test_the_first_token_comes_within_ten_seconds():
    """From the command on, in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_budget", "generate", "-p", QUESTION],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout.read(1)
    seconds = time.perf_counter() - start
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert seconds < 10


@pytest.mark.parametrize("earlier", [0, 2])
def test_the_template_writes_what_it_was_trained_on(model, earlier):
    tokenizer = model[1]
    problem, *others = draw_problems(1 + earlier)
    messages = make_chat(problem.question, others)
    assert [m["role"] for m in messages] == ["user", "assistant"] * earlier + ["user"]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert text == write_prompt(messages)
    reply = write_reply("It is.\n", problem)
    messages.append({"role": "assistant", "content": reply.removesuffix("<|im_end|>")})
    history = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "It is." not in history
    assert history.endswith(f"The answer is {problem.answer}.<|im_end|>\n")
    asked_next = make_chat("What is 1 + 1?", [*others, problem])
    assert write_prompt(asked_next).startswith(history)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A folder with a tokenizer and a model of two updates."""
    folder = tmp_path_factory.mktemp("raw") / "model"
    make_tokenizer(folder, texts=200)
    pretrain(folder, folder.parent / "work", Stage(2, 1e-3, seed=0), save_every=1)
    return folder


def test_pretraining_goes_on_where_it_was_stopped(raw, tmp_path):
    folder = tmp_path / "model"
    make_tokenizer(folder, texts=200)

    class Stop(Exception):
        pass

    def stop(step, loss, rate):
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        pretrain(
            folder,
            tmp_path / "work",
            Stage(2, 1e-3, seed=0),
            save_every=1,
            progress=stop,
        )
    seen = []
    pretrain(
        folder,
        tmp_path / "work",
        Stage(2, 1e-3, seed=0),
        save_every=1,
        progress=lambda step, *_: seen.append(step),
    )
    assert seen == [2]
    one, two = (mx.load(str(f / "model.safetensors")) for f in (raw, folder))
    assert all(mx.allclose(one[k], two[k], rtol=1e-4, atol=1e-6) for k in one)


def test_batches_are_the_same_whenever_they_are_asked_for(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    first = Pool(tokenizer, Stage(20, 1e-3, seed=0))
    earlier = [first.batch(step) for step in (0, 9)]
    tokens, wanted = Pool(tokenizer, Stage(20, 1e-3, seed=0)).batch(9)
    assert mx.array_equal(tokens, earlier[1][0])
    assert mx.array_equal(wanted, earlier[1][1])
    row = tokens[0].tolist()
    start = wanted[0].tolist().index(1)
    assert tokenizer.decode(row[:start]).endswith("assistant\n\n")
    assert not mx.array_equal(
        Pool(tokenizer, Stage(20, 1e-3, seed=1)).batch(9)[0], tokens
    )


def test_questions_come_behind_others_of_the_same_chat(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    tokens, wanted = Pool(tokenizer, Stage(20, 1e-3, seed=0, earlier=1.0)).batch(0)
    turn = tokenizer.token_to_id("<|im_start|>")
    for row, mask in zip(tokens.tolist(), wanted.tolist(), strict=True):
        asked = row[: mask.index(1)]
        assert asked.count(turn) in (4, 6, 8)
        question = tokenizer.decode(asked).rpartition("user\n")[2]
        restated = tokenizer.decode(row[mask.index(1) :]).partition("\n")[0]
        digits = re.findall(r"\d", restated)
        assert digits and re.findall(r"\d", question)[: len(digits)] == digits


def test_totals_that_slip_count_less(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    tokens, wanted = Pool(tokenizer, Stage(20, 1e-3, seed=0)).batch(0)
    less = (wanted > 0) & (wanted < 1)
    slipped = [t for t, w in zip(tokens.tolist(), less.tolist(), strict=True) if any(w)]
    assert 0 < len(slipped) < len(tokens)
    for row, marks in zip(tokens.tolist(), less.tolist(), strict=True):
        text = tokenizer.decode([t for t, w in zip(row, marks, strict=True) if w])
        assert text.replace(" ", "").isdigit() or not text


def test_of_closed_thinking_only_the_answer_is_learnt(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, closed=1.0))
    tokens, wanted = pool.batch(0)
    forms = set()
    for row, mask in zip(tokens.tolist(), wanted.tolist(), strict=True):
        learnt = [t for t, w in zip(row, mask, strict=True) if w]
        read = tokenizer.decode(row[: mask.index(1)], skip_special_tokens=False)
        text = tokenizer.decode(learnt, skip_special_tokens=False)
        assert text.startswith("\n\nThe answer is ") and text.endswith("<|im_end|>")
        assert read.endswith("</think>")
        forms.add(read.endswith("**Final Answer**\n</think>"))
    assert forms == {True, False}


def test_quantising_leaves_what_the_model_says(raw, tmp_path):
    quantise(raw, tmp_path / "8")
    ids = mx.array([[5, 6, 7]])
    logits = [mlx_lm.load(str(f))[0](ids) for f in (raw, tmp_path / "8")]
    assert not mx.array_equal(*logits)
    assert mx.abs(logits[0] - logits[1]).max() < 0.05 * mx.abs(logits[0]).max()
