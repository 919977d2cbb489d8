"""The predictors that are not trained step by step: counted, or solved for.

Knows positions and hidden states; nothing of files, records or of the run.

n is the number of positions, N the number of decoder layers, D the model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..method.linear import LinearPredictor, Probe
from ..method.table import LengthCounts, TablePredictor
from .dataset import GuidedPositions
from .report import Predictions

# Share of the training records on which layer and penalty are chosen.
_CHOICE_SHARE = 5
# No more layers than these are tried, evenly spread, the last one among them.
_MOST_LAYERS = 16
# Penalties, in mean eigenvalues of the states' second moments.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# What a probe leaves of the variance at least, however well it does where it is chosen.
_LEAST_LEFT = 0.05

# Hidden states of positions, by their places, at a layer: shape (n, D).
ReadLayer = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Base:
    """What a table has of its language model.

    Attributes:
        name: Of the model.
        vocab_size: V.
        closing: First token of the closing marker, and the marker's tokens.
    """

    name: str
    vocab_size: int
    closing: tuple[int, int]


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
    """The table of the training positions, and a ridge probe of what it leaves.

    Layer and penalty are those that leave least on every fifth training record, the
    probe is then solved for on all.

    Args:
        base, p: As in `make_table`.
        read (ReadLayer): Reads hidden states of positions.
        layers (int): N.
    """
    is_open = ~p.is_validation & (p.tokens != base.closing[0])
    for_choice = is_open & (p.record % _CHOICE_SHARE == 0)
    # The table that a choice is made with must not have seen what it is made on.
    is_seen = ~p.is_validation & (p.record % _CHOICE_SHARE != 0)
    left, layer, penalty = 1.0, layers, np.inf
    if for_choice.any() and (is_open & is_seen).any():
        table = make_table(base, p, np.flatnonzero(is_seen))
        seen, chosen = np.flatnonzero(is_open & is_seen), np.flatnonzero(for_choice)
        residuals = _residuals(table, p, seen), _residuals(table, p, chosen)
        for tried in _spread(layers):
            states = read(seen, tried), read(chosen, tried)
            for size, share in _try_penalties(states, residuals):
                if share < left:
                    left, layer, penalty = share, tried, size
    rows = np.flatnonzero(is_open)
    table = make_table(base, p, np.flatnonzero(~p.is_validation))
    weight, bias = np.zeros(read(rows[:1], layer).shape[1]), 0.0
    if np.isfinite(penalty):
        centred, mean = _centred(read(rows, layer))
        weight = _ridge(centred, _residuals(table, p, rows), (penalty,))[0]
        bias = -float(mean @ weight)
    left = max(left, _LEAST_LEFT)
    probe = Probe(
        layer, layers, weight.astype(np.float32), bias, max(left, _LEAST_LEFT)
    )
    return LinearPredictor(
        base.name, base.vocab_size, base.closing, table.counts, probe
    )


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
    return Predictions(
        concentration=concentration,
        rate=rate,
        lengths=p.lengths[rows],
        is_first=p.is_first[rows],
        train_lengths=p.lengths[~p.is_validation],
    )


def _residuals(
    table: TablePredictor, p: GuidedPositions, rows: np.ndarray
) -> np.ndarray:
    """What a table leaves of log(L + 1), in nats, shape (n,)."""
    concentration, rate = table.at_positions(p.tokens[rows], p.thinking_tokens[rows])
    return np.log1p(p.lengths[rows]) - concentration / rate


def _spread(layers: int) -> list[int]:
    number = min(_MOST_LAYERS, layers + 1)
    return sorted({round(i) for i in np.linspace(0, layers, number)})


def _try_penalties(
    states: tuple[np.ndarray, np.ndarray], residuals: tuple[np.ndarray, np.ndarray]
) -> list[tuple[float, float]]:
    """Each penalty, with the share of the other positions' variance that it leaves."""
    (seen, mean), other = _centred(states[0]), states[1]
    weights = _ridge(seen, residuals[0], _PENALTIES)
    other = other - mean
    before = np.square(residuals[1]).sum()
    return [
        (size, float(np.square(residuals[1] - other @ weight).sum() / before))
        for size, weight in zip(_PENALTIES, weights, strict=True)
    ]


def _centred(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = states.mean(axis=0, dtype=np.float64)
    return states - mean, mean


def _ridge(x: np.ndarray, y: np.ndarray, penalties: tuple[float, ...]) -> np.ndarray:
    """Ridge regression (Hoerl and Kennard, 1970), shape (penalties, D).

    The smaller of the two systems of equations is solved: that of D unknowns, or its
    dual of n.
    """
    n, width = x.shape
    is_dual = n < width
    moments = x @ x.T if is_dual else x.T @ x
    unit = np.trace(moments) / min(n, width)
    identity = np.eye(len(moments))
    target = y if is_dual else x.T @ y
    found = [
        np.linalg.solve(moments + size * max(unit, 1e-30) * identity, target)
        for size in penalties
    ]
    return np.array([x.T @ f if is_dual else f for f in found])
