"""Thinking budgets for reasoning models on Apple Silicon, with MLX and mlx-lm.

Budget Guidance: Li, Zhao, Zhang, Gan, "Steering LLM Thinking with Budget Guidance",
arXiv 2506.13752.
"""

__all__ = [
    "BatchReplies",
    "BatchReply",
    "BudgetResponse",
    "Predictor",
    "PredictorConfig",
    "PlannedReply",
    "ThinkingEstimate",
    "batch_generate",
    "convert",
    "estimate",
    "generate",
    "load",
    "make_budget_sampler",
    "plan",
    "stream_batch_generate",
    "stream_generate",
    "stream_plan",
]

# Type checkers take it for true. `typing` has the same, at the cost of its import.
TYPE_CHECKING = False

if TYPE_CHECKING:
    __version__: str
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
    from .planning.run import PlannedReply, plan, stream_plan
else:
    from .lazy import import_when_used

    __getattr__, __dir__ = import_when_used(
        __name__,
        {
            "__version__": "version",
            "BatchReplies": "engine.batch",
            "BatchReply": "engine.batch",
            "BudgetResponse": "engine.generate",
            "Predictor": "method.predictor",
            "PredictorConfig": "method.predictor_config",
            "PlannedReply": "planning.run",
            "ThinkingEstimate": "engine.estimate",
            "batch_generate": "engine.batch",
            "convert": "models.convert",
            "estimate": "engine.estimate",
            "generate": "engine.generate",
            "load": "models.loading",
            "make_budget_sampler": "engine.sampler",
            "plan": "planning.run",
            "stream_batch_generate": "engine.batch",
            "stream_generate": "engine.generate",
            "stream_plan": "planning.run",
        },
    )
