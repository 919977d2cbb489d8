"""The predictors that are not trained step by step: counted, or solved for.

Knows positions and hidden states; nothing of files, records or of the run.

n is the number of positions, N the number of decoder layers, D the model width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..method.linear import LinearPredictor, Probe
from ..method.table import LengthCounts, TablePredictor
from .dataset import GuidedPositions
from .learner import LARGEST
from .report import Predictions

# Of so many training records one serves to choose the layer and the penalty.
_CHOICE_EVERY = 5
# No more layers than these are tried, evenly spread, the last one among them.
_MOST_LAYERS = 16
# Penalties, in mean eigenvalues of the states' second moments; the last is for none to
# be left of the probe.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e6)
# Turns in which table and probe are fitted to what the other one leaves.
_TURNS = 10
# Variances grow by no more than this for a probe that fits what it was fitted to.
_MOST_SPREAD = 4.0

# Hidden states of positions, by their places, at a layer: shape (n, D).
ReadLayer = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Base:
    """What a table has of its language model.

    Attributes:
        name: Of the model.
        vocab_size: V.
        closing: First token of the closing marker.
    """

    name: str
    vocab_size: int
    closing: int


def vocabulary_of(model: nn.Module) -> int:
    """V of a language model; nothing is evaluated."""
    return model(mx.array([[0]])).shape[-1]


def make_table(base: Base, p: GuidedPositions, rows: np.ndarray) -> TablePredictor:
    """The table of some positions.

    Args:
        base (Base): The language model's.
        p (GuidedPositions): All positions.
        rows (np.ndarray): Places of those to count.
    """
    counts = LengthCounts.of(p.tokens[rows], p.thinking_tokens[rows], p.lengths[rows])
    return TablePredictor(base.name, base.vocab_size, base.closing, counts)


def make_linear(
    base: Base, p: GuidedPositions, read: ReadLayer, layers: int
) -> LinearPredictor:
    """A table and a ridge probe, fitted together to the training positions.

    Layer and penalty are those that leave least of log(L + 1) in every fifth training
    record when the others are fitted.

    Args:
        base, p: As in `make_table`.
        read (ReadLayer): Reads hidden states of positions.
        layers (int): N.
    """
    trained = np.flatnonzero(~p.is_validation)
    counted = make_table(base, p, trained)
    is_open = ~p.is_validation & (counted.certain_at(p.tokens) == 0)
    is_held = p.record % _CHOICE_EVERY == 0
    fitted, held = (np.flatnonzero(is_open & which) for which in (~is_held, is_held))
    best, spread = (np.inf, layers, _PENALTIES[-1]), 1.0
    if len(fitted) and len(held):
        for layer in _spread_layers(layers):
            here, there = read(fitted, layer), read(held, layer)
            for penalty, solve in _ridges(here):
                model = _backfit(base, p, fitted, here, solve)
                own, other = (
                    _left(*model, p, *at) for at in ((fitted, here), (held, there))
                )
                if (other, layer, penalty) < best:
                    best = other, layer, penalty
                    spread = other / max(own, 1e-12)
    _, layer, penalty = best
    rows = np.flatnonzero(is_open)
    states = read(rows, layer)
    ((_, solve),) = _ridges(states, (penalty,))
    table, weight, bias = _backfit(base, p, rows, states, solve)
    spread = float(np.clip(spread, 1.0, _MOST_SPREAD))
    probe = Probe(layer, layers, weight.astype(np.float32), bias, spread)
    # Hidden states say nothing of what is certain, so that it is counted as it came.
    certain = make_table(base, p, trained[~is_open[trained]])
    counts = table.counts + certain.counts
    return LinearPredictor(base.name, base.vocab_size, base.closing, counts, probe)


def predictions_of(
    predictor: TablePredictor, p: GuidedPositions, encodings: mx.array | None = None
) -> Predictions:
    """What a predictor says at the validation positions.

    Args:
        predictor (TablePredictor): Or one that is more.
        p (GuidedPositions): All positions.
        encodings (mx.array, optional): Of the validation positions, shape (n, 1).
    """
    rows = np.flatnonzero(p.is_validation)
    concentration, rate = predictor.at_positions(
        p.tokens[rows], p.thinking_tokens[rows], encodings
    )
    # What is certain counts no more than it can count for an encoder.
    certain = predictor.certain_at(p.tokens[rows])
    is_certain = certain > 0
    concentration[is_certain] = LARGEST
    rate[is_certain] = LARGEST / np.log1p(certain[is_certain])
    return Predictions(
        concentration=concentration,
        rate=rate,
        tokens=p.tokens[rows],
        lengths=p.lengths[rows],
        is_first=p.is_first[rows],
        replies=p.record[rows],
        train_tokens=p.tokens[~p.is_validation],
        train_lengths=p.lengths[~p.is_validation],
        prompts={
            name: getattr(p, name)[rows] for name in ("prompt_tokens", "prompt_digits")
        },
    )


Solve = Callable[[np.ndarray], np.ndarray]


def _backfit(
    base: Base, p: GuidedPositions, rows: np.ndarray, states: np.ndarray, solve: Solve
) -> tuple[TablePredictor, np.ndarray, float]:
    """Table, weight and bias, fitted in turns (Hastie and Tibshirani, 1986)."""
    x = np.log1p(p.lengths[rows])
    mean = states.mean(axis=0, dtype=np.float64)
    weight, shifts = np.zeros(states.shape[1]), np.zeros(len(rows))
    for _ in range(_TURNS):
        counts = LengthCounts.of(
            p.tokens[rows], p.thinking_tokens[rows], p.lengths[rows], shifts
        )
        table = TablePredictor(base.name, base.vocab_size, base.closing, counts)
        weight = solve(x - table.means_at(p.tokens[rows], p.thinking_tokens[rows]))
        shifts = (states - mean) @ weight
    return table, weight, -float(mean @ weight)


def _left(
    table: TablePredictor,
    weight: np.ndarray,
    bias: float,
    p: GuidedPositions,
    rows: np.ndarray,
    states: np.ndarray,
) -> float:
    """Mean square of what table and probe leave of log(L + 1)."""
    means = table.means_at(p.tokens[rows], p.thinking_tokens[rows])
    left = np.log1p(p.lengths[rows]) - means - (states @ weight + bias)
    return float(np.square(left).mean())


def _spread_layers(layers: int) -> list[int]:
    number = min(_MOST_LAYERS, layers + 1)
    return sorted({round(i) for i in np.linspace(0, layers, number)})


def _ridges(
    states: np.ndarray, penalties: tuple[float, ...] = _PENALTIES
) -> Iterator[tuple[float, Solve]]:
    """Ridge regressions on states (Hoerl and Kennard, 1970), by their penalty.

    The smaller of the two systems of equations is solved: that of D unknowns, or its
    dual of n.
    """
    x = states - states.mean(axis=0, dtype=np.float64)
    n, width = x.shape
    is_dual = n < width
    moments = x @ x.T if is_dual else x.T @ x
    unit = max(np.trace(moments) / min(n, width), 1e-30)
    for penalty in penalties:
        inverse = np.linalg.inv(moments + penalty * unit * np.eye(len(moments)))

        def solve(y: np.ndarray, inverse: np.ndarray = inverse) -> np.ndarray:
            return x.T @ (inverse @ y) if is_dual else inverse @ (x.T @ y)

        yield penalty, solve
