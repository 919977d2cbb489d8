"""Whether mlx-lm's loop stays one step ahead of the device with a budget sampler.

mlx-lm hands step t + 1 to the device before it reads token t, so that the device has
work while the host handles a token. Two measurements, each with a control that reads
its last token before the next step is handed over:

- stalls: how often the host waited for a token with nothing handed to the device;
- milliseconds a step, with an idle host and with one that sleeps between tokens for
  most of a step. A loop that looks ahead hides that; one that does not takes both. (The
  CPU build of MLX itself waits while more than ten operations are outstanding, so that
  there even plain mlx-lm hides little.)

Nothing is guided after the first token, so all that differs is the loop.
"""

import time
from pathlib import Path
from unittest import mock

import click
import mlx.core as mx
import mlx_lm

import timing
import workload
from mlx_budget import make_budget_sampler
from mlx_budget.engine.sampler import BudgetSampler


class ReadsFirst:
    """Greedy, and waits for its last token as soon as it is called."""

    def __init__(self):
        self._token: mx.array | None = None

    def __call__(self, logprobs: mx.array) -> mx.array:
        if self._token is not None:
            self._read_last_token()
        self._token = mx.argmax(logprobs, axis=-1)
        return self._token

    def _read_last_token(self) -> None:
        self._token.item()


class Stalls:
    """Counts waits for a token while the device has nothing to do after it.

    Watches ``mx.async_eval``, by which work is handed over, and the samplers' reads.
    """

    def __init__(self):
        self.reads = self.count = 0
        self._handed_over = False
        self._patches = [
            mock.patch.object(mx, "async_eval", self._watch(mx.async_eval))
        ]
        for kind in (BudgetSampler, ReadsFirst):
            self._patches.append(
                mock.patch.object(
                    kind, "_read_last_token", self._read(kind._read_last_token)
                )
            )

    def __enter__(self) -> "Stalls":
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_) -> None:
        for patch in self._patches:
            patch.stop()

    def _watch(self, async_eval):
        def watched(*arrays):
            async_eval(*arrays)
            self._handed_over = True

        return watched

    def _read(self, read):
        def watched(sampler):
            self.reads += 1
            # The loop hands over the step that makes the token; one more must follow.
            self.count += not self._handed_over
            read(sampler)

        return watched

    def token_given(self) -> None:
        """The loop gave a token out: what it handed over before is that token's."""
        self._handed_over = False


class CountedEncodings:
    """How often the predictor runs while the block lasts."""

    def __init__(self, predictor):
        self._predictor = predictor
        self.count = 0

    def __enter__(self):
        original = self._predictor.encode

        def encode(states: mx.array) -> mx.array:
            self.count += 1
            return original(states)

        object.__setattr__(self._predictor, "encode", encode)
        return self

    def __exit__(self, *_):
        object.__delattr__(self._predictor, "encode")


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path))
@click.option("--tokens", default=41, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option(
    "--host", default=0.7, show_default=True, help="Host's work, in steps of the model."
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    model: Path, tokens: int, rounds: int, host: float, output: Path | None
) -> None:
    """Times steps with a busy host, for three samplers."""
    loaded, tokenizer = workload.load_smollm2(model)
    args = loaded.args
    predictor = workload.make_predictor(
        args.hidden_size, args.num_hidden_layers, args.vocab_size
    )
    prompt = tokenizer.encode("Think about the sum of 17 and 26, step by step:")
    no_newline = workload.NewlineEvery(tokenizer, args.vocab_size, 0, len(prompt))

    def run(make, sleep: float, stalls: Stalls | None = None) -> float:
        sampler, times = make(), []
        for _ in mlx_lm.stream_generate(
            loaded,
            tokenizer,
            prompt,
            max_tokens=tokens,
            sampler=sampler,
            logits_processors=[no_newline],
        ):
            times.append(time.perf_counter())
            if stalls is not None:
                stalls.token_given()
            time.sleep(sleep)
        if hasattr(sampler, "close"):
            sampler.close()
        # The first steps hold the prefill and the one guided token.
        return (times[-1] - times[2]) / (len(times) - 3)

    def budget_sampler():
        return make_budget_sampler(
            loaded,
            tokenizer,
            predictor,
            prompt=prompt,
            thinking_budget=10 * tokens,
            **workload.MARKERS,
        )

    samplers = {
        "plain": lambda: None,
        "budget sampler": budget_sampler,
        "reads first": ReadsFirst,
    }
    run(lambda: None, 0)
    sleep = host * run(lambda: None, 0)
    with CountedEncodings(predictor) as encodings:
        run(budget_sampler, 0)
    counted = {}
    for name, make in samplers.items():
        with Stalls() as stalls:
            run(make, 0, stalls)
        counted[name] = f"{stalls.count} of {stalls.reads}"
    variants = {
        f"{name}, {state}": lambda make=make, s=s: run(make, s)
        for name, make in samplers.items()
        for state, s in (("idle host", 0.0), ("busy host", sleep))
    }
    seconds = timing.run_rounds(variants, rounds)
    rows = [
        {
            "sampler": name,
            "stalls, of reads": counted[name],
            "idle host, ms a step": 1000 * timing.median(seconds[f"{name}, idle host"]),
            "busy host, ms a step": 1000 * timing.median(seconds[f"{name}, busy host"]),
            "idle host : plain": timing.ratio(
                seconds, f"{name}, idle host", "plain, idle host"
            ),
            "busy host : plain": timing.ratio(
                seconds, f"{name}, busy host", "plain, busy host"
            ),
        }
        for name in samplers
    ]
    click.echo(
        f"Host's work: {1000 * sleep:.0f} ms a token. Predictor evaluations in "
        f"{tokens} tokens without a newline: {encodings.count}, for the first token."
    )
    timing.report("The look-ahead of mlx-lm's loop", rows, output)


if __name__ == "__main__":
    main()
