"""Makes predictors: a model's own reasoning, and training on it."""

from ..lazy import import_when_used

__all__ = ["Progress", "TrainOptions", "TrainResult", "train", "write_traces"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .loop import Progress, TrainResult, train
    from .options import TrainOptions
    from .traces import write_traces
else:
    __getattr__, __dir__ = import_when_used(
        __name__,
        {
            "Progress": "loop",
            "TrainOptions": "options",
            "TrainResult": "loop",
            "train": "loop",
            "write_traces": "traces",
        },
    )
