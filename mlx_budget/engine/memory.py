"""Memory that stays where it is while a model is at work, and whether there is enough.

Knows MLX's limits, and what a model and a predictor hold; nothing of what they do.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_reduce
from mlx_lm.generate import generation_stream

# Of the most that is recommended; as in mlx-lm.
_CLOSE = 0.9


@contextmanager
def wired() -> Iterator[None]:
    """Lets MLX keep in memory all that the system recommends, as long as it lasts.

    mlx-lm's loops do so while they generate. Without it macOS may take the weights of a
    large model out of memory between two passes, and fetch them again for each.
    """
    most = _recommended()
    if most is None:
        yield
        return
    former = mx.set_wired_limit(most)
    try:
        yield
    finally:
        # It must not change while something is being computed.
        mx.synchronize(generation_stream)
        mx.synchronize()
        mx.set_wired_limit(former)


def size_note(model: nn.Module, predictor: object = None) -> str | None:
    """What to say of a model and a predictor that are too large for this machine.

    Args:
        model (nn.Module): The model.
        predictor (object): Of the model; anything else than a module counts nothing.
    """
    most = _recommended()
    if most is None:
        return None
    needed, of_predictor = _bytes_of(model), _bytes_of(predictor)
    if needed + of_predictor <= _CLOSE * most:
        return None
    return (
        f"The weights take {_mb(needed + of_predictor)} MB, {_mb(of_predictor)} of "
        f"them the predictor's, which is close to the {_mb(most)} MB that this machine "
        "recommends at most, or beyond: it can be slow. Use fewer bits, or "
        "--predictor none."
    )


def tell_of_size(model: nn.Module, predictor: object = None) -> None:
    """Says once on stderr if a model and a predictor are too large; see `size_note`."""
    if (note := size_note(model, predictor)) is not None:
        _say_once(note)


@cache
def _say_once(note: str) -> None:
    print(f"Warning: {note}", file=sys.stderr, flush=True)


def _recommended() -> int | None:
    return mx.device_info().get("max_recommended_working_set_size")  # type: ignore


def _bytes_of(held: object) -> int:
    if not isinstance(held, nn.Module):
        return 0
    return tree_reduce(
        lambda total, leaf: total + (leaf.nbytes if isinstance(leaf, mx.array) else 0),
        held,
        0,
    )


def _mb(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f}"
