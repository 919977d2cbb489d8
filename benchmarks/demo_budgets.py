"""What the built-in model answers at every budget, however small.

Replies to its first problems, at budgets from 0 up, in both modes, and from a server
that is asked for the efforts that mean next to no thinking. A row tells how many are
right, how many say that they guess, what was used, and what must not be: an answer
other than the one line, a second closing marker, more tokens than the budget, its
tolerance and a short answer.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TextIO

import click

from mlx_budget import batch_generate, demo, load
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import ABOUT, AT_MOST

BUDGETS = (0, 1, 3, 5, 10, 15, 20, 30, 40, 60, 90, 150)
EFFORTS = ("none", "minimal")
# All tokens of a reply are to be at most this share of its budget and so many more.
SHARE, ANSWER = 1.1, 15
MARKER, GUESS = "</think>", "My guess is"
LINE = re.compile(rf"(The answer is|{GUESS}) -?\d+\.")
READY_SECONDS = 120


@dataclass
class Reply:
    """What came of a problem.

    Attributes:
        budget: Tokens that its thinking might have.
        answer: All text behind the first closing marker.
        thinking_tokens: Tokens of thinking.
        tokens: All tokens, those that were put in with them.
        is_right: Whether the answer is right.
    """

    budget: int
    answer: str
    thinking_tokens: int
    tokens: int
    is_right: bool

    @property
    def is_over(self) -> bool:
        """Whether it has more tokens than its budget allows."""
        return self.tokens > SHARE * self.budget + ANSWER


def row(name: str, replies: list[Reply]) -> str:
    """A row of the table."""
    count = len(replies)

    def mean(values: Iterator[float]) -> float:
        return sum(values) / count

    budgets = sorted({r.budget for r in replies})
    budget = f"{budgets[0]}" + (f" to {budgets[-1]}" if len(budgets) > 1 else "")
    said = [LINE.fullmatch(r.answer.strip()) for r in replies]
    return (
        f"| {name} | {budget} "
        f"| {mean(r.is_right for r in replies):.1%} "
        f"| {sum(m is not None and m[1] == GUESS for m in said)} "
        f"| {mean(r.thinking_tokens for r in replies):.1f} "
        f"| {mean(r.tokens - r.thinking_tokens for r in replies):.1f} "
        f"| {max(r.tokens for r in replies)} "
        f"| {said.count(None)} | {sum(MARKER in r.answer for r in replies)} "
        f"| {sum(r.is_over for r in replies)} |"
    )


def is_right(answer: str, problem: dict) -> bool:
    """Whether the last number of an answer is the right one."""
    numbers = re.findall(r"-?\d+", answer)
    return bool(numbers) and numbers[-1] == problem["answer"]


def behind_the_first_marker(text: str) -> str:
    """What was said once thinking was closed, a second closing marker with it."""
    return text.partition(MARKER)[2] if MARKER in text else text


def in_a_batch(
    loaded: tuple, problems: list[dict], budget: int, mode: str, temp: float
) -> str:
    """The row of the replies at a budget."""
    model, tokenizer, predictor = loaded
    replies = batch_generate(
        model,
        tokenizer,
        [encode_chat(tokenizer, p["question"]) for p in problems],
        predictor=predictor,
        thinking_budget=budget,
        budget_mode=mode,
        temp=temp,
        seed=list(range(len(problems))),
        max_tokens=1024,
        batch_size=64,
    ).replies
    found = [
        Reply(
            budget,
            behind_the_first_marker(reply.text),
            reply.thinking_tokens,
            len(reply.tokens),
            is_right(reply.answer, problem),
        )
        for reply, problem in zip(replies, problems, strict=True)
    ]
    return row(mode, found)


@contextmanager
def serving() -> Iterator[int]:
    """A server of the built-in model, and its port."""
    command = [sys.executable, "-m", "mlx_budget", "serve", "--model", "demo"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, "--port", "0"], stderr=log)
        try:
            yield _port(process, log)
        finally:
            process.terminate()
            process.wait()


def _port(process: subprocess.Popen, log: TextIO) -> int:
    """The port of a server, as soon as it says so."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        log.seek(0)
        if found := re.search(r"127\.0\.0\.1:(\d+)", log.read()):
            return int(found[1])
        time.sleep(0.2)
    log.seek(0)
    raise click.ClickException(f"The server did not start:\n{log.read()}")


def from_the_server(port: int, problems: list[dict], effort: str, temp: float) -> str:
    """The row of a server's replies at an effort."""
    found = []
    for seed, problem in enumerate(problems):
        body = {
            "messages": [{"role": "user", "content": problem["question"]}],
            "reasoning_effort": effort,
            "temperature": temp,
            "seed": seed,
            "max_tokens": 1024,
        }
        header = {"Content-Type": "application/json"}
        connection = HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
        with closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), header)
            said = json.loads(connection.getresponse().read())
        choice = said["choices"][0]
        text = choice["message"]["content"] or ""
        thinking, tokens = choice["thinking"], said["usage"]["completion_tokens"]
        right = is_right(text, problem)
        reply = Reply(thinking["budget"], text, thinking["tokens"], tokens, right)
        found.append(reply)
    return row(f"server, {effort}", found)


@click.command(help=__doc__)
@click.option("--count", default=200, show_default=True, help="Problems.")
@click.option("--server-count", default=50, show_default=True, help="Of the server.")
@click.option("--temp", default=1.0, show_default=True, help="Temperature.")
def main(count: int, server_count: int, temp: float) -> None:
    lines = demo.PROBLEMS_FILE.read_text(encoding="utf-8").splitlines()
    problems = [json.loads(line) for line in lines][:count]
    loaded = load("demo")
    print(
        "| | budget | right | guesses | thinking | other tokens | most in all "
        "| other answers | second markers | over |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for mode in (AT_MOST, ABOUT):
        for budget in BUDGETS:
            print(in_a_batch(loaded, problems, budget, mode, temp), flush=True)
    with serving() as port:
        for effort in EFFORTS:
            found = from_the_server(port, problems[:server_count], effort, temp)
            print(found, flush=True)


if __name__ == "__main__":
    main()
