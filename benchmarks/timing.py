"""Paired timing: every variant in turn, round after round, in one process.

A machine that is busy slows all variants of a round alike, so ratios are taken round by
round. Knows nothing of what is timed.
"""

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import mlx.core as mx
import numpy as np

Rounds = dict[str, list[float]]


def run_rounds(variants: dict[str, Callable[[], float | None]], rounds: int) -> Rounds:
    """Times every variant in every round, after one round to warm up.

    Each round begins with another variant, so that none gains by its place.

    Args:
        variants: By name; each returns the seconds that count, or None for all that
            the call took.
        rounds: How often each is timed.

    Returns:
        Rounds: Seconds of each round, by variant.
    """
    seconds: Rounds = {name: [] for name in variants}
    names = list(variants)
    steps = [
        (r, names[(r + 1 + i) % len(names)])
        for r in range(-1, rounds)
        for i in range(len(names))
    ]
    with click.progressbar(steps, label="Timing", file=sys.stderr) as bar:
        for round_, name in bar:
            start = time.perf_counter()
            own = variants[name]()
            taken = time.perf_counter() - start if own is None else own
            if round_ >= 0:
                seconds[name].append(taken)
    return seconds


def run_in_turns(
    variants: dict[str, Callable[[], object]], rounds: int, steps: int, turn: int
) -> Rounds:
    """Times variants that go on step by step, a few steps each in turn.

    A turn ends when the device is done: what one has handed over is not to be waited
    for by the next.

    Args:
        variants: By name; each call makes one step.
        rounds: How many rounds to time, after one to warm up.
        steps: Steps of each variant in a round.
        turn: Steps that a variant makes before the next has its turn.

    Returns:
        Rounds: Seconds of the steps of each round, by variant.
    """
    names = list(variants)
    seconds: Rounds = {name: [0.0] * (rounds + 1) for name in names}
    order = random.Random(0)  # none gains by its place or by its neighbours
    turns = [r for r in range(rounds + 1) for _ in range(steps // turn)]
    with click.progressbar(turns, label="Timing", file=sys.stderr) as bar:
        for round_ in bar:
            order.shuffle(names)
            for name in names:
                start = time.perf_counter()
                for _ in range(turn):
                    variants[name]()
                mx.synchronize()
                seconds[name][round_] += time.perf_counter() - start
    return {name: each[1:] for name, each in seconds.items()}


def ratio(seconds: Rounds, name: str, base: str) -> dict[str, float]:
    """``name`` divided by ``base``, round by round: median and quartiles."""
    each = np.array(seconds[name]) / np.array(seconds[base])
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75))
    return {"median": float(middle), "low": float(low), "high": float(high)}


def median(seconds: list[float]) -> float:
    """The median, as a plain float."""
    return float(np.median(seconds))


def evaluate(make: Callable[[], object]) -> Callable[[], None]:
    """A variant that builds arrays and waits for them."""
    return lambda: mx.eval(make())


def machine() -> dict[str, str | int]:
    """What the timings were taken on: cores, memory, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "device": mx.default_device().type.name,
        "blas_preloaded": Path(os.environ.get("LD_PRELOAD", "")).name,
    }
    for package in ("mlx", "mlx-lm", "mlx-budget"):
        found[package] = version(package)
    return found


def report(title: str, rows: list[dict], output: Path | None) -> None:
    """Prints rows as a Markdown table and writes them as JSON.

    Args:
        title: What the table shows.
        rows: One dictionary for each line, all with the same keys.
        output: The JSON file, or None.
    """
    cells = [[_cell(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    click.echo(f"\n{title}\n")
    for line in lines:
        click.echo(f"| {' | '.join(line)} |")
    if output is not None:
        result = {"title": title, "machine": machine(), "rows": rows}
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        click.echo(f"\nWritten to {output}.", err=True)


def _cell(value) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
