"""How far quantisation moves the guided probabilities of a golden checkpoint.

Replays the golden sequences and compares with the float32 reference; knows nothing of
speed. Needs a fixture in the layout of tests/fixtures/bg-qwen2-tiny.
"""

import json
import tempfile
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_budget import convert, guidance, load
from mlx_budget.hidden_states import HiddenStateRecorder

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "bg-qwen2-tiny"
# Bits of the language model and of the predictor.
SETTINGS = ((None, None), (None, 8), (None, 4), (8, 8), (4, 8), (4, 4))


def guided_probabilities(parts, case: dict, steps: int) -> np.ndarray:
    """The guided distribution at the first guided steps of a case, (steps, V)."""
    model, _, predictor = parts
    prompt = case["prompt_ids"]
    wanted = dict(zip(case["guided_steps"], case["remaining"], strict=True))
    cache, rows = make_prompt_cache(model), []
    model(mx.array([prompt[:-1]]), cache=cache)
    recorder = HiddenStateRecorder.acquire(model)
    for step, token in enumerate([prompt[-1], *case["guided_tokens"]]):
        logits = model(mx.array([[token]]), cache=cache)[:, -1]
        states = recorder.states([recorder.next_row(1)])
        if step in wanted and len(rows) < steps:
            weights = guidance.log_weights(*predictor(states), wanted[step])
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            guided = guidance.guided_logprobs(logprobs, weights)
            rows.append(np.array(mx.exp(guided))[0])
    recorder.release()
    return np.stack(rows)


@click.command()
@click.option("--fixture", default=FIXTURE, type=click.Path(path_type=Path))
@click.option("--heads", default=4, help="Attention heads of the fixture's predictor.")
def main(fixture: Path, heads: int) -> None:
    """Prints a table of total variation distances to the golden probabilities."""
    cases = json.loads((fixture / "golden.json").read_text())
    arrays = np.load(fixture / "golden.npz")
    click.echo("model  predictor  mean TV  median TV  max TV  same best token")
    for bits, predictor_bits in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            path = convert(
                str(fixture),
                Path(folder) / "model",
                quantize=bits is not None,
                q_bits=bits,
                predictor_q_bits=predictor_bits,
                predictor_heads=heads,
            )
            parts = load(str(path))
            distances, same = [], []
            for case in cases:
                golden = arrays[f"{case['id']}.probs"]
                found = guided_probabilities(parts, case, len(golden))
                distances += list(np.abs(found - golden).sum(axis=1) / 2)
                same += list(found.argmax(axis=1) == golden.argmax(axis=1))
        click.echo(
            f"{bits or 'f32':>5}  {predictor_bits or 'f32':>9}  "
            f"{np.mean(distances):7.4f}  {np.median(distances):9.4f}  "
            f"{np.max(distances):6.4f}  {np.mean(same):15.0%}"
        )


if __name__ == "__main__":
    main()
