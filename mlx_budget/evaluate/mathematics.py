"""Whether two formulas are equal, as math-verify sees it, in a limited time.

math-verify bounds its time by a signal, which exists in the main thread alone and which
a long computation in C never sees; here a process of its own is killed instead. Knows
formulas as LaTeX; nothing of answers and how they are worded.
"""

import atexit
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..installing import install_command

TIMEOUT = 5.0  # seconds of computing for one comparison, math-verify's own default
_WAITING = 12  # times as long, on a busy machine
_STARTING = 10.0  # seconds of computing for the imports
_MOST_CHARACTERS = 5_000


class CannotCompare(Exception):
    """Says why two formulas cannot be compared."""


@dataclass(frozen=True)
class Comparison:
    """What math-verify says of two formulas.

    Attributes:
        correct: Whether they are equal.
        reads_reference: Whether it finds a value in the reference.
        reads_answer: Whether it finds one in the answer.
    """

    correct: bool
    reads_reference: bool
    reads_answer: bool


def check_available() -> None:
    """Raises a ValueError if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise ValueError(f"Grading needs math-verify: `{install_command('eval')}`.")


def compare(reference: str, answer: str) -> Comparison:
    """Compares two formulas, in any thread.

    Args:
        reference (str): LaTeX, or plain text as math-verify reads it.
        answer (str): The same, to be compared with it.

    Raises:
        CannotCompare: If it takes longer than `TIMEOUT`, or math-verify fails.
        ValueError: If math-verify is not installed.
    """
    check_available()
    if max(len(reference), len(answer)) > _MOST_CHARACTERS:
        raise CannotCompare(f"a formula has more than {_MOST_CHARACTERS:,} characters")
    said = _worker.ask({"reference": reference, "answer": answer})
    if "error" in said:
        raise CannotCompare(f"math-verify: {said['error']}")
    return Comparison(said["correct"], said["reference"], said["answer"])


class _Worker:
    """The process, started when it is first asked and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                if self._process is None or self._owner != os.getpid():
                    self._start()
                return self._exchange(question, TIMEOUT)
            except BaseException:
                self._stop()
                raise

    def _start(self) -> None:
        # A process made by fork has its parent's pipes, and must not use them.
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_budget.evaluate.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        # The imports are not part of the time of the first question.
        self._exchange({"reference": "x", "answer": "x"}, _STARTING)

    def _exchange(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process and process.stdin and process.stdout
        at_most = math.ceil(seconds * _WAITING)
        line = json.dumps({**question, "seconds": seconds, "at_most": at_most + 1})
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], at_most)
            said = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            ready, said = [process.stdout], b""
        if not said:
            ended = process.wait() if ready else None
            is_late = ended in (None, -signal.SIGPROF, -signal.SIGALRM)
            why = f"no answer within {seconds:g} seconds" if is_late else "it stopped"
            raise CannotCompare(f"math-verify: {why}")
        return json.loads(said)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    pass

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            self._stop()


_worker = _Worker()
close = _worker.close
atexit.register(close)
