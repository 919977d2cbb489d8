"""Processes that run one model together, over MLX's ring on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 300


@dataclass
class Ended:
    """How a process has ended, and what it has said."""

    code: int
    out: str
    err: str


class Group:
    """Processes that were started with one another, by their ranks."""

    def __init__(self, processes: list[subprocess.Popen]):
        self.processes = processes

    def wait(self, seconds: float = SECONDS) -> list[Ended]:
        """How all of them end; those that do not in time are killed."""
        ended = []
        for process in self.processes:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                out, err = process.communicate()
                err += "\nIt did not end."
            ended.append(Ended(process.returncode, out, err))
        return ended

    def kill(self, *ranks: int) -> None:
        """Kills some of them, or all."""
        for rank in ranks or range(len(self.processes)):
            if self.processes[rank].poll() is None:
                self.processes[rank].send_signal(signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def start(
    folder: Path,
    *commands: list[str],
    stdin: int | None = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
) -> Group:
    """Starts a process for each command, as `mlx.launch` does for one on all hosts.

    Args:
        folder (Path): For the host file.
        commands (list): Arguments of Python, by rank.
        stdin (int, optional): As of `subprocess.Popen`.
        env (dict, optional): More variables of the environment.
    """
    hosts = [[f"127.0.0.1:{port}"] for port in free_ports(len(commands))]
    file = folder / f"hosts-{hosts[0][0].rpartition(':')[2]}.json"
    file.write_text(json.dumps(hosts))
    shared = {
        **os.environ,
        "MLX_HOSTFILE": str(file),
        "OPENBLAS_NUM_THREADS": "1",
        **(env or {}),
    }
    return Group(
        [
            subprocess.Popen(
                [sys.executable, *command],
                env={**shared, "MLX_RANK": str(rank)},
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, command in enumerate(commands)
        ]
    )
