"""Compares formulas with math-verify, in a process that can be killed.

Reads a JSON object a line from stdin, writes one a line to stdout; knows nothing of
answers, questions or who asks. Runs as a program of its own: see `mathematics`.
"""

import json
import logging
import os
import signal
import sys
from contextlib import suppress

_MEMORY = 4 << 30  # bytes, of all that the process may reserve


def _compare(reference: str, answer: str) -> dict[str, object]:
    """What math-verify says of two formulas, and whether it can read them."""
    from math_verify import parse, verify

    found = [
        parse(f"\\boxed{{{formula}}}", parsing_timeout=None, raise_on_error=True)
        for formula in (reference, answer)
    ]
    is_equal = verify(
        *found,
        timeout_seconds=None,
        raise_on_error=True,
        allow_set_relation_comp=True,
    )
    names = ("reference", "answer")
    values = (any(not isinstance(v, str) for v in values) for values in found)
    return {"correct": is_equal, **dict(zip(names, values, strict=True))}


def _bound_memory() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def main() -> None:
    """Answers questions until stdin ends."""
    # Ctrl-C is for the program that asks, which ends this one by closing stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    # What sympy prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _bound_memory()
    for line in sys.stdin:
        asked = json.loads(line)
        # Without a handler these signals end the process, even inside a computation in
        # C, and whether or not the program that asked is still there. The first counts
        # the time that is computed, so that a busy machine changes no verdict.
        signal.setitimer(signal.ITIMER_PROF, asked.pop("seconds"))
        signal.alarm(asked.pop("at_most"))
        try:
            said = _compare(**asked)
        except Exception as e:
            said = {"error": type(e).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
