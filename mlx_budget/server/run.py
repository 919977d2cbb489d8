"""Starts the server and stops it. Knows sockets and threads; nothing of requests."""

import argparse
import logging
import os
import sys
import warnings
from http.server import ThreadingHTTPServer
from typing import Any, cast

import mlx.core as mx
from huggingface_hub.constants import HF_HUB_CACHE
from mlx_lm import server

from ..interrupts import raise_again
from .budgets import MAX_TOKENS, BudgetPolicy
from .generation import BudgetResponseGenerator, MakeLearner
from .handler import make_handler
from .prompt_cache import PromptCache
from .provider import BudgetModelProvider
from .seams import check_seams, samplers_made_by
from .steering import take_sampler

# Whether a thread of this process has loaded a model.
has_computed = False


class _HTTPServer(ThreadingHTTPServer):
    # Many clients may come at the same moment.
    request_queue_size = 128

    def server_activate(self) -> None:
        super().server_activate()
        host, port = cast(tuple[str, int], self.server_address[:2])
        host = f"[{host}]" if ":" in host else host
        print(
            f"Serving at http://{host}:{port}/v1 (Ctrl-C stops). Like mlx_lm.server it "
            "is for this machine and people you trust: it only checks the basics.",
            file=sys.stderr,
            flush=True,
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], ConnectionError):
            logging.info("A client has hung up.")
        else:
            logging.exception("A request failed.")


def serve(
    args: argparse.Namespace,
    policy: BudgetPolicy,
    make_learner: MakeLearner | None = None,
) -> None:
    """Serves until it is interrupted.

    Args:
        args (argparse.Namespace): The options of `mlx_lm.server`, and `predictor`.
            A `max_tokens` of None is mlx-lm's default for requests without a budget,
            and leaves room for an answer behind one.
        policy (BudgetPolicy): How thinking is treated.
        make_learner (Callable, optional): Makes what learns in idle time, of the
            default model and its tokenizer.

    Raises:
        ValueError: If the model cannot be loaded or cannot honour the policy, or
            mlx-lm's server is not one that we know.
        OSError: If the address cannot be listened on.
    """
    global has_computed
    check_seams()
    if args.kv_bits is not None and not hasattr(server, "DEFAULT_QUANTIZED_KV_START"):
        raise ValueError("--kv-bits needs mlx-lm 0.32 or newer here.")
    handler = make_handler(policy, args.model, args.max_tokens)
    if args.max_tokens is None:
        args.max_tokens = MAX_TOKENS
    # mlx-lm lets as many run as may be read, if those are more.
    args.prompt_concurrency = min(args.prompt_concurrency, args.decode_concurrency)
    if mx.metal.is_available():
        most = cast(int, mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(most)
    # mlx-lm lists the Hub's cache, which is not there before the first download.
    os.makedirs(HF_HUB_CACHE, exist_ok=True)
    # mlx-lm's warning against production is a part of the line that we print.
    warnings.filterwarnings("ignore", message="mlx_lm.server is not recommended")
    with samplers_made_by(take_sampler):
        provider = BudgetModelProvider(args, policy)
        has_computed = True
        start = args.quantized_kv_start if args.kv_bits is not None else None
        cache = PromptCache(args.prompt_cache_size, start)
        generator = BudgetResponseGenerator(provider, cache, make_learner=make_learner)
        try:
            provider.wait_until_loaded()
            raise_again()
            if mx.distributed.init().rank() == 0:
                server._run_http_server(
                    args.host,
                    args.port,
                    generator,
                    server_class=_HTTPServer,
                    handler_class=handler,
                )
            else:
                generator.join()
        finally:
            generator.stop_and_join()
