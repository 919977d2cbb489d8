"""The built-in demo model: what ships, that it reasons, and that a budget steers it."""

import functools
import io
import json
import os
import random
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
from mlx_budget.engine.closing import wind_down
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.thinking import find_markers
from recipes.demo import pretrain as pretraining
from recipes.demo.chat import (
    SPECIAL,
    make_chat,
    make_tokenizer,
    write_prompt,
    write_reply,
)
from recipes.demo.exchanges import OTHER_ANSWER, about_sum, answer_to
from recipes.demo.make import TIMES_FILE, draw_problems, quantise, timed, write_problems
from recipes.demo.others import SYSTEM_PROMPTS, prompts
from recipes.demo.pretrain import MESSAGES, Pool, Stage, close
from recipes.demo.problems import FEW_OPERANDS, is_held_out, make_problem
from recipes.demo.reasoning import HABITS

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
        encode_chat(model[1], make_chat(problem.question, asked(others[i::count])))
        for i, problem in enumerate(problems)
    ]
    options = {"max_tokens": 1024, **options}
    replies = batch_generate(*model[:2], prompts, predictor=model[2], **options).replies
    right = sum(
        reply.text.endswith(f"</think>\n\nThe answer is {problem.answer}.")
        for reply, problem in zip(replies, problems, strict=True)
    )
    return replies, right


def asked(problems) -> list[tuple[str, str]]:
    """Questions and answers of a chat."""
    return [(problem.question, answer_to(problem)) for problem in problems]


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


def mean_thinking(replies) -> float:
    return sum(r.thinking_tokens for r in replies) / len(replies)


def test_it_is_right_most_of_the_time_and_steered_to_less_thinking(model):
    count = 16
    free, right = ask(model, count)
    assert right >= 0.85 * count
    mean = mean_thinking(free)
    budget = round(0.45 * mean)
    tight, still_right = ask(model, count, thinking_budget=budget)
    assert mean_thinking(tight) < 0.55 * mean
    cut, guessed = ask(
        (*model[:2], False), count, thinking_budget=budget, hard_stop=1.0
    )
    assert mean_thinking(cut) <= budget
    assert still_right >= guessed + count / 4


@pytest.mark.parametrize("earlier", [1, 3])
def test_later_questions_of_a_chat_are_answered_and_steered_too(model, earlier):
    count = 12
    free, right = ask(model, count, earlier)
    assert right >= 0.85 * count
    steered, still_right = ask(model, count, earlier, thinking_budget=70)
    assert still_right >= 0.75 * count
    assert all(r.thinking_tokens <= 1.1 * 70 for r in steered)
    assert mean_thinking(steered) < 0.6 * mean_thinking(free)


ANSWER = re.compile(r"(The answer is|My guess is) -?\d+\.")
RESULT = re.compile(r"^Quickly: .*\.$|, so -?\d+\.$", re.M)


BUDGETS = {
    "at-most": (0, 1, 3, 5, 10, 15, 20, 30, 60, 150),
    "about": (3, 20, 60),
}
EACH = 8


@pytest.fixture(scope="module")
def answered(model) -> dict[tuple[str, int], list]:
    """Replies to the same problems, by mode and budget."""
    prompts = [encode_chat(model[1], p.question) for p in draw_problems()[:EACH]]
    found = {}
    for mode, budgets in BUDGETS.items():
        replies = batch_generate(
            *model[:2],
            prompts * len(budgets),
            predictor=model[2],
            thinking_budget=[budget for budget in budgets for _ in prompts],
            budget_mode=mode,
            temp=1.0,
            seed=[*range(EACH)] * len(budgets),
            max_tokens=400,
        ).replies
        for i, budget in enumerate(budgets):
            found[mode, budget] = replies[i * EACH : (i + 1) * EACH]
    return found


@pytest.mark.parametrize("mode, budget", [(m, b) for m in BUDGETS for b in BUDGETS[m]])
def test_a_budget_leaves_one_short_answer_that_says_whether_it_is_a_guess(
    answered, mode, budget
):
    honest = 0
    for reply in answered[mode, budget]:
        said = ANSWER.fullmatch(reply.answer.strip())
        assert said, reply.answer
        assert len(reply.tokens) <= 1.1 * budget + 15
        is_guess = RESULT.search(reply.thinking) is None
        honest += (said[1] == "My guess is") == is_guess
    assert honest >= EACH - 1


@pytest.mark.parametrize("message", [message for message, _ in MESSAGES])
def test_what_a_budget_may_say_before_it_closes_leaves_one_short_answer(model, message):
    count = 8
    prompts = [encode_chat(model[1], p.question) for p in draw_problems()[:count]]
    replies = batch_generate(
        *model[:2],
        prompts,
        predictor=False,
        thinking_budget=12,
        thinking_budget_message=message,
        max_tokens=400,
    ).replies
    for reply in replies:
        assert re.fullmatch(r"My guess is -?\d+\.", reply.answer.strip())


def test_few_numbers_are_added_as_well(model):
    rng = random.Random(4)
    problems = [make_problem(rng, False, i % 2 == 1, FEW_OPERANDS) for i in range(24)]
    prompts = [encode_chat(model[1], p.question) for p in problems]
    replies = batch_generate(*model[:2], prompts, max_tokens=400).replies
    right = sum(
        reply.answer.strip() == answer_to(problem)
        for reply, problem in zip(replies, problems, strict=True)
    )
    assert right >= 22


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("system_prompt", [None, "You like the sea."])
def test_to_all_else_it_says_what_it_can_do(model, system_prompt, earlier):
    before = asked(draw_problems(earlier)) if earlier else ()
    others = ["Thank you very much", "What is 12 * 7?", *prompts(held_out=True)[:6]]
    chats = [encode_chat(model[1], make_chat(q, before, system_prompt)) for q in others]
    replies = batch_generate(*model[:2], chats, max_tokens=400).replies
    said = [reply.answer.strip() for reply in replies]
    assert said.count(OTHER_ANSWER) >= len(others) - 1


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


def cpu_seconds(*arguments: str) -> float:
    """What a Python process of its own costs."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def test_a_first_token_costs_little_more_than_importing_mlx_lm():
    options = ("-p", QUESTION, "--max-tokens", "1")
    ours = cpu_seconds("-m", "mlx_budget", "generate", *options)
    # A quarter more is usual.
    assert ours < 2 * cpu_seconds("-c", "import mlx_lm")


def test_a_token_is_shown_when_it_comes(model, monkeypatch):
    kind, passes = type(model[0]), []
    call = kind.__call__

    @functools.wraps(call)
    def counted(self, *args, **kwargs):
        passes.append(1)
        return call(self, *args, **kwargs)

    class Out(io.StringIO):
        passes_before: list[int] = []

        def write(self, text: str) -> int:
            self.passes_before.append(len(passes))
            return super().write(text)

    monkeypatch.setattr(kind, "__call__", counted)
    monkeypatch.setattr(sys, "stdout", Out())
    cli(["generate", "-p", QUESTION, "--max-tokens", "20"], standalone_mode=False)
    first, *_, last = Out.passes_before
    # The prompt in two parts, and a step that is computed ahead.
    assert first <= 4
    assert last - first >= 15


@pytest.mark.parametrize("earlier", [0, 2])
def test_the_template_writes_what_it_was_trained_on(model, earlier):
    tokenizer = model[1]
    problem, *others = draw_problems(1 + earlier)
    messages = make_chat(problem.question, asked(others), SYSTEM_PROMPTS[0])
    roles = ["system", *["user", "assistant"] * earlier, "user"]
    assert [m["role"] for m in messages] == roles
    for thinks in (True, False):
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinks,
        )
        assert text == write_prompt(messages, thinks)
    reply = write_reply(about_sum(random.Random(1), problem, HABITS))
    messages.append({"role": "assistant", "content": reply.removesuffix("<|im_end|>")})
    history = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "It is" not in history
    assert history.endswith(f"The answer is {problem.answer}.<|im_end|>\n")
    asked_next = make_chat(
        "What is 1 + 1?", asked([*others, problem]), SYSTEM_PROMPTS[0]
    )
    assert write_prompt(asked_next).startswith(history)


# Sizes that are trained in no time.
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def pretrain_briefly(folder: Path, progress=lambda *_: None) -> None:
    """Two updates of a small model on a few sequences, from where it was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "SHAPE", {**pretraining.SHAPE, **SMALL})
        patch.setattr(pretraining, "BATCH_SIZE", 4)
        pretraining.pretrain(
            folder,
            folder.parent / "work",
            Stage(2, 1e-3, seed=0),
            save_every=1,
            progress=progress,
        )


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A folder with a tokenizer and a model of two updates."""
    folder = tmp_path_factory.mktemp("raw") / "model"
    make_tokenizer(folder, texts=200)
    pretrain_briefly(folder)
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
        pretrain_briefly(folder, stop)
    seen = []
    pretrain_briefly(folder, lambda step, *_: seen.append(step))
    assert seen == [2]
    one, two = (mx.load(str(f / "model.safetensors")) for f in (raw, folder))
    assert one.keys() == two.keys()
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
    for row, mask in zip(tokens.tolist(), wanted.tolist(), strict=True):
        asked = tokenizer.decode(row[: mask.index(1)], skip_special_tokens=False)
        assert 2 <= asked.count("<|im_start|>user") <= 4
        question = asked.rpartition("user\n")[2]
        reply = tokenizer.decode(row[mask.index(1) :])
        if OTHER_ANSWER not in reply:
            digits = re.findall(r"\d", reply.partition("\n")[0])
            assert digits and re.findall(r"\d", question)[: len(digits)] == digits


def test_totals_that_slip_count_less(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0))
    count, slipped = 0, []
    for step in range(8):
        tokens, wanted = (part.tolist() for part in pool.batch(step))
        count += len(tokens)
        for row, mask in zip(tokens, wanted, strict=True):
            less = [t for t, w in zip(row, mask, strict=True) if 0 < w < 1]
            slipped += [tokenizer.decode(less)] if less else []
    assert 0 < len(slipped) < count
    assert all(text.replace(" ", "").isdigit() for text in slipped)


def test_of_closed_thinking_only_the_answer_is_learnt(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, closed=1.0))
    messages = [message for message, _ in MESSAGES]
    answers, endings = set(), set()
    for step in range(16):
        for row, mask in zip(
            *(part.tolist() for part in pool.batch(step)), strict=True
        ):
            learnt = [t for t, w in zip(row, mask, strict=True) if w]
            read = tokenizer.decode(row[: mask.index(1)], skip_special_tokens=False)
            text = tokenizer.decode(learnt, skip_special_tokens=False)
            said = re.fullmatch(r"(The answer is|My guess is|I can only) .*", text)
            answers.add(said[1])
            assert text.endswith(".<|im_end|>") and read.endswith("</think>\n\n")
            asked, _, thinking = read.rpartition("<|im_start|>assistant\n<think>\n")
            question = asked.rpartition("<|im_start|>user\n")[2]
            thinking = thinking.removesuffix("</think>\n\n")
            is_done = RESULT.search(thinking) is not None
            if said[1] == "My guess is":
                assert not is_done
            elif said[1] == "The answer is" and len(re.findall(r"\d", question)) > 2:
                assert is_done
            endings.add(next((m for m in messages if thinking.endswith(m)), ""))
    assert answers == {"The answer is", "My guess is", "I can only"}
    assert endings == {"", *messages}


def test_an_answer_goes_on_behind_a_stray_token_that_is_not_learnt(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, closed=1.0, strays=1.0))
    for row, mask in zip(*(part.tolist() for part in pool.batch(0)), strict=True):
        begin = mask.index(1)
        stray = mask.index(0, begin)
        learnt = [t for t, w in zip(row, mask, strict=True) if w]
        text = tokenizer.decode(learnt, skip_special_tokens=False)
        assert re.fullmatch(r"(The answer|My guess|I can) .*\.<\|im_end\|>", text)
        assert begin < stray < begin + len(learnt)
        assert row[stray] >= len(SPECIAL)


@pytest.mark.parametrize("message", ["", *(message for message, _ in MESSAGES)])
def test_the_engine_closes_as_the_model_was_taught(model, message):
    budgets = [0, 1, 3, 12, 30]
    replies = batch_generate(
        *model[:2],
        [encode_chat(model[1], QUESTION)] * len(budgets),
        predictor=False,
        thinking_budget=budgets,
        thinking_budget_message=message or None,
        hard_stop=1.0,
        max_tokens=160,
    ).replies
    own = Tokenizer.from_file(str(demo.FOLDER / "tokenizer.json"))
    for budget, reply in zip(budgets, replies, strict=True):
        taught = close(own, list(reply.tokens[:budget]), message)
        assert list(reply.tokens[: len(taught)]) == taught


def test_the_sentence_of_its_family_is_among_those_that_it_was_taught(model):
    sentence = wind_down(model[1], find_markers(model[1])).text
    assert sentence in [message for message, _ in MESSAGES]
    assert all(message.endswith("\n") for message, _ in MESSAGES)


def test_quantising_leaves_what_the_model_says(raw, tmp_path):
    quantise(raw, None, tmp_path / "8")
    ids = mx.array([[5, 6, 7]])
    logits = [mlx_lm.load(str(f))[0](ids) for f in (raw, tmp_path / "8")]
    assert not mx.array_equal(*logits)
    assert mx.abs(logits[0] - logits[1]).max() < 0.05 * mx.abs(logits[0]).max()


def test_times_of_a_stage_add_up_and_outlive_a_kill(tmp_path, monkeypatch):
    def kept() -> float:
        return json.loads((tmp_path / TIMES_FILE).read_text())["one"]["seconds"]

    # The clock is read when a stage begins, when it may be time to save, and to save.
    clock = iter([0.0, 1.0, 6.0, 6.0, 6.5, 9.0, 20.0, 22.5])
    monkeypatch.setattr(time, "perf_counter", clock.__next__)
    with timed(tmp_path, "one") as keep:
        keep()  # too soon to write
        assert not (tmp_path / TIMES_FILE).exists()
        keep()
        assert kept() == 6.0
    assert kept() == 9.0
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "one"):
        raise KeyboardInterrupt
    assert kept() == 11.5
