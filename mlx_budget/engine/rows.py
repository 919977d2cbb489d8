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

ONE_SAMPLER_PER_REQUEST = (
    "The budget sampler was called without a one-token forward pass of its own model "
    "before it. Use one sampler per request; speculative decoding (draft_model) cannot "
    "be combined with a thinking budget."
)
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
        # First: what is collected as garbage from here on is not the last to follow.
        _followers += 1
        if _original is not None:
            return
        try:
            _original = _find_step()
        except ValueError:
            _followers -= 1
            raise
        _set_step(_telling(_original))


def unfollow_batches() -> None:
    """Ends one `follow_batches`; with the last one mlx-lm is as it was before."""
    global _followers, _original
    with _changing:
        _followers -= 1
        if _followers == 0 and _original is not None:
            _set_step(_original)
            _original = None


class BatchStep:
    """One step of a batch: its rows, and which of them our samplers have sampled.

    Attributes:
        samplers: Of the rows, in their order.
    """

    def __init__(self, samplers: Sequence[Any]):
        self.samplers = samplers
        self._claimed: list[int] = []

    def claim(self, sampler: Any) -> int:
        """The row of a sampler that is called in this step.

        A sampler that is wrapped in another function is not among the samplers of the
        batch: it has the row after the last one, since rows are sampled in order.

        Raises:
            ValueError: If it is the sampler of several rows, or of none.
        """
        rows = [row for row, other in enumerate(self.samplers) if other is sampler]
        row = rows[0] if rows else max(self._claimed, default=-1) + 1
        if len(rows) > 1 or row in self._claimed or row >= len(self.samplers):
            raise ValueError(ONE_SAMPLER_PER_REQUEST)
        self._claimed.append(row)
        return row

    def check(self) -> None:
        """Raises a ValueError if our samplers have sampled some rows and not others."""
        if 0 < len(self._claimed) < len(self.samplers):
            raise ValueError(
                f"Only {len(self._claimed)} of {len(self.samplers)} rows of the batch "
                "were sampled by budget samplers. Make one for every request of the "
                "batch (thinking_budget=None for those without a budget)."
            )


def current_step() -> BatchStep | None:
    """The batch's step that runs in this thread; None in mlx-lm's single loop."""
    return getattr(_this_thread, "step", None)


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


def _set_step(step: Callable) -> None:
    batch: Any = GenerationBatch
    batch._step = step


def _telling(step: Callable) -> Callable:
    @functools.wraps(step)
    def step_telling_samplers(self: GenerationBatch) -> Any:
        before, here = current_step(), BatchStep(self.samplers or [])
        _this_thread.step = here
        try:
            tokens = step(self)
        finally:
            _this_thread.step = before
        here.check()
        return tokens

    return step_telling_samplers
