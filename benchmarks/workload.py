"""What the benchmarks run: models, predictors, and thinking with newlines as wanted.

Language models and predictors are real in size and work. Where there is no download
their weights are random, which costs the same; a text that means something is not
needed to time it.
"""

import copy
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.qwen2 import Model, ModelArgs
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_budget import Predictor, PredictorConfig, load
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.sizes import SIZES

MARKERS = {"thinking_start": "", "thinking_end": "</think>"}
# DeepSeek-R1-Distill-Qwen-7B's config.json.
SHAPE_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": 152064,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def load_smollm2(folder: Path) -> tuple[nn.Module, TokenizerWrapper]:
    """SmolLM2-135M-Instruct from the folder that convert_smollm2.py makes."""
    model, tokenizer, _ = load(str(folder), predictor=False)
    return model, tokenizer


def random_7b(bits: int) -> nn.Module:
    """A 7B language model with random weights, quantised layer by layer."""
    model = Model(ModelArgs(**SHAPE_7B))
    nn.quantize(_without_weights(model), group_size=64, bits=bits)
    rng = np.random.default_rng(0)
    filled = []
    for name, like in tree_flatten(model.parameters()):
        if like.dtype == mx.uint32:
            words = rng.integers(0, 2**32, like.size, dtype=np.uint32)
            value = mx.array(words).reshape(like.shape)
        elif name.endswith("scales"):
            value = mx.full(like.shape, 0.002, dtype=mx.float16)
        elif name.endswith(".biases"):
            value = mx.full(like.shape, -0.001 * 2**bits, dtype=mx.float16)
        else:
            value = (mx.ones if "norm" in name else mx.zeros)(like.shape, mx.float16)
        mx.eval(value)
        filled.append((name, value))
    model.update(tree_unflatten(filled))
    return model.eval()


def twin(module: nn.Module) -> nn.Module:
    """The same model on the same weights, for a variant that must not touch another."""

    def copied(value):
        if isinstance(value, nn.Module):
            return twin(value)
        if isinstance(value, list):
            return [copied(v) for v in value]
        if isinstance(value, dict):
            return {k: copied(v) for k, v in value.items()}
        return value

    other = copy.copy(module)
    for name, value in module.items():
        other[name] = copied(value)
    return other


def make_predictor(
    width: int, layers: int, vocab_size: int, size: str = "base", dtype=mx.float32
) -> Predictor:
    """A predictor with random weights whose predictions guidance trusts.

    Concentrations are around 60 and rates around 14: lengths of some tens of tokens.

    Args:
        width: D of the language model.
        layers: N of the language model.
        vocab_size: V.
        size: One of `mlx_budget.method.sizes.SIZES`.
        dtype: Type of its weights.
    """
    mx.random.seed(0)
    predictor = EncoderPredictor(
        PredictorConfig("benchmark", width, layers, vocab_size, **SIZES[size])
    )
    p = SIZES[size]["width"]
    # The encoding has a constant part, along which both heads find their means.
    constant = 2.0 * mx.where(mx.random.bernoulli(shape=(p,)), 1, -1)
    predictor.layers[-1].output_norm.bias = constant
    heads = (
        (predictor.concentration_head, 60.0, 8.0),
        (predictor.rate_head, 14.0, 1.0),
    )
    for head, mean, spread in heads:
        noise = mx.random.normal((vocab_size, p), scale=spread / (5 * p) ** 0.5)
        head.weight = mean * constant / (4 * p) + noise
    predictor.set_dtype(dtype)
    mx.eval(predictor.parameters())
    return predictor.eval()


class NewlineEvery:
    """A logits processor: newlines at set places of the reply and nowhere else.

    The reply neither ends nor closes its thinking.

    Args:
        tokenizer: The model's.
        vocab_size: V.
        every: A newline as every so-manieth token of the reply; 0 for none.
        prompt_tokens: Length of the prompt.
        offset: How many tokens earlier the first newline comes.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        vocab_size: int,
        every: int,
        prompt_tokens: int,
        offset: int = 0,
    ):
        self._every = every
        self._first = prompt_tokens - offset
        newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
        ids = np.arange(vocab_size)
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer.get_vocab()))]
        banned = {i for i, t in enumerate(texts) if "\n" in t or "<" in t or "/" in t}
        banned = list(banned | set(tokenizer.eos_token_ids))
        self._between = mx.array(np.where(np.isin(ids, banned), -np.inf, 0))
        self._newline = mx.array(np.where(ids == newline, 0, -np.inf))
        self._between = self._between.astype(mx.float32)
        self._newline = self._newline.astype(mx.float32)
        mx.eval(self._between, self._newline)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        step = tokens.shape[0] - self._first
        here = self._every and step % self._every == self._every - 1
        return logits + (self._newline if here else self._between)


class FreePredictor(EncoderPredictor):
    """A predictor whose evaluations cost nothing: what is left is guidance's own."""

    def __init__(self, predictor: Predictor):
        super().__init__(predictor.config)
        self.update(predictor.parameters())
        states = mx.zeros((1, self.config.model_layers + 1, self.config.model_width))
        self._x = super().encode(states)
        self._outputs = super().head_outputs(self._x)
        mx.eval(self._x, self._outputs)

    def encode(self, hidden_states: mx.array) -> mx.array:
        """The same encoding for every row."""
        return mx.broadcast_to(self._x, (hidden_states.shape[0], self._x.shape[1]))

    def head_outputs(self, encoding: mx.array, tokens: mx.array | None = None):
        """The first outputs, whatever the candidates."""
        rows = encoding.shape[0]
        k = self.config.vocab_size if tokens is None else tokens.shape[1]
        return tuple(mx.broadcast_to(o[:, :k], (rows, k)) for o in self._outputs)


def _without_weights(model: nn.Module) -> nn.Module:
    # Nothing is computed until it is used, and all of it is replaced.
    return model.apply(lambda a: mx.zeros(a.shape, dtype=mx.float16))
