"""A stand-in language model that says a given sequence of tokens, whatever it reads."""

import mlx.core as mx
import mlx.nn as nn

from mlx_budget import Predictor, PredictorConfig
from mlx_budget.method.encoder_predictor import EncoderPredictor

_EOS, _WIDTH = 2, 8


def indifferent_predictor(vocab_size: int = 448) -> Predictor:
    """A predictor for scripted models that trusts no token, so that it favours none."""
    config = PredictorConfig(
        base_model="scripted",
        model_width=_WIDTH,
        model_layers=1,
        vocab_size=vocab_size,
        width=_WIDTH,
        layers=1,
        heads=1,
        intermediate=_WIDTH,
    )
    predictor = EncoderPredictor(config)
    # A rate of log 2 for all: far below the threshold of trust.
    predictor.rate_head.weight = mx.zeros_like(predictor.rate_head.weight)
    return predictor.eval()


class _Layer(nn.Module):
    def __call__(self, x: mx.array, cache=None) -> mx.array:
        if cache is not None:
            # Only the length of the cache matters: it is the position in the script.
            empty = mx.zeros((x.shape[0], 1, x.shape[1], 1))
            cache.update_and_fetch(empty, empty)
        return x


class _Backbone(nn.Module):
    def __init__(self, vocab_size: int, width: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = [_Layer()]
        self.norm = nn.RMSNorm(width)

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        h = self.embed_tokens(inputs)
        for layer, c in zip(self.layers, cache or [None], strict=True):
            h = layer(h, cache=c)
        return self.norm(h)


class ScriptedModel(nn.Module):
    """After a prompt of ``prompt_length`` tokens it wants to say ``script``.

    Its wish at each position does not depend on what was said before, so a token that
    a sampler puts in takes the place of the one in the script.
    """

    def __init__(self, script: list[int], prompt_length: int, vocab_size: int = 448):
        super().__init__()
        self.model = _Backbone(vocab_size, _WIDTH)
        self._script = script
        self._prompt_length = prompt_length
        self._vocab_size = vocab_size

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        start = 0 if cache is None else cache[0].offset
        self.model(inputs, cache)
        wishes = [
            self._wish(position - self._prompt_length + 1)
            for position in range(start, start + inputs.shape[1])
        ]
        wanted = mx.array(wishes)[None, :, None] == mx.arange(self._vocab_size)
        return mx.broadcast_to(
            mx.where(wanted, 10.0, 0.0), (*inputs.shape, self._vocab_size)
        )

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def _wish(self, step: int) -> int:
        return self._script[step] if 0 <= step < len(self._script) else _EOS


class ScriptedBatch(ScriptedModel):
    """A scripted model that knows the positions of the rows of a batch."""

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        start = mx.array(cache[0].offset).reshape(-1, 1)
        steps = start + mx.arange(inputs.shape[1]) - self._prompt_length + 1
        self.model(inputs, cache)
        script = mx.array([*self._script, _EOS])
        wanted = script[mx.clip(steps, 0, len(self._script))][..., None]
        return mx.where(wanted == mx.arange(self._vocab_size), 10.0, 0.0)
