"""Only the candidates that matter: the guided distribution from the likeliest tokens.

A token of negligible probability cannot win, so the predictor's heads and the weights
are evaluated for the likeliest tokens alone, as long as the result is provably that of
the whole vocabulary to a tolerance. Knows nothing of predictors or models. B is the
batch, K the number of candidates, V the vocabulary.
"""

from collections.abc import Callable

import mlx.core as mx

from . import guidance

CANDIDATES = 1024
DEFAULT_TOLERANCE = 1e-3


def guided_logprobs(
    logprobs: mx.array,
    log_weights: Callable[[mx.array | None], mx.array],
    temp: float,
    tolerance: float,
    candidates: int,
) -> mx.array:
    """`guidance.guided_logprobs`, from the weights of the likeliest tokens if they do.

    At a temperature of 0 they do if the best of them is better than any other token
    could be, so that the argmax is that of the whole vocabulary. Above 0 they do if
    `total_variation_bound` is within the tolerance. To know, the host waits for the
    device, once for each guided step; with a tolerance of 0 it does not.

    Args:
        logprobs (mx.array): The model's log-probabilities, in nats, shape (B, V).
        log_weights (Callable): Gives the log-weights (B, K) of the tokens (B, K) that
            it is called with, or those of the vocabulary, (B, V), for None.
        temp (float): Temperature of the distribution to guide, >= 0.
        tolerance (float): Largest total variation distance to the result of the whole
            vocabulary, 0 to 1; 0 means that the whole vocabulary is always evaluated.
        candidates (int): K, how many tokens to try first.

    Returns:
        mx.array: float32 log-probabilities, shape (B, V).
    """
    vocab_size = logprobs.shape[-1]
    if tolerance > 0 and candidates < vocab_size:
        order = mx.argpartition(logprobs, vocab_size - candidates, axis=-1)
        others, tokens = mx.split(order, [vocab_size - candidates], axis=-1)
        kept = mx.take_along_axis(logprobs, tokens, axis=-1).astype(mx.float32)
        guided = (kept / temp if temp > 0 else kept) + log_weights(tokens)
        if temp > 0:
            left_out = mx.take_along_axis(logprobs, others, axis=-1)
            left_out = left_out.astype(mx.float32) / temp
            enough = total_variation_bound(guided, left_out) <= tolerance
            enough = enough & (guided.max(axis=-1) > -mx.inf)
        else:
            # No weight exceeds 1, and no token left out is likelier than these.
            enough = guided.max(axis=-1) > kept.min(axis=-1)
        if mx.all(enough).item():
            guided = guided - mx.logsumexp(guided, axis=-1, keepdims=True)
            nothing = mx.full(logprobs.shape, -mx.inf, dtype=mx.float32)
            return mx.put_along_axis(nothing, tokens, guided, axis=-1)
    return guidance.guided_logprobs(logprobs, log_weights(None), temp)


def total_variation_bound(guided: mx.array, left_out: mx.array) -> mx.array:
    """A bound on the distance of the candidates' distribution from the full one.

    With Z the guided mass of the candidates and R that of the tokens left out, the full
    distribution puts R / (Z + R) outside the candidates and is proportional to theirs
    inside, so that this is the total variation distance. No weight exceeds 1, so R is
    at most the mass M that the tokens left out have without guidance.

    Args:
        guided (mx.array): Log-probability plus log-weight of the candidates, in nats,
            not normalised, shape (B, K).
        left_out (mx.array): Log-probabilities of all other tokens at the same scale,
            shape (B, V - K).

    Returns:
        mx.array: M / (Z + M), shape (B,); 1 if no candidate has any weight.
    """
    z = mx.logsumexp(guided, axis=-1)
    m = mx.logsumexp(left_out, axis=-1)
    return mx.where(z > -mx.inf, mx.sigmoid(m - z), 1.0)
