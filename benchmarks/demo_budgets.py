"""What the built-in model answers at every budget, however small.

Replies at temperature 1 to its first problems, at budgets from 0 up, in both modes, and
from a server that is asked for the efforts that mean next to no thinking. A row tells
how many are right, what was used, and what must not be: a second closing marker, a long
answer, more tokens than the budget, its tolerance and a short answer.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection

import click

from mlx_budget import batch_generate, demo, load
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import ABOUT, AT_MOST

BUDGETS = (0, 1, 3, 5, 10, 15, 20, 30, 40, 60, 90, 150)
EFFORTS = ("none", "minimal")
# All tokens of a reply are to be at most this share of its budget and so many more.
SHARE, ANSWER = 1.1, 15
MARKER = "</think>"
READY_SECONDS = 120


@dataclass
class Reply:
    """What came of a problem."""

    answer: str
    thinking_tokens: int
    answer_tokens: int
    tokens: int
    is_right: bool


def row(name: str, budget: int | None, replies: list[Reply]) -> str:
    """A row of the table."""
    count = len(replies)

    def mean(values: Iterator[float]) -> float:
        return sum(values) / count

    most = None if budget is None else SHARE * budget + ANSWER
    over = "-" if most is None else str(sum(r.tokens > most for r in replies))
    return (
        f"| {name} | {'-' if budget is None else budget} "
        f"| {mean(r.is_right for r in replies):.1%} "
        f"| {mean(r.thinking_tokens for r in replies):.1f} "
        f"| {mean(r.answer_tokens for r in replies):.1f} "
        f"| {max(r.tokens for r in replies)} "
        f"| {sum(MARKER in r.answer for r in replies)} | {over} |"
    )


def is_right(answer: str, problem: dict) -> bool:
    """Whether the last number of an answer is the right one."""
    numbers = re.findall(r"-?\d+", answer)
    return bool(numbers) and numbers[-1] == problem["answer"]


def in_a_batch(loaded: tuple, problems: list[dict], budget: int, mode: str) -> str:
    """The row of the replies at a budget."""
    model, tokenizer, predictor = loaded
    replies = batch_generate(
        model,
        tokenizer,
        [encode_chat(tokenizer, p["question"]) for p in problems],
        predictor=predictor,
        thinking_budget=budget,
        budget_mode=mode,
        temp=1.0,
        seed=list(range(len(problems))),
        max_tokens=1024,
        batch_size=64,
    ).replies
    found = [
        Reply(
            reply.answer,
            reply.thinking_tokens,
            reply.answer_tokens + reply.after_close_tokens,
            len(reply.tokens),
            is_right(reply.answer, problem),
        )
        for reply, problem in zip(replies, problems, strict=True)
    ]
    return row(mode, budget, found)


@contextmanager
def serving() -> Iterator[int]:
    """A server of the built-in model, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_budget", "serve", "--model", "demo", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = None
        until = time.monotonic() + READY_SECONDS
        while port is None and time.monotonic() < until:
            assert process.stderr is not None
            line = process.stderr.readline()
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
        if port is None:
            raise ValueError("the server did not start.")
        yield port
    finally:
        process.terminate()
        process.wait()


def from_the_server(port: int, problems: list[dict], effort: str) -> str:
    """The row of a server's replies at an effort."""
    found = []
    for seed, problem in enumerate(problems):
        connection = HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
        body = {
            "messages": [{"role": "user", "content": problem["question"]}],
            "reasoning_effort": effort,
            "temperature": 1.0,
            "seed": seed,
            "max_tokens": 1024,
        }
        header = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), header)
        said = json.loads(connection.getresponse().read())
        usage, text = said["usage"], said["choices"][0]["message"]["content"] or ""
        thinking = usage["completion_tokens_details"]["reasoning_tokens"]
        tokens = usage["completion_tokens"]
        found.append(
            Reply(text, thinking, tokens - thinking, tokens, is_right(text, problem))
        )
    return row(f"server, {effort}", None, found)


@click.command(help=__doc__)
@click.option("--count", default=200, show_default=True, help="Problems.")
@click.option("--server-count", default=50, show_default=True, help="Of the server.")
def main(count: int, server_count: int) -> None:
    lines = demo.PROBLEMS_FILE.read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines][:count]
    loaded = load("demo")
    print("| | budget | right | thinking | answer | most | markers | over |")
    print("|---|---|---|---|---|---|---|---|")
    for mode in (AT_MOST, ABOUT):
        for budget in BUDGETS:
            print(in_a_batch(loaded, problems, budget, mode), flush=True)
    with serving() as port:
        for effort in EFFORTS:
            found = from_the_server(port, problems[:server_count], effort)
            print(found, flush=True)


if __name__ == "__main__":
    main()
