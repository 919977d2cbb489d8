"""How likely a model finds each token of a text.

Knows models and KV caches; nothing of replies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from ..ranks import mirrored

# Positions at a time: their logits, over the whole vocabulary, are in memory at once.
_CHUNK = 128


@dataclass(frozen=True)
class TokenScore:
    """How likely a token was.

    Attributes:
        token: Its id.
        logprob: Its log-probability in nats; None for the first token of a text.
        top: The likeliest tokens in its place, each with its log-probability, the
            likeliest first.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@mirrored()
def score_tokens(model: nn.Module, tokens: Sequence[int], top: int) -> list[TokenScore]:
    """The scores of all tokens of a text.

    Args:
        model (nn.Module): mlx-lm's model.
        tokens (Sequence[int]): Of the text.
        top (int): How many of the likeliest tokens to tell for each.
    """
    cache: Any = make_prompt_cache(model)
    scores = [TokenScore(tokens[0], None)]
    for begin in range(0, len(tokens) - 1, _CHUNK):
        read = list(tokens[begin : min(begin + _CHUNK, len(tokens) - 1)])
        told = list(tokens[begin + 1 : begin + 1 + len(read)])
        logits = model(mx.array(read)[None], cache=cache)[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        chosen = mx.take_along_axis(logprobs, mx.array(told)[:, None], axis=-1)
        values: Any = chosen[:, 0].tolist()
        likeliest = likeliest_tokens(logprobs, top)
        for token, value, best in zip(told, values, likeliest, strict=True):
            scores.append(TokenScore(token, value, best))
    return scores


def likeliest_tokens(
    logprobs: mx.array, count: int
) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row of log-probabilities, shape (S, V)."""
    count = min(count, logprobs.shape[-1])
    if count <= 0:
        return [()] * len(logprobs)
    if count < logprobs.shape[-1]:
        tokens = mx.argpartition(-logprobs, count - 1, axis=-1)[:, :count]
    else:
        tokens = mx.argsort(-logprobs, axis=-1)
    values = mx.take_along_axis(logprobs, tokens, axis=-1)
    order = mx.argsort(-values, axis=-1)
    ids: Any = mx.take_along_axis(tokens, order, axis=-1).tolist()
    found: Any = mx.take_along_axis(values, order, axis=-1).tolist()
    return [tuple(zip(i, v, strict=True)) for i, v in zip(ids, found, strict=True)]
