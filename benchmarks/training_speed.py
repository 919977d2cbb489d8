"""Training on cached states of few positions against encoding everything, every time.

"Everything" is what the method says literally: for each record the language model runs,
the predictor encodes every thinking position, and both heads are evaluated over the
whole vocabulary. "Ours" is `mlx_budget.train`: hidden states of the positions where
guidance acts, computed once for all epochs, and the rows of the heads that are needed.
Both make AdamW updates; a run is so many epochs over the same records.
"""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

import timing
import workload
from mlx_budget import PredictorConfig
from mlx_budget.engine.recorder import hidden_states_at
from mlx_budget.method import gamma
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.guidance import length_to_log
from mlx_budget.method.sizes import SIZES
from mlx_budget.train.cache import CachedRecord, StateCache
from mlx_budget.train.learner import Learner

STEP_SIZE = 512


class Records:
    """Random tokens with a newline every so often; the prompt is left out of account.

    Args:
        count: Number of records.
        length: Thinking tokens of each.
        every: Distance of the positions where guidance acts.
        vocab_size: V.
        kinds: How many different tokens come next at such positions.
    """

    def __init__(self, count: int, length: int, every: int, vocab_size: int, kinds=300):
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, vocab_size, (count, length + 1))
        self.positions = np.arange(1, length + 1, every)
        common = rng.choice(vocab_size, kinds, replace=False)
        shape = count, len(self.positions)
        self.tokens[:, self.positions] = rng.choice(common, shape)
        self.lengths = length + 1 - np.arange(1, length + 1)


def updates_of(learner: nn.Module, loss: Callable) -> Callable[..., None]:
    """One AdamW update on what it is called with."""
    optimizer = optim.AdamW(1e-4)
    loss_and_gradients = nn.value_and_grad(learner, loss)

    def update(*batch: mx.array) -> None:
        _, gradients = loss_and_gradients(*batch)
        optimizer.update(learner, gradients)
        mx.eval(learner.parameters(), optimizer.state)

    return update


def everything(
    model: nn.Module, records: Records, config: PredictorConfig
) -> Callable[[], None]:
    """An epoch of literal training, a record at a time."""
    predictor = EncoderPredictor(config)
    mx.eval(predictor.parameters())

    def loss(states: mx.array, tokens: mx.array, lengths: mx.array) -> mx.array:
        outputs = predictor(states)  # (S, V) each
        concentration, rate = (
            mx.take_along_axis(o, tokens[:, None], axis=1)[:, 0] for o in outputs
        )
        return -gamma.log_pdf(length_to_log(lengths), concentration, rate).mean()

    update = updates_of(predictor, loss)

    def epoch() -> None:
        for tokens in records.tokens:
            everywhere = range(len(tokens) - 1)
            parts = hidden_states_at(model, tokens, everywhere, STEP_SIZE)
            states = mx.concatenate([s for s, _ in parts])
            update(states, mx.array(tokens[1:]), mx.array(records.lengths))

    return epoch


def ours(
    model: nn.Module, records: Records, config: PredictorConfig, folder: Path
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Filling the cache, and an epoch on it in batches of 64 positions."""
    positions = records.positions
    n = len(positions)
    next_tokens = records.tokens[:, positions].reshape(-1)
    lengths = np.tile(records.lengths[positions - 1], len(records.tokens))
    known = np.unique(next_tokens)
    shape = config.model_layers + 1, config.model_width
    cache = StateCache(folder, shape, "float16", {})
    config = PredictorConfig(**{**vars(config), "known_tokens": len(known)})
    learner = Learner(config, known, next_tokens, lengths)
    mx.eval(learner.parameters())
    rows = np.searchsorted(known, next_tokens)
    update = updates_of(learner, lambda *batch: learner.losses(*batch).mean())

    def fill() -> None:
        for i, tokens in enumerate(records.tokens):
            parts = hidden_states_at(model, tokens, positions - 1, STEP_SIZE)
            states = mx.concatenate([s for s, _ in parts])
            record = CachedRecord(
                str(i),
                False,
                tokens[positions].tolist(),
                records.lengths[positions - 1].tolist(),
                [True] * n,
                [False] * n,
                [None] * n,
            )
            cache.append(record, states)

    def epoch() -> None:
        order = np.random.permutation(len(rows))
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            update(cache.read(batch), mx.array(rows[batch]), mx.array(lengths[batch]))

    return fill, epoch


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and the most memory that MLX held beyond what it held before, in GB."""
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start, (mx.get_peak_memory() - before) / 1e9


@click.command()
@click.option("--model", required=True, help="Folder of SmolLM2.")
@click.option("--size", type=click.Choice(list(SIZES)), default="mini")
@click.option("--records", "count", default=8, show_default=True)
@click.option("--length", default=300, show_default=True, help="Tokens of a record.")
@click.option("--every", default=30, show_default=True, help="Distance of newlines.")
@click.option("--epochs", default=10, show_default=True, help="Epochs of a whole run.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--vocabularies", default="49152,152064", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    model: str,
    size: str,
    count: int,
    length: int,
    every: int,
    epochs: int,
    rounds: int,
    vocabularies: str,
    output: Path | None,
) -> None:
    """Compares records/s and memory of the two ways to train."""
    loaded, _ = workload.load_smollm2(Path(model))
    args = loaded.args
    rows = []
    for vocab_size in map(int, vocabularies.split(",")):
        # The predictor's vocabulary may be larger than the model's: its rows cost the
        # same, whatever they mean.
        config = PredictorConfig(
            "benchmark",
            args.hidden_size,
            args.num_hidden_layers,
            vocab_size,
            **SIZES[size],
        )
        records = Records(count, length, every, args.vocab_size)
        seconds = {"everything": [], "ours": []}
        for round_ in range(rounds + 1):
            click.echo(f"V = {vocab_size:,}: round {round_} of {rounds}", err=True)
            literal, literal_memory = measure(everything(loaded, records, config))
            with TemporaryDirectory() as folder:
                fill, epoch = ours(loaded, records, config, Path(folder))
                filling, _ = measure(fill)
                training, memory = measure(epoch)
            if round_:  # the first is to warm up
                seconds["everything"].append(literal)
                seconds["ours"].append(filling / epochs + training)
        rows.append(
            {
                "vocabulary": vocab_size,
                "everything, records/s": count / timing.median(seconds["everything"]),
                "ours, records/s": count / timing.median(seconds["ours"]),
                "ours : everything": timing.ratio(seconds, "everything", "ours"),
                "everything, GB": literal_memory,
                "ours, GB": memory,
            }
        )
    timing.report("Training, records/s of an epoch", rows, output)


if __name__ == "__main__":
    main()
