"""A server on two ranks: one listens, both generate, and neither outlives the other."""

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from groups import Group, start

from mlx_budget.server import running

QUESTION = [{"role": "user", "content": "What is 7 + 1?"}]


class Served:
    """A server's address, and how it is asked."""

    def __init__(self, url: str):
        self.host, self.port = re.match(r"http://(.*):(\d+)", url).groups()

    def connect(self, **body: Any) -> http.client.HTTPConnection:
        """Sends a request, whose answer is still to be read."""
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=120)
        asked = {"messages": QUESTION, "max_tokens": 10, **body}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        return connection

    def ask(self, **body: Any) -> Any:
        """The message of an answer, or the error."""
        answer = json.load(self.connect(**body).getresponse())
        return answer["choices"][0]["message"] if "choices" in answer else answer


@contextmanager
def started(model: Path, folder: Path) -> Iterator[tuple[Served, Group, list[str]]]:
    """A server on two ranks, from when it has said where it is."""
    command = ["-m", "mlx_budget", "serve", "--model", str(model), "--port", "0"]
    group = start(folder, *[[*command, "--temp", "1.0"]] * 2)
    lines: list[str] = []
    told = threading.Event()

    def read() -> None:
        for line in group.processes[0].stderr:
            lines.append(line)
            if "Serving at " in line:
                told.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert told.wait(120), lines
        url = re.search(r"Serving at (\S+)/v1", "".join(lines))[1]
        yield Served(url), group, lines
    finally:
        group.kill()
        reader.join()
        group.wait()


@pytest.fixture(scope="module")
def alone(converted) -> Iterator[Served]:
    """The same server in one process."""
    with running(str(converted), temp=1.0) as url:
        yield Served(url)


def test_a_server_on_two_ranks(converted, alone, tmp_path) -> None:
    with started(converted, tmp_path) as (served, group, lines):
        # Draws of its own, the same on both: else the next request would not come out.
        assert served.ask(thinking_budget=4)["role"] == "assistant"
        for options in (
            {"seed": 1, "thinking_budget": 4},
            {"seed": 2, "temperature": 0},
            {"seed": 3, "thinking_budget": 0},
            {"seed": 4, "reasoning_effort": "low", "logprobs": True},
        ):
            assert served.ask(**options) == alone.ask(**options)
        assert "top_k" in str(served.ask(top_k=-4))
        leaving = served.connect(stream=True, max_tokens=500)
        assert leaving.getresponse().readline()
        leaving.close()
        budgets = range(8)
        found: dict[int, Any] = {}

        def ask(budget: int) -> None:
            found[budget] = served.ask(thinking_budget=budget, seed=budget)

        threads = [threading.Thread(target=ask, args=(b,)) for b in budgets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for budget in budgets:
            assert found[budget] == alone.ask(thinking_budget=budget, seed=budget)
        streamed = served.connect(stream=True, max_tokens=500)
        assert streamed.getresponse().readline()
        group.kill(1)
        begin = time.monotonic()
        assert group.processes[0].wait(30) == 2
        assert time.monotonic() - begin < 10
    said = [line for line in lines if line.startswith("Error: ")]
    assert said and all("Rank 1 (" in line for line in said)
    assert "has ended: no rank can go on without it." in said[0]
    assert not any("Traceback" in line for line in lines)


def test_a_server_ends_on_both_ranks(converted, tmp_path) -> None:
    with started(converted, tmp_path) as (_, group, _):
        group.processes[0].terminate()
        assert [process.wait(30) for process in group.processes] == [0, 0]
