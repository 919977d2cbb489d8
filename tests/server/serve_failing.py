"""Serves the demo with a sampler that fails for the seed 13: run with python."""

import sys

from mlx_budget.cli import cli
from mlx_budget.server import service
from mlx_budget.server.steering import take_sampler


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


if __name__ == "__main__":
    service.take_sampler = take_failing_sampler
    sys.argv.insert(1, "serve")
    cli()
