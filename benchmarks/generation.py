"""Tokens/s with guidance against plain mlx-lm, on the same work.

Single and in batches, with a newline (a guided step) every 30 tokens, about the rate
of real thinking, and every third, the worst case. The variants generate side by side
and take turns, so that a ratio compares neighbours in time. "without evaluations" is
guidance with a predictor that costs nothing: what remains is recording, selection of
candidates, weights, the host's wait and sampling. "plain again" shows what the
machine's noise makes of two equal variants.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import click
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from mlx_lm.generate import BatchGenerator
from mlx_lm.sample_utils import make_sampler

import timing
import workload
from mlx_budget import Predictor, make_budget_sampler, stream_generate

TEXT = "Think about the sum of 17 and 26, step by step:"
NO_LIMIT = 10**6


class Work:
    """The same prompts, newlines and number of tokens for every variant."""

    def __init__(
        self, model: nn.Module, tokenizer, batch: int, every: int, temp: float
    ):
        self.model, self.tokenizer, self.temp = model, tokenizer, temp
        self.batch = batch
        self.prompt = tokenizer.encode(TEXT)
        # Rows of a real batch do not come to their newlines together.
        self.processors = [
            workload.NewlineEvery(
                tokenizer,
                model.args.vocab_size,
                every,
                len(self.prompt),
                offset=every * row // batch,
            )
            for row in range(batch)
        ]

    def start(self, predictor: Predictor | None) -> Iterator:
        """Begins to generate, guided or plain; a step of all rows at a time."""
        model = workload.twin(self.model)
        if self.batch > 1:
            return self._batched(model, predictor)
        shared = {"max_tokens": NO_LIMIT, "logits_processors": self.processors}
        parts = model, self.tokenizer, self.prompt
        if predictor is None:
            sampler = make_sampler(self.temp)
            return mlx_lm.stream_generate(*parts, sampler=sampler, **shared)
        return stream_generate(*parts, **self._budget(predictor), **shared)

    def _budget(self, predictor: Predictor) -> dict:
        return {
            "predictor": predictor,
            "thinking_budget": NO_LIMIT,
            "temp": self.temp,
            **workload.MARKERS,
        }

    def _batched(self, model: nn.Module, predictor: Predictor | None) -> Iterator:
        generator = BatchGenerator(
            model, completion_batch_size=self.batch, prefill_batch_size=self.batch
        )
        samplers = [
            make_sampler(self.temp)
            if predictor is None
            else make_budget_sampler(
                model, self.tokenizer, prompt=self.prompt, **self._budget(predictor)
            )
            for _ in range(self.batch)
        ]
        generator.insert(
            [self.prompt] * self.batch,
            [NO_LIMIT] * self.batch,
            samplers=samplers,
            logits_processors=[[p] for p in self.processors],
        )
        while responses := generator.next_generated():
            yield responses


def compare(
    work: Work, predictor: Predictor, rounds: int, steps: int, turn: int
) -> dict:
    """Tokens/s of the variants, and their ratios to plain."""
    predictors = {
        "plain": None,
        "guided": predictor,
        "free": workload.FreePredictor(predictor),
        "again": None,
    }
    streams = {name: work.start(p) for name, p in predictors.items()}
    seconds = timing.run_in_turns(
        {name: functools.partial(next, s) for name, s in streams.items()},
        rounds,
        steps,
        turn,
    )
    made = steps * work.batch
    return {
        "plain tokens/s": made / timing.median(seconds["plain"]),
        "guided tokens/s": made / timing.median(seconds["guided"]),
        "guided : plain, tokens/s": timing.ratio(seconds, "plain", "guided"),
        "without evaluations : plain, time": timing.ratio(seconds, "free", "plain"),
        "plain again : plain, time": timing.ratio(seconds, "again", "plain"),
    }


@click.command()
@click.option(
    "--model",
    required=True,
    help="Folder of SmolLM2 (convert_smollm2.py makes it), or 7b for random weights in "
    "the shape of a 7B model.",
)
@click.option("--tokenizer", help="With 7b: the folder whose tokenizer to use.")
@click.option("--bits", default=4, show_default=True, help="With 7b: bits per weight.")
@click.option("--sizes", default="base,mini", show_default=True)
@click.option("--batches", default="1,8", show_default=True)
@click.option("--newlines", default="30,3", show_default=True)
@click.option("--steps", default=30, show_default=True, help="Steps of a round.")
@click.option("--rounds", default=15, show_default=True)
@click.option(
    "--turn",
    type=int,
    help="Steps that a variant makes before the next has its turn [default: 1 on the "
    "CPU, where MLX runs in step with the host; a round on a GPU].",
)
@click.option("--temp", default=0.0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    model: str,
    tokenizer: str | None,
    bits: int,
    sizes: str,
    batches: str,
    newlines: str,
    steps: int,
    rounds: int,
    turn: int | None,
    temp: float,
    output: Path | None,
) -> None:
    """Compares guided generation with plain mlx-lm."""
    if model == "7b":
        if tokenizer is None:
            raise click.UsageError("7b needs --tokenizer, a folder with a tokenizer.")
        loaded, words = (
            workload.random_7b(bits),
            mlx_lm.utils.load_tokenizer(Path(tokenizer)),
        )
        dtype = mx.float16
    else:
        (loaded, words), dtype = workload.load_smollm2(Path(model)), mx.float32
    if turn is None:
        turn = 1 if mx.default_device() == mx.cpu else steps
    args = loaded.args
    rows = []
    for size in sizes.split(","):
        predictor = workload.make_predictor(
            args.hidden_size, args.num_hidden_layers, args.vocab_size, size, dtype
        )
        for batch in map(int, batches.split(",")):
            for every in map(int, newlines.split(",")):
                click.echo(f"{size}, batch {batch}, newline every {every}", err=True)
                work = Work(loaded, words, batch, every, temp)
                row = {"predictor": size, "batch": batch, "newline every": every}
                rows.append({**row, **compare(work, predictor, rounds, steps, turn)})
    timing.report("Guided generation against plain mlx-lm", rows, output)


if __name__ == "__main__":
    main()
