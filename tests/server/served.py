"""Real servers, in a process of their own or in this one, and how they are asked."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import openai

from mlx_budget import stream_generate
from mlx_budget.engine.follower import Part
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.server import running

T, R = TypeVar("T"), TypeVar("R")
SECONDS = 120
QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
OPENAI = {
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "temperature",
    "reasoning_effort",
    "logit_bias",
}
# Scripts that serve import the stand-ins that the tests share.
TESTS = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "mlx_budget", "serve")


@dataclass
class Server:
    """A server that runs: its process, address, and what it says on stderr."""

    process: subprocess.Popen
    host: str
    port: int
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self) -> openai.OpenAI:
        return client_of(self.url)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=SECONDS, max_retries=0
    )


@dataclass
class Address:
    """Of a server in this process."""

    url: str

    @property
    def host(self) -> str | None:
        return urlsplit(self.url).hostname

    @property
    def port(self) -> int | None:
        return urlsplit(self.url).port

    def client(self) -> openai.OpenAI:
        return client_of(self.url)


@contextmanager
def served(**options: object) -> Iterator[openai.OpenAI]:
    """A client of a server in this process, the demo's by default.

    For tests that need no process to signal, and none of its lines: it starts at once.
    """
    with running(**options) as url, client_of(url) as client:
        yield client


def _path() -> list[str]:
    return [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]


@contextmanager
def serving(*options: object, command: tuple[str, ...] = COMMAND) -> Iterator[Server]:
    """Runs a server, the demo's by default, as long as the block lasts."""
    process = subprocess.Popen(
        [*command, "--port", "0", *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_path())},
        # A job in the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines: list[str] = []
    watch = threading.Timer(SECONDS, process.kill)
    watch.start()
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"Serving at http://(\S+):(\d+)/v1", line):
                break
        else:
            raise AssertionError("".join(lines))
        watch.cancel()
        reader = threading.Thread(target=lines.extend, args=(process.stderr,))
        reader.start()
        try:
            yield Server(process, found[1], int(found[2]), lines)
        finally:
            process.kill()
            reader.join()
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def ask(client, question: str = QUESTION, **options):
    """Asks, with what the client does not know by name in the request's body."""
    extra = {k: options.pop(k) for k in list(options) if k not in OPENAI}
    return client.chat.completions.create(
        model=options.pop("model", "demo"),
        messages=[{"role": "user", "content": question}],
        extra_body=extra,
        **options,
    )


def at_once(one: Callable[[T], R], each: Sequence[T]) -> list[R]:
    """What many clients get who ask at the same time.

    Their replies share the model's passes, a quarter of the work of one by one.
    """
    with ThreadPoolExecutor(len(each)) as pool:
        return list(pool.map(one, each))


def alone(model, question: str | list[int], budget, **options) -> dict:
    """What the package itself generates, in the server's words.

    In place of a question there may be the ids of a whole prompt.
    """
    is_text = isinstance(question, str)
    ids = encode_chat(model[1], question) if is_text else question
    options = {"predictor": model[2], "thinking_budget": budget, **options}
    *_, r = stream_generate(*model[:2], ids, **options)
    texts = {part: "" for part in Part}
    for piece in r.reply.pieces:
        texts[piece.part] += piece.text
    return {
        "reasoning": texts[Part.THINKING],
        "content": texts[Part.ANSWER],
        "thinking": {
            "budget": r.thinking_budget,
            "tokens": r.thinking_tokens,
            "closed_by": r.closed_by,
        },
    }


def told(reply) -> dict:
    """What a whole reply told."""
    (choice,) = reply.choices
    message = choice.message
    return {
        "reasoning": getattr(message, "reasoning", ""),
        "content": message.content,
        "thinking": choice.thinking,
    }


def gather(chunks) -> tuple[dict, object]:
    """What a stream told, and its usage."""
    chunks = list(chunks)
    choices = [c.choices[0] for c in chunks if c.choices]
    deltas = [choice.delta for choice in choices]
    (thinking,) = (choice.thinking for choice in choices if choice.finish_reason)
    told = {
        "reasoning": "".join(getattr(d, "reasoning", "") for d in deltas),
        "content": "".join(d.content or "" for d in deltas),
        "thinking": thinking,
    }
    return told, chunks[-1].usage
