"""Starts the server and stops it, for the command and for programs.

Knows signals and what is printed; nothing of requests.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..interrupts import raise_again
from ..ranks import mirrored
from ..ranks.joining import join
from .generation import MakeLearner
from .guard import Access
from .options import ServeOptions, take_options
from .service import Service

# Whether a thread of this process has loaded a model, for a command to ask.
has_computed = False


def serve(model: str = "demo", **options: Any) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        model (str): Folder or Hub name; "demo" for the built-in model.
        options: Those of `mlx-budget serve`, by their names without dashes: `port`,
            `thinking_budget`, `max_thinking_budget`, `api_key` and so on. Lists, as of
            `allowed_origins`, are tuples of texts.

    Raises:
        ValueError: If an option has a wrong value, the address cannot be had, or the
            model cannot be loaded or cannot honour the options.
        TypeError: Naming an option that there is not.
    """
    join(is_led=False)
    run(take_options({"model": model, **options}))


@contextmanager
def running(model: str = "demo", **options: Any) -> Iterator[str]:
    """Serves in threads of this process as long as the block lasts.

    Several servers may run at a time.

    Args:
        model (str): Folder or Hub name; "demo" for the built-in model.
        options: As of `serve`. The port is any that is free by default, and replies
            that are not whole at the end of the block are ended at once.

    Yields:
        str: The server's address, such as http://127.0.0.1:49152, once it has loaded
        the model. OpenAI's clients want it with /v1 behind it.

    Raises:
        ValueError: As `serve`.
        TypeError: As `serve`.
    """
    if join(is_led=False) is not None:
        raise ValueError(
            "On several Macs a program cannot go on beside its server: use `serve`."
        )
    options = {"port": 0, "grace": 0, **options}
    with Service(take_options({"model": model, **options})) as service:
        service.wait_until_loaded()
        yield service.url


@mirrored(make_learner=lambda: None)
def run(options: ServeOptions, make_learner: MakeLearner | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM, with options that were taken already.

    Args:
        options (ServeOptions): What the server is told.
        make_learner (Callable, optional): As of `Service`.

    Raises:
        ValueError: As `serve`.
    """
    global has_computed
    with Service(options, make_learner) as service:
        has_computed = True
        service.wait_until_loaded()
        raise_again()
        with _ended_by_signals() as is_over:
            if service.listens:
                _announce(service.url, options.access)
            service.wait(is_over)
            # Within, so that a second interrupt ends at once.
            service.stop(options.limits.grace_seconds)


def _announce(url: str, access: Access) -> None:
    notes = []
    if "*" in access.allowed_origins:
        notes.append("Every web page that you open may ask (--allowed-origins).")
    if access.without_key:
        notes.append("Everybody may ask who reaches it (--no-api-key).")
    line = f"Serving at {url}/v1 (Ctrl-C stops)."
    print(" ".join([line, *notes]), file=sys.stderr, flush=True)


@contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """Sets an event at Ctrl-C or SIGTERM; at the second Ctrl-C the process ends."""
    is_over = threading.Event()

    def end(number: int, _: Any) -> None:
        if is_over.is_set() and number == signal.SIGINT:
            os._exit(130)
        is_over.set()

    if threading.current_thread() is not threading.main_thread():
        yield is_over
        return
    # Where interrupts are ignored, as in a shell's background jobs, they stay so.
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    former = {number: signal.signal(number, end) for number in numbers}
    try:
        yield is_over
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
