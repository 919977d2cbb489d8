"""Many clients of one server at once, and clients that go."""

import itertools
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import mlx_lm
import openai
import pytest

from recipes.demo.make import draw_problems
from served import SECONDS, alone, ask, gather, serving, told

WAVES = 4


def test_sixteen_clients_at_once_get_what_each_would_get_alone(server, model):
    questions = [p.question for p in draw_problems(16)]
    budgets = [(None, 0, 15, 40, 60, 90, "auto", "auto:0.5")[i % 8] for i in range(16)]
    # They come in waves, each when a stream of the one before has begun.
    begun = [threading.Event() for _ in range(WAVES)]
    begun[0].set()

    def one(i: int) -> dict:
        wave = i // 4
        with server.client() as client:
            assert begun[wave].wait(SECONDS)
            options = {"thinking_budget": budgets[i]}
            if i % 2:
                return told(ask(client, questions[i], **options))
            chunks = ask(client, questions[i], stream=True, **options)
            first = next(chunks)
            if wave + 1 < WAVES:
                begun[wave + 1].set()
            return gather(itertools.chain([first], chunks))[0]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(16)))
    for i in range(16):
        assert together[i] == alone(model, questions[i], budgets[i]), i


def test_a_seeded_request_joins_what_runs_already(server, endless):
    with server.client() as client:
        running = ask(client, stream=True, **endless)
        next(running)
        # Alone, it would have to wait for the end of what runs.
        ask(client, temperature=1.0, seed=7, thinking_budget=5)
        assert next(running).choices[0].finish_reason is None
        running.close()


def test_a_seed_gives_the_same_reply_whatever_runs_beside_it(server):
    def one(i: int) -> str:
        with server.client() as client:
            seed = 7 if i < 3 else None
            reply = ask(client, temperature=1.0, seed=seed, thinking_budget=90)
            return told(reply)["reasoning"]

    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(one, range(6)))
    assert len(set(replies[:3])) == 1
    with server.client() as client:
        again = [one(5) for _ in range(4)]
        assert (
            told(ask(client, temperature=1.0, seed=7, thinking_budget=90))["reasoning"]
            == (replies[0])
        )
    assert len(set(again)) > 1  # others are not the same each time


def test_clients_that_are_killed_or_give_up_free_their_slots(endless):
    """With one slot: endless replies, and after each a short one."""
    with (
        serving("--decode-concurrency", 1) as server,
        server.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):

        def ask_shortly() -> Future:
            return pool.submit(ask, client, thinking_budget=60)

        def assert_answered(reply: Future) -> None:
            assert reply.result(SECONDS).choices[0].finish_reason == "stop"

        code = (
            "import sys, openai\n"
            f"client = openai.OpenAI(base_url='{server.url}/v1', api_key='none')\n"
            f"stream = client.chat.completions.create(model='demo', stream=True, "
            f"messages=[{{'role': 'user', 'content': 'Hi'}}], **{endless})\n"
            "for chunk in stream: print(chunk.choices[0], flush=True)\n"
        )
        reader = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        assert "reasoning" in reader.stdout.readline()
        waiting = ask_shortly()
        # Time enough for a reply of 80 tokens or so, if it had a slot.
        for _ in range(300):
            assert "reasoning" in reader.stdout.readline()
        if not mlx_lm.__version__.startswith("0.31"):
            # It generates more at a time than it was told.
            assert not waiting.done()
        reader.kill()
        reader.wait()
        reader.stdout.close()
        assert_answered(waiting)
        stream = ask(client, stream=True, **endless)
        next(stream)
        stream.close()
        assert_answered(ask_shortly())
        # mlx-lm 0.31.3 may lose the biases of a request that joins others.
        if not mlx_lm.__version__.startswith("0.31"):
            with pytest.raises(openai.APITimeoutError):
                ask(client.with_options(timeout=1), **endless)
            assert_answered(ask_shortly())
        assert server.stop() == 0
        assert "Traceback" not in "".join(server.lines)
