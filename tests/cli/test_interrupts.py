"""Ctrl-C while a command starts: exit code 130, and not a word."""

import signal
import subprocess
import sys

import pytest

from mlx_budget import interrupts

QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
# The command, which is interrupted the moment a module begins to be imported.
IN_CHILD = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
wanted = sys.argv.pop(1)

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
runpy.run_module("mlx_budget", run_name="__main__", alter_sys=True)
"""
COMMANDS = {
    "--help": ("--help",),
    "generate": ("generate", "-p", QUESTION, "-m", "4"),
    "serve": ("serve", "--port", "0"),
}
FIRST = ("mlx_budget.interrupts", "click", "mlx_budget.cli", "mlx_budget.cli.options")
LATER = ("mlx.core", "numpy", "mlx_lm", "transformers", "mlx_budget.models.loading")


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(("--help", module) for module in FIRST),
        *(("generate", module) for module in (*FIRST, *LATER)),
        *(("serve", module) for module in ("mlx_lm.server", *LATER)),
    ],
)
def test_an_interrupt_while_a_command_starts_ends_it_without_a_word(command, module):
    done = subprocess.run(
        [sys.executable, "-c", IN_CHILD, module, *COMMANDS[command]],
        capture_output=True,
        text=True,
        timeout=120,
    )
    notices = [x for x in done.stderr.splitlines() if not x.startswith("No --model")]
    assert (done.returncode, done.stdout, notices) == (130, "", [])


@pytest.fixture
def handler():
    """Puts back what handles interrupts in the tests' own process."""
    former = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, former)


def test_interrupts_are_raised_again_once_there_is_something_to_end(handler):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.leave_at_once()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    interrupts.raise_again()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda *_: None])
def test_handlers_of_others_stay(handler, other):
    signal.signal(signal.SIGINT, other)
    interrupts.leave_at_once()
    interrupts.raise_again()
    assert signal.getsignal(signal.SIGINT) is other
