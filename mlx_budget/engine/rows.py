"""Which row of a batch belongs to which sampler.

mlx-lm's `GenerationBatch` keeps its samplers in the order of its rows, whoever joins or
leaves, and calls them one by one without saying which row is whose. While it is
followed, its step tells this thread the samplers first. Knows mlx-lm's batch; nothing
of what samplers do.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import mlx_lm
from mlx_lm.generate import GenerationBatch

_this_thread = threading.local()
# A sampler that is collected as garbage stops following, wherever a thread is then.
_changing = threading.RLock()
_followers = 0
_original: Callable | None = None


def follow_batches() -> None:
    """Begins to follow mlx-lm's batches; each call needs an `unfollow_batches`.

    Raises:
        ValueError: If this release of mlx-lm has no batch that can be followed.
    """
    global _followers, _original
    with _changing:
        step = _find_step()
        _followers += 1
        if _original is None:
            _original = step
            GenerationBatch._step = _telling(step)


def unfollow_batches() -> None:
    """Ends one `follow_batches`; with the last one mlx-lm is as it was before."""
    global _followers, _original
    with _changing:
        _followers -= 1
        if _followers == 0:
            GenerationBatch._step = _original
            _original = None


def samplers_of_step() -> Sequence[Any] | None:
    """The samplers of the batch whose step runs in this thread, one for each row.

    Returns:
        Sequence or None: None outside of such a step, as in mlx-lm's single loop.
    """
    return getattr(_this_thread, "samplers", None)


def _find_step() -> Callable:
    step = getattr(GenerationBatch, "_step", None)
    parameters = inspect.signature(GenerationBatch.__init__).parameters
    if step is None or "samplers" not in parameters:
        raise ValueError(
            f"A thinking budget does not know the batches of mlx-lm "
            f"{mlx_lm.__version__}: mlx_lm.generate.GenerationBatch has changed. "
            "Install another mlx-lm (0.31.3 and 0.32.2 were tested) or a newer "
            "mlx-budget."
        )
    return step


def _telling(step: Callable) -> Callable:
    @functools.wraps(step)
    def step_telling_samplers(self: GenerationBatch) -> Any:
        before = samplers_of_step()
        _this_thread.samplers = self.samplers
        try:
            return step(self)
        finally:
            _this_thread.samplers = before

    return step_telling_samplers
