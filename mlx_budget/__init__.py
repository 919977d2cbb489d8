"""Thinking budgets for reasoning models on Apple Silicon, with MLX and mlx-lm.

Budget Guidance: Li, Zhao, Zhang, Gan, "Steering LLM Thinking with Budget Guidance",
arXiv 2506.13752.
"""

from .engine.batch import (
    BatchReplies,
    BatchReply,
    batch_generate,
    stream_batch_generate,
)
from .engine.estimate import ThinkingEstimate, estimate
from .engine.generate import BudgetResponse, generate, stream_generate
from .engine.sampler import make_budget_sampler
from .method.predictor import Predictor
from .method.predictor_config import PredictorConfig
from .models.convert import convert
from .models.loading import load

__version__ = "0.1.0"

__all__ = [
    "BatchReplies",
    "BatchReply",
    "BudgetResponse",
    "Predictor",
    "PredictorConfig",
    "ThinkingEstimate",
    "batch_generate",
    "convert",
    "estimate",
    "generate",
    "load",
    "make_budget_sampler",
    "stream_batch_generate",
    "stream_generate",
]
