"""Serves the demo with a sampler that takes its time: run with python.

With --loading the model is loaded once a line comes on stdin.
"""

import sys
import threading

from mlx_budget.cli import cli
from mlx_budget.server import provider, service
from mlx_budget.server.steering import take_sampler

SECONDS = 0.02
IS_LOADING = "--loading" in sys.argv


def take_slow_sampler(args, tokenizer):
    sampler = take_sampler(args, tokenizer)
    wait = threading.Event().wait

    def sample(logprobs):
        wait(SECONDS)
        return sampler(logprobs)

    return sample


class Provider(provider.BudgetModelProvider):
    """Loads when it is told to."""

    def _load(self, *names) -> None:
        sys.stdin.readline()
        super()._load(*names)


class Listener(service.Listener):
    """Says where it listens."""

    def server_activate(self) -> None:
        super().server_activate()
        print(f"Listening at {self.url}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    service.take_sampler = take_slow_sampler
    if IS_LOADING:
        service.take_sampler = take_sampler
        service.BudgetModelProvider = Provider
        service.Listener = Listener
    sys.argv[1:] = [option for option in sys.argv[1:] if option != "--loading"]
    sys.argv.insert(1, "serve")
    cli()
