"""Whether a server stays as it was under many requests with mixed budgets and hang-ups.

Starts `mlx-budget serve` in a process of its own, sends requests from several clients
at once (streamed and not, with all kinds of budgets, wrong ones too), of which a share
hangs up before the end, and watches the server's memory. They speak all interfaces of
the server, and each reply must keep the budget that it tells. At the end every slot
must answer.
"""

import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection

import click

QUESTIONS = (
    "What is 7 + 1 + 5 - 9 + 8?",
    "What is 2 + 3 + 4 - 1?",
    "What is 9 - 4 + 7 - 2 + 3 - 5?",
)
BUDGETS = (None, 0, 20, 60, 200, "auto", "auto:0.5", -7)
# Nothing but digits: the reply has no end of its own.
ENDLESS = {
    "max_tokens": 1_000_000,
    "logit_bias": {str(token): 100 for token in range(20, 30)},
    "thinking_budget": None,
}
SECONDS = 300
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
# How far past its budget the hard stop lets thinking go.
HARD_STOP = 1.1


@dataclass
class Soak:
    """What came of it.

    Attributes:
        memory: Resident memory of the server in MB: at the start, after each tenth of
            the requests, and at the end.
        statuses: Of HTTP, and how often each came.
        kept: Replies with a budget that kept it.
        broken: Replies with a budget that did not.
        hang_ups: Requests that were left before their reply was whole.
        free_slots: Replies without an end that were generated at once when all was
            over, at most one for each slot.
    """

    memory: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    kept: int = 0
    broken: int = 0
    hang_ups: int = 0
    free_slots: int = 0

    @property
    def growth(self) -> float:
        """Of memory in MB, from the middle of the run to its end."""
        return self.memory[-1] - self.memory[len(self.memory) // 2]


def soak(
    requests: int, clients: int, slots: int, hang_up: float, options: tuple[str, ...]
) -> Soak:
    """Runs a server and its clients.

    Args:
        requests (int): In all.
        clients (int): That ask at the same time.
        slots (int): Replies that the server generates at a time.
        hang_up (float): Share of requests that are left before the end.
        options (tuple): More options of the server.
    """
    command = [sys.executable, "-m", "mlx_budget", "serve", "--port", "0"]
    command += ["--decode-concurrency", str(slots), "--log-level", "ERROR", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    reader = threading.Thread(target=process.stderr.read)
    with process:
        try:
            port = _find_port(process)
            reader.start()
            return _run(process.pid, port, requests, clients, slots, hang_up)
        finally:
            process.kill()
            if reader.is_alive():
                reader.join()


def _find_port(process: subprocess.Popen) -> int:
    for line in process.stderr:
        if found := re.search(r"Serving at http://[^/]+:(\d+)/", line):
            return int(found[1])
    raise SystemExit("The server did not start.")


def _run(
    pid: int, port: int, requests: int, clients: int, slots: int, hang_up: float
) -> Soak:
    result = Soak([_memory(pid)])
    lock = threading.Lock()

    def one(number: int) -> None:
        rng = random.Random(number)
        path = rng.choice((CHAT, MESSAGES, RESPONSES))
        body = {
            "thinking_budget": rng.choice(BUDGETS),
            "temperature": rng.choice([0, 1]),
            "stream": rng.random() < 0.5,
        }
        question, is_left = rng.choice(QUESTIONS), rng.random() < hang_up
        body = _asking(path, question, body | ENDLESS if is_left else body)
        status, is_kept = 0, None
        if is_left:
            _leave(port, path, body, rng.uniform(0.05, 0.5))
        else:
            status, is_kept = _ask(port, path, body)
        with lock:
            result.kept += is_kept is True
            result.broken += is_kept is False
            result.hang_ups += status == 0
            if status:
                result.statuses[status] = result.statuses.get(status, 0) + 1

    with ThreadPoolExecutor(clients) as pool:
        for tenth in range(10):
            numbers = range(tenth * requests // 10, (tenth + 1) * requests // 10)
            list(pool.map(one, numbers))
            result.memory.append(_memory(pid))

    all_begun = threading.Barrier(slots)

    def probe(_: int) -> bool:
        """Whether an endless reply begins, and goes on until every slot has its own."""
        body = _asking(CHAT, QUESTIONS[0], {**ENDLESS, "stream": True})
        with _open(port, CHAT, body) as connection:
            begun = b"data: " in _read_until(connection, b"data: ")
            if not begun:
                all_begun.abort()
            try:
                all_begun.wait(SECONDS)
            except threading.BrokenBarrierError:
                return False
            return begun

    with ThreadPoolExecutor(slots) as pool:
        result.free_slots = sum(pool.map(probe, range(slots)))
    result.memory.append(_memory(pid))
    return result


def _asking(path: str, question: str, body: dict) -> dict:
    """The body of a request, as an interface has it."""
    if path == RESPONSES:
        own = {k: v for k, v in body.items() if k != "max_tokens"}
        if "max_tokens" in body:
            own["max_output_tokens"] = body["max_tokens"]
        return {"input": question, **own}
    messages = [{"role": "user", "content": question}]
    limit = {"max_tokens": 2000} if path == MESSAGES else {}
    return {"messages": messages, **limit, **body}


def _ask(port: int, path: str, body: dict) -> tuple[int, bool | None]:
    """The status of an answer, and whether its reply kept its budget if it had one."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    reply = response.read().decode()
    connection.close()
    told = re.findall(r'"thinking": \{"budget": (\d+), "tokens": (\d+)', reply)
    if not told:
        return response.status, None
    budget, tokens = map(int, told[-1])
    return response.status, tokens <= HARD_STOP * budget


def _open(port: int, path: str, body: dict) -> socket.socket:
    """A connection over which a request was sent."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), SECONDS)
    connection.sendall(head.encode() + data)
    return connection


def _read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """What comes up to some text, or to the end or a time without anything."""
    seen = b""
    try:
        while wanted not in seen and (data := connection.recv(65536)):
            seen += data
    except TimeoutError:
        pass
    return seen


def _leave(port: int, path: str, body: dict, seconds: float) -> None:
    with _open(port, path, body):
        time.sleep(seconds)


def _memory(pid: int) -> float:
    command = ["ps", "-o", "rss=", "-p", str(pid)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout) / 1024


@click.command()
@click.option("--requests", default=500, show_default=True)
@click.option("--clients", default=16, show_default=True)
@click.option("--slots", default=8, show_default=True)
@click.option("--hang-up", default=0.25, show_default=True)
@click.argument("options", nargs=-1)
def main(requests: int, clients: int, slots: int, hang_up: float, options):
    """Soak a server; OPTIONS behind -- are its own, such as --model."""
    start = time.perf_counter()
    found = soak(requests, clients, slots, hang_up, options)
    memory = ", ".join(f"{m:.0f}" for m in found.memory)
    print(f"{requests} requests in {time.perf_counter() - start:.0f} s")
    print(f"answers by status: {found.statuses}, left: {found.hang_ups}")
    print(f"budgets kept: {found.kept}, broken: {found.broken}")
    print(f"memory, MB: {memory}")
    print(f"growth from the middle to the end: {found.growth:.1f} MB")
    print(f"slots that are free again: {found.free_slots} of {slots}")


if __name__ == "__main__":
    main()
