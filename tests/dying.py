"""Commands in a process of their own that fail while they write a record."""

import subprocess
import sys

# Half a line is there when the process is gone.
KILL = "real(descriptor, text[:150]); os.kill(os.getpid(), signal.SIGKILL)"
INTERRUPT = "raise KeyboardInterrupt"

_CODE = """
import os, signal, sys
real, calls = os.write, 0
def write(descriptor, text):
    global calls
    calls += bytes(text).startswith(b'{"id"')
    if calls == NUMBER:
        calls = 0
        FAIL
    return real(descriptor, text)
os.write = write
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlx_budget.cli import cli
cli(sys.argv[1:])
"""


def failing(number: int, fail: str, *arguments, **options) -> subprocess.Popen:
    """A command that fails in place of writing a record, counted from 1."""
    code = _CODE.replace("NUMBER", str(number)).replace("FAIL", fail)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], **options
    )
