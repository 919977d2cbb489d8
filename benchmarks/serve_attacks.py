"""How long an honest request takes while others crowd a server, and what bodies cost.

Starts `mlx-budget serve` in a process of its own. Asks it alone, with idle connections,
and with clients that send a byte of their headers now and then; then sends bodies as
large as may be and reads the most memory that the server had.
"""

import json
import re
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import click

PATH = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is 2 + 3 + 4 - 1?"}]
HONEST = json.dumps({"messages": QUESTION, "thinking_budget": 2, "max_tokens": 20})
BODY = 16 << 20
BEGUN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nA: "


def bodies() -> dict[str, bytes]:
    """Large bodies, by what is in them."""
    text = b'{"messages": [{"role": "user", "content": "%s"}], "x": [%s1]}'
    many = {"messages": [{"role": "user", "content": "x" * 100}] * 100_000}
    return {
        "one text": text % (b"a " * (BODY // 2 - 50), b""),
        "as many values as may be": text % (b"1", b"[]," * 499_000),
        "more": text % (b"1", b"[]," * (BODY // 3 - 50)),
        "100,000 messages": json.dumps(many).encode(),
    }


@contextmanager
def serving() -> Iterator[tuple[int, int]]:
    """Process and port of a server."""
    command = [sys.executable, "-m", "mlx_budget", "serve", "--port", "0"]
    command += ["--log-level", "ERROR", "--header-timeout", "60"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"Serving at http://[^/]+:(\d+)/", line):
                    yield process.pid, int(found[1])
                    break
        finally:
            process.terminate()


def ask(port: int, body: str | bytes = HONEST) -> int:
    """The status of the answer to a body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", PATH, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def timed(port: int, requests: int) -> str:
    seconds = []
    for _ in range(requests):
        begin = time.monotonic()
        if ask(port) != 200:
            raise SystemExit("An honest request was refused.")
        seconds.append(time.monotonic() - begin)
    return f"median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s"


@contextmanager
def crowd(port: int, count: int, sends: bytes) -> Iterator[None]:
    """Connections that are there, and go on with a byte each now and then."""
    address = ("127.0.0.1", port)
    connections = [socket.create_connection(address) for _ in range(count)]
    is_over = threading.Event()

    def drip() -> None:
        while sends and not is_over.wait(0.2):
            for connection in connections:
                try:
                    connection.send(b"x")
                except OSError:
                    pass

    for connection in connections:
        connection.send(sends)
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        for connection in connections:
            connection.close()


def peak(pid: int) -> int:
    """Most memory of a process in MB, since it was last asked. On Linux only."""
    text = Path(f"/proc/{pid}/status").read_text()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) // 1024


@click.command()
@click.option("--requests", default=20, show_default=True)
def main(requests: int) -> None:
    """Prints seconds, statuses and megabytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with serving() as (pid, port):
        ask(port)
        print("alone:", timed(port, requests))
        with crowd(port, 2000, b""):
            print("2,000 idle connections:", timed(port, requests))
        with crowd(port, 200, BEGUN):
            print("200 slow clients:", timed(port, requests))
        if sys.platform != "linux":
            return
        print("memory before:", peak(pid), "MB")
        for name, body in bodies().items():
            status = ask(port, body)
            size = len(body) / (1 << 20)
            print(f"{name}, {size:.1f} MB: status {status}, {peak(pid)} MB at most")


if __name__ == "__main__":
    main()
