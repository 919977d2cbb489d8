"""Learning-rate schedules for runs whose number of steps is fixed beforehand.

Knows nothing of models, losses or optimizers: a schedule is a function of the step.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

SCHEDULES = ("constant", "linear", "cosine", "rex", "uba")
UBA_PHI = 1.0


def make_schedule(
    name: str, learning_rate: float, steps: int, warmup: int = 0, phi: float = UBA_PHI
) -> "Callable[[mx.array | int], mx.array]":
    """Makes a learning rate that follows the steps of a run, for mlx.optimizers.

    The first ``warmup`` steps rise on a straight line, from ``learning_rate / (warmup +
    1)``; the step after them has ``learning_rate`` itself. From there, with z the share
    of the remaining steps that is done, from 0 to just below 1:

    - constant: ``learning_rate``
    - linear: ``learning_rate * (1 - z)``
    - cosine: ``learning_rate * (1 + cos(pi z)) / 2``
    - rex: ``learning_rate * (1 - z) / (1/2 + (1 - z)/2)``, of Chen, Wolfe, Kyrillidis,
      "REX: Revisiting Budgeted Training with an Improved Schedule", arXiv 2107.04197
    - uba: ``learning_rate * 2 c / (2 phi + (2 - phi) c)`` with c = 1 + cos(pi z), of
      Tang et al., "Stepsize anything: A unified learning rate schedule for
      budgeted-iteration training", arXiv 2505.24452

    Past the last step all but the constant one are 0.

    Args:
        name: One of `SCHEDULES`.
        learning_rate: The highest learning rate, > 0.
        steps: Number of steps of the run, warm-up included, >= 1.
        warmup: Number of steps of warm-up, >= 0 and < steps.
        phi: Of "uba" alone, > 0: below 2 the learning rate stays high for longer than
            the cosine, which 2 is; above 2 it falls sooner.

    Returns:
        Callable: From the number of steps taken so far, as an optimizer counts them, to
        the learning rate of the next, float32.

    Raises:
        ValueError: On an unknown name or a number out of range.
    """
    _check(name, learning_rate, steps, warmup, phi)
    # Imported here, so that options can be listed without waiting for it.
    import mlx.core as mx

    def schedule(step: "mx.array | int") -> "mx.array":
        # An optimizer counts in unsigned integers, which must not go below 0.
        step = mx.array(step).astype(mx.float32)
        left = mx.clip((steps - step) / (steps - warmup), 0, 1)
        rising = (step + 1) / (warmup + 1)
        return learning_rate * mx.where(
            step < warmup, rising, _share_of_peak(name, left, phi)
        )

    return schedule


def _share_of_peak(name: str, left: "mx.array", phi: float) -> "mx.array":
    """Of the peak learning rate, with ``left`` = 1 - z of the steps to go."""
    import mlx.core as mx

    if name == "constant":
        return mx.ones_like(left)
    if name == "linear":
        return left
    if name == "rex":
        return _hold(left, 1.0)
    # (1 + cos(pi z)) / 2, without its cancellation where it is near 0.
    cosine = mx.square(mx.sin((math.pi / 2) * left))
    return cosine if name == "cosine" else _hold(cosine, phi)


def _hold(share: "mx.array", phi: float) -> "mx.array":
    """Keeps a falling share high for longer (phi < 2) or less long; 1 and 0 stay.

    UBA is this with c = 2 share of a cosine, REX with phi = 1 of a straight line.
    """
    return share / (share + phi / 2 * (1 - share))


def _check(
    name: str, learning_rate: float, steps: int, warmup: int, phi: float
) -> None:
    if name not in SCHEDULES:
        raise ValueError(
            f"The schedule must be one of {', '.join(SCHEDULES)}, not {name!r}."
        )
    for what, value in (("learning rate", learning_rate), ("phi of uba", phi)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"The {what} must be a number above 0, not {value!r}.")
    if not _is_int(steps) or steps < 1:
        raise ValueError(f"The steps must be an integer >= 1, not {steps!r}.")
    if not _is_int(warmup) or not 0 <= warmup < steps:
        raise ValueError(
            f"The warm-up must be an integer >= 0 and below the {steps} steps of the "
            f"run, not {warmup!r}."
        )


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
