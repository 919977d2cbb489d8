"""Thinking budgets for reasoning models on Apple Silicon, with MLX and mlx-lm.

Budget Guidance: Li, Zhao, Zhang, Gan, "Steering LLM Thinking with Budget Guidance",
arXiv 2506.13752.
"""

from .batch import BatchReplies, BatchReply, batch_generate, stream_batch_generate
from .convert import convert
from .estimate import ThinkingEstimate, estimate
from .generate import BudgetResponse, generate, stream_generate
from .loading import load
from .predictor import Predictor
from .predictor_config import PredictorConfig
from .sampler import make_budget_sampler

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
