"""A predictor at 16, 8 and 4 bits: its size on disk, and what quantisation changes.

BERT-base size, for V = 151,936 (Qwen3). The weights are random, made so that guidance
trusts the predictions; how much a trained predictor changes has to be measured on it
(see quantization_drift.py for one checkpoint).
"""

import tempfile
from pathlib import Path

import click
import mlx.core as mx
import numpy as np

import timing
import workload
from mlx_budget import Predictor
from mlx_budget.method import guidance, kernels

WIDTH, LAYERS = 4096, 36  # Qwen3-8B


def guided(predictor: Predictor, states: mx.array, logprobs: mx.array, left: int):
    """Weights and guided log-probabilities at each position, (positions, V)."""
    outputs = predictor.head_outputs(predictor.encode(states))
    weights = kernels.log_weights(*outputs, left, predictor.config.thresholds)
    return np.array(mx.exp(weights)), np.array(
        guidance.guided_logprobs(logprobs, weights)
    )


@click.command()
@click.option("--vocab-size", default=151936, show_default=True)
@click.option("--size", default="base", show_default=True)
@click.option("--positions", default=8, show_default=True)
@click.option("--budget-left", default=100, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    vocab_size: int, size: str, positions: int, budget_left: int, output: Path | None
) -> None:
    """Compares quantised predictors with the float32 one they are made from."""
    exact = workload.make_predictor(WIDTH, LAYERS, vocab_size, size)
    mx.random.seed(1)
    states = mx.random.normal((positions, LAYERS + 1, WIDTH))
    logits = 4 * mx.random.normal((positions, vocab_size))
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    want_weights, want = guided(exact, states, logprobs, budget_left)
    rows = []
    for bits in (16, 8, 4):
        if bits == 16:
            predictor = workload.make_predictor(
                WIDTH, LAYERS, vocab_size, size, mx.float16
            )
        else:
            predictor = exact.quantize(bits)
            predictor.set_dtype(mx.float16)
        with tempfile.TemporaryDirectory() as folder:
            predictor.save(folder)
            files = [f.stat().st_size for f in Path(folder).iterdir()]
        predictor.set_dtype(mx.float32)
        weights, found = guided(predictor, states, logprobs, budget_left)
        distance = np.abs(np.exp(found) - np.exp(want)).sum(axis=1) / 2
        rows.append(
            {
                "bits": bits,
                "MB on disk": sum(files) / 1e6,
                "mean weight": float(want_weights.mean()),
                "mean change of a weight": float(np.abs(weights - want_weights).mean()),
                "mean TV": float(distance.mean()),
                "highest TV": float(distance.max()),
                "same best token": float((found.argmax(1) == want.argmax(1)).mean()),
            }
        )
        click.echo(f"{bits} bits done", err=True)
    timing.report(f"Predictors of size {size}, V = {vocab_size:,}", rows, output)


if __name__ == "__main__":
    main()
