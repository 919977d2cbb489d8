"""Many clients of one server at once, and clients that go."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlx_lm
import openai
import pytest

from mlx_budget import load
from recipes.demo.make import draw_problems
from served import alone, ask, gather, serving, told


@pytest.fixture(scope="module")
def server():
    with serving("--log-level", "WARNING") as server:
        yield server


@pytest.fixture(scope="module")
def model():
    return load("demo")


def test_sixteen_clients_at_once_get_what_each_would_get_alone(server, model):
    questions = [p.question for p in draw_problems(16)]
    budgets = [(None, 0, 15, 40, 60, 90, "auto", "auto:0.5")[i % 8] for i in range(16)]
    start = threading.Barrier(16)

    def one(i: int) -> dict:
        with server.client() as client:
            start.wait()
            time.sleep(0.05 * (i % 4))  # some join while others run
            options = {"thinking_budget": budgets[i]}
            if i % 2:
                return told(ask(client, questions[i], **options))
            return gather(ask(client, questions[i], stream=True, **options))[0]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(16)))
    for i in range(16):
        assert together[i] == alone(model, questions[i], budgets[i]), i


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


@pytest.fixture
def endless(model) -> dict:
    """What makes a reply that goes on until it is stopped."""
    vocabulary = model[1].get_vocab()
    bias = {str(vocabulary[token]): -100 for token in ("</think>", "<|im_end|>")}
    return {"logit_bias": bias, "max_tokens": 1_000_000}


def test_clients_that_are_killed_or_give_up_free_their_slots(endless):
    """With one slot: endless replies, and after each a short one."""
    with serving("--decode-concurrency", 1) as server, server.client() as client:

        def assert_free():
            """Another reply would have to wait for the only slot."""
            reply = ask(client, thinking_budget=60)
            assert told(reply)["content"].strip() == "The answer is 12."

        def assert_taken():
            if mlx_lm.__version__.startswith("0.31"):
                return  # which generates more at a time than it was told
            with pytest.raises(openai.APITimeoutError):
                ask(client.with_options(timeout=2), thinking_budget=60)

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
        for _ in range(5):
            assert "reasoning" in reader.stdout.readline()
        assert_taken()
        reader.kill()
        reader.wait()
        reader.stdout.close()
        assert_free()
        stream = ask(client, stream=True, **endless)
        next(stream)
        stream.close()
        assert_free()
        # mlx-lm 0.31.3 may lose the biases of a request that joins others.
        if not mlx_lm.__version__.startswith("0.31"):
            with pytest.raises(openai.APITimeoutError):
                ask(client.with_options(timeout=2), **endless)
            assert_free()
        assert server.stop() == 0
        assert "Traceback" not in "".join(server.lines)
