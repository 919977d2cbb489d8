"""Makes predictors: a model's own reasoning, and training on it."""

from .loop import Progress, TrainResult, train
from .options import TrainOptions
from .traces import write_traces

__all__ = ["Progress", "TrainOptions", "TrainResult", "train", "write_traces"]
