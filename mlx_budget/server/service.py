"""The server as a whole, from its address to its threads, and its end.

Knows sockets and threads; nothing of signals or of what requests say.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, cast

import mlx.core as mx
from huggingface_hub import constants
from mlx_lm import server

from ..ranks import current, leads
from .budgets import MAX_TOKENS
from .generation import BudgetResponseGenerator, MakeLearner
from .guard import Guard
from .handler import make_handler
from .ledger import Ledger
from .limits import allow_files
from .listening import Listener
from .metrics import make_metrics
from .options import ServeOptions
from .prompt_cache import PromptCache
from .provider import BudgetModelProvider
from .ranks import RankedResponseGenerator
from .seams import check_seams, samplers_made_by
from .steering import take_sampler

# For replies that were told to end, and then for the generation thread.
_SECONDS_TO_END = 2.0
_SECONDS_TO_JOIN = 1.0
# The same in a program that goes on.
_SECONDS_TO_JOIN_WITHIN = 60.0


class Service:
    """A server that runs in threads of this process, from its address on.

    It listens before the model is loaded: requests wait for that.

    Args:
        options (ServeOptions): What it is told.
        make_learner (Callable, optional): Makes what learns in idle time, of the
            default model and its tokenizer.

    Raises:
        ValueError: If the address cannot be had or may not be open to all, or mlx-lm's
            server is not one that we know.
    """

    def __init__(
        self,
        options: ServeOptions,
        make_learner: MakeLearner | None = None,
    ):
        check_seams()
        args, policy = options.namespace(), options.policy
        access, limits = options.access, options.limits
        if args.kv_bits is not None and not hasattr(
            server, "DEFAULT_QUANTIZED_KV_START"
        ):
            raise ValueError("--kv-bits needs mlx-lm 0.32 or newer here.")
        if args.max_tokens is None:
            args.max_tokens = MAX_TOKENS
        # mlx-lm lets as many run as may be read, if those are more.
        args.prompt_concurrency = min(args.prompt_concurrency, args.decode_concurrency)
        if mx.metal.is_available():
            most = cast(int, mx.device_info()["max_recommended_working_set_size"])
            mx.set_wired_limit(most)
        # mlx-lm lists the Hub's cache, which is not there before the first download.
        os.makedirs(constants.HF_HUB_CACHE, exist_ok=True)
        self._limits = limits
        self._is_stopped = False
        self._ends = ExitStack()
        self._listener: Listener | None = None
        # Of several machines one listens, and all generate.
        if leads():
            allow_files(limits.connections)
            self._listener = Listener(access, _no_handler, limits.connections)
            self._ends.callback(self._listener.server_close)
        with ExitStack() as on_failure:
            on_failure.push(self._ends)
            self._ends.enter_context(samplers_made_by(take_sampler))
            if access.only_model:
                self._ends.enter_context(_without_the_hub())
            provider = BudgetModelProvider(args, policy)
            start = args.quantized_kv_start if args.kv_bits is not None else None
            make_generator = BudgetResponseGenerator
            if current() is not None:
                make_generator = RankedResponseGenerator
            self.generator = make_generator(
                provider,
                PromptCache(args.prompt_cache_size, start),
                make_learner=make_learner,
            )
            on_failure.pop_all()
        if (listener := self._listener) is not None:
            ledger = Ledger()
            address = str(listener.server_address[0])
            handler = make_handler(
                policy,
                args.model,
                options.max_tokens,
                Guard(access, address),
                limits,
                ledger=ledger,
                metrics=make_metrics(ledger, args.decode_concurrency),
                slots=args.decode_concurrency,
            )
            listener.RequestHandlerClass = partial(
                handler,
                self.generator,
                system_fingerprint=server.get_system_fingerprint(),
            )
            threading.Thread(
                target=listener.serve_forever, args=(0.1,), daemon=True
            ).start()

    @property
    def listens(self) -> bool:
        """Whether this process listens: of several machines one does."""
        return self._listener is not None

    @property
    def url(self) -> str:
        """The address, as a client asks it."""
        if self._listener is None:
            raise RuntimeError("This rank does not listen.")
        return self._listener.url

    def wait_until_loaded(self) -> None:
        """Waits for the default model.

        Raises:
            ValueError: Or what else loading it raised.
        """
        self.generator.model_provider.wait_until_loaded()

    def wait(self, is_over: threading.Event) -> None:
        """Serves until an event, or, where another rank listens, until that ends."""
        if self._listener is None:
            self.generator.join()
        else:
            is_over.wait()

    def __enter__(self) -> "Service":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        grace = self._limits.grace_seconds if kind is None else 0
        self.stop(grace, _SECONDS_TO_JOIN_WITHIN)

    def stop(
        self, grace_seconds: float, join_seconds: float = _SECONDS_TO_JOIN
    ) -> None:
        """Stops listening, lets replies end, and ends those that do not.

        Args:
            grace_seconds (float): That replies get to end by themselves.
            join_seconds (float): That the generation thread then gets.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        if (listener := self._listener) is not None:
            if grace_seconds:  # else an error has ended it, and says so
                logging.info("The server ends.")
            listener.shutdown()
            listener.server_close()
            listener.connections.give_up_idle()
            self.generator.refuses = True
            if not listener.connections.wait_until_none(grace_seconds):
                self.generator.ends_replies = True
                listener.connections.wait_until_none(_SECONDS_TO_END)
        if not self.generator.stop_within(join_seconds):
            logging.warning("Generation has not come to its end.")
        self._ends.close()


@contextmanager
def _without_the_hub() -> Iterator[None]:
    """Keeps this process from asking the Hub; what its cache holds can be loaded."""
    former = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = former


def _no_handler(*_: Any) -> None:
    """For connections that come before there is a handler: they are closed."""
