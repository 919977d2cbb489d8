"""The built-in demo model: what ships, that it reasons, and that a budget steers it."""

import functools
import io
import json
import os
import random
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mlx_budget import batch_generate, demo, load
from mlx_budget.cli import cli
from mlx_budget.engine.prompts import encode_chat
from recipes.demo.chat import (
    make_chat,
    write_prompt,
    write_reply,
)
from recipes.demo.exchanges import OTHER_ANSWER, about_sum, answer_to
from recipes.demo.make import draw_problems, write_problems
from recipes.demo.others import SYSTEM_PROMPTS, prompts
from recipes.demo.problems import FEW_OPERANDS, is_held_out, make_problem
from recipes.demo.reasoning import FINAL, HABITS
from recipes.demo.sequences import MESSAGES

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


def test_a_final_line_that_guidance_opens_is_a_whole_one(model):
    budgets = range(1, 25)
    prompts = [encode_chat(model[1], p.question) for p in draw_problems()[:3]]
    replies = batch_generate(
        *model[:2],
        prompts * len(budgets),
        predictor=model[2],
        thinking_budget=[budget for budget in budgets for _ in prompts],
        max_tokens=400,
    ).replies
    opened = [
        (reply.closed_by, line)
        for reply in replies
        for line in reply.thinking.splitlines()
        if line.startswith(FINAL[0])
    ]
    assert len(opened) > len(budgets)
    for closed_by, line in opened:
        assert line == FINAL or closed_by == "budget" and FINAL.startswith(line)


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
