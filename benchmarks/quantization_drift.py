"""How far quantisation moves the guidance of a golden checkpoint.

Replays the golden sequences and compares weights and guided probabilities with the
float32 reference, then generates and compares tokens; knows nothing of speed. Needs a
fixture in the layout of tests/fixtures/bg-qwen2-tiny.
"""

import json
import os
import tempfile
from pathlib import Path

import click
import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_budget import convert, load, make_budget_sampler
from mlx_budget.engine.recorder import HiddenStateRecorder
from mlx_budget.method import guidance

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "bg-qwen2-tiny"
# The reference's numbers are those of float32, where some devices would multiply in
# TF32. MLX asks for this at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# Bits of the language model and of the predictor.
SETTINGS = ((None, None), (None, 8), (None, 4), (8, 8), (4, 8), (4, 4))


def guided_steps(parts, case: dict, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and guided distribution at a case's first guided steps, (steps, V)."""
    model, _, predictor = parts
    prompt = case["prompt_ids"]
    wanted = dict(zip(case["guided_steps"], case["remaining"], strict=True))
    cache, found = make_prompt_cache(model), []
    model(mx.array([prompt[:-1]]), cache=cache)
    recorder = HiddenStateRecorder.acquire(model)
    for step, token in enumerate([prompt[-1], *case["guided_tokens"]]):
        logits = model(mx.array([[token]]), cache=cache)[:, -1]
        states = recorder.last.states([0])
        if step in wanted and len(found) < steps:
            weights = guidance.log_weights(*predictor(states), wanted[step])
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            guided = guidance.guided_logprobs(logprobs, weights)
            found.append((np.array(mx.exp(weights))[0], np.array(mx.exp(guided))[0]))
    recorder.release()
    weights, probabilities = zip(*found, strict=True)
    return np.stack(weights), np.stack(probabilities)


def golden_weights(arrays, case: dict) -> np.ndarray:
    """The reference's weights at the same steps."""
    alpha, lam = (mx.array(arrays[f"{case['id']}.{name}"]) for name in ("alpha", "lam"))
    left = mx.array(case["remaining"][: len(alpha)], dtype=mx.float32)[:, None]
    return np.array(mx.exp(guidance.log_weights(alpha, lam, left)))


def common_tokens(parts, case: dict) -> tuple[int, int]:
    """Tokens that agree with the golden ones before the first that does not, of all."""
    model, tokenizer, predictor = parts
    sampler = make_budget_sampler(
        model,
        tokenizer,
        predictor,
        prompt=case["prompt_ids"],
        thinking_budget=case["budget"],
        hard_stop=None,
    )
    responses = mlx_lm.stream_generate(
        model,
        tokenizer,
        case["prompt_ids"],
        sampler=sampler,
        max_tokens=case["max_new"],
    )
    tokens = [r.token for r in responses]
    sampler.close()
    golden = case["guided_tokens"]
    pairs = zip(tokens, golden, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(golden))
    return same, len(golden)


@click.command()
@click.option("--fixture", default=FIXTURE, type=click.Path(path_type=Path))
@click.option("--heads", default=4, help="Attention heads of the fixture's predictor.")
def main(fixture: Path, heads: int) -> None:
    """Prints a table of distances to the golden weights, probabilities and tokens."""
    cases = json.loads((fixture / "golden.json").read_text())
    arrays = np.load(fixture / "golden.npz")
    click.echo(
        "model  predictor  weights  mean TV  median TV  max TV  same best token  "
        "whole replies  tokens before the first that differs"
    )
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
            distances, same, weights, common = [], [], [], []
            for case in cases:
                golden = arrays[f"{case['id']}.probs"]
                weight, found = guided_steps(parts, case, len(golden))
                weights.append(np.abs(weight - golden_weights(arrays, case)).mean())
                common.append(common_tokens(parts, case))
                distances += list(np.abs(found - golden).sum(axis=1) / 2)
                same += list(found.argmax(axis=1) == golden.argmax(axis=1))
        click.echo(
            f"{bits or 'f32':>5}  {predictor_bits or 'f32':>9}  "
            f"{np.mean(weights):7.4f}  "
            f"{np.mean(distances):7.4f}  {np.median(distances):9.4f}  "
            f"{np.max(distances):6.4f}  {np.mean(same):15.0%}  "
            f"{sum(a == b for a, b in common):>8} of {len(common)}  "
            f"{sum(a for a, _ in common) / sum(b for _, b in common):.0%}"
        )


if __name__ == "__main__":
    main()
