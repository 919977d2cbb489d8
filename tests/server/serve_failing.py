"""Serves the demo with a sampler that fails for the seed 13."""

from collections.abc import Iterator
from contextlib import contextmanager

import mlx_lm.server
import pytest

from mlx_budget.server import running
from mlx_budget.server.steering import take_sampler
from served import Address


def take_failing_sampler(args, tokenizer):
    sampler = take_sampler(args, tokenizer)

    class Failing:
        steps = 0

        def __call__(self, logprobs):
            self.steps += 1
            if args.seed == 13 and self.steps == 5:
                raise RuntimeError("unlucky")
            return sampler(logprobs)

    return Failing()


@contextmanager
def running_failing() -> Iterator[Address]:
    """Such a server, in this process."""
    with running() as url, pytest.MonkeyPatch.context() as patch:
        # Where the server has just put its own.
        patch.setattr(mlx_lm.server, "_make_sampler", take_failing_sampler)
        yield Address(url)
