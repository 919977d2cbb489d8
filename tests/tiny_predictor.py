"""A predictor small enough to be made anew in every test."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.guidance import GuidanceThresholds
from mlx_budget.method.predictor import Predictor
from mlx_budget.method.predictor_config import PredictorConfig

# An epsilon large enough to be seen in the output.
TINY = PredictorConfig(
    base_model="tiny",
    model_width=64,
    model_layers=3,
    vocab_size=11,
    width=32,
    layers=2,
    heads=4,
    intermediate=64,
    layer_norm_eps=0.1,
    thresholds=GuidanceThresholds(12, 2, 0.5),
)

# The same with what predictors of our own have.
OURS = replace(TINY, norm="pre", standardize_inputs=True)


def make_tiny(
    dtype: mx.Dtype = mx.float32, config: PredictorConfig = TINY
) -> EncoderPredictor:
    """A predictor in which every tensor counts."""
    predictor, rng = EncoderPredictor(config), np.random.default_rng(0)

    def draw(like: mx.array) -> mx.array:
        scale = 0.3 if like.ndim == 2 else 1.0
        return mx.array(rng.normal(0, scale, like.shape), dtype=dtype)

    predictor.update(tree_map(draw, predictor.parameters()))
    return predictor.eval()


def hidden_states(rows: int = 2) -> mx.array:
    rng = np.random.default_rng(1)
    shape = (rows, TINY.model_layers + 1, TINY.model_width)
    return mx.array(rng.normal(0, 1, shape), dtype=mx.float32)


def tensors(predictor: Predictor) -> dict[str, mx.array]:
    return dict(tree_flatten(predictor.parameters()))
