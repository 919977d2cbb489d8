"""A real server in a process of its own, on a free port of loopback."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai

SECONDS = 120
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
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=SECONDS, max_retries=0
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


@contextmanager
def serving(*options: object, command: tuple[str, ...] = COMMAND) -> Iterator[Server]:
    """Runs a server, the demo's by default, as long as the block lasts."""
    process = subprocess.Popen(
        [*command, "--port", "0", *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
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
