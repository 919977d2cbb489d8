"""Ctrl-C while a command starts, when there is nothing yet to be ended well.

A KeyboardInterrupt in the middle of an import ends in dozens of lines of traceback at
best; C extensions and lazy modules make other errors of it, or swallow it. Knows
signals; nothing of commands.
"""

import os
import signal


def _leave(*_: object) -> None:
    os._exit(130)


def leave_at_once() -> None:
    """From here on Ctrl-C ends the process without a word, with exit code 130.

    Where interrupts are ignored, as in a shell's background jobs, they stay so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_again() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as usual in Python."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
