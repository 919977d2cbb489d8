"""Budget left, Gamma parameters and log-probabilities to guided log-probabilities.

Pure functions on arrays; knows nothing of models, predictors or generation loops. B is
the batch, V the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import cast

import mlx.core as mx

from . import gamma

# The smallest normal float32: a weight below it is 0, as it is in the reference, whose
# float32 CDF underflows there.
LOG_SMALLEST_WEIGHT = -87.33654


@dataclass(frozen=True)
class GuidanceThresholds:
    """Which candidates' predictions are trusted: the others get weight 0.

    The defaults are those of the reference implementation of Budget Guidance
    (arXiv 2506.13752).

    Attributes:
        min_rate: Smallest rate of a candidate's Gamma distribution.
        min_concentration: Its concentration must exceed this.
        min_mode: Smallest mode of its remaining length, in tokens.
    """

    min_rate: float = 10.0
    min_concentration: float = 1.0
    min_mode: float = 0.9

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, not {value!r}.")
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and >= 0, not {value}.")

    def trust(self, concentration: mx.array, rate: mx.array) -> mx.array:
        """Which predictions pass, elementwise; booleans of the arguments' shape."""
        return (
            (rate >= self.min_rate)
            & (concentration > self.min_concentration)
            & (gamma.mode(concentration, rate) >= math.log1p(self.min_mode))
        )


def length_to_log(tokens: mx.array | float) -> mx.array:
    """``log(L + 1)``, the variable that is Gamma distributed, of a length in tokens."""
    return mx.log1p(mx.array(tokens, dtype=mx.float32))


def log_to_length(x: mx.array) -> mx.array:
    """The length L in tokens of ``x = log(L + 1)``."""
    return mx.expm1(x)


def quantile_lengths(
    shares: tuple[float, ...], concentration: mx.array, rate: mx.array
) -> list[float]:
    """Quantiles of the length L, in tokens, of one distribution of log(L + 1).

    Args:
        shares (tuple[float, ...]): From 0 to 1.
        concentration, rate (mx.array): Of the Gamma distribution, shape ().
    """
    quantiles = gamma.quantile(mx.array(shares), concentration, rate)
    return cast(list[float], log_to_length(quantiles).tolist())


def log_weights(
    concentration: mx.array,
    rate: mx.array,
    remaining: mx.array | float,
    thresholds: GuidanceThresholds = GuidanceThresholds(),
) -> mx.array:
    """Log of the weight of each candidate token, in nats (arXiv 2506.13752, §3).

    The weight is the probability that thinking, with this candidate next, ends within
    the remaining budget b: ``GammaCDF(log(b + 1); concentration, rate)``, and 0 for
    candidates outside the thresholds.

    Args:
        concentration (mx.array): Predicted concentrations, shape (B, V).
        rate (mx.array): Predicted rates, shape (B, V).
        remaining (mx.array or float): Tokens of budget left, >= 1, a number or one for
            each row, shape (B, 1).
        thresholds (GuidanceThresholds): Which predictions to trust.

    Returns:
        mx.array: float32, shape (B, V); -inf where the weight is 0.
    """
    x = length_to_log(remaining)
    weights = gamma.log_cdf(x, concentration, rate)
    trusted = thresholds.trust(concentration, rate) & (weights > LOG_SMALLEST_WEIGHT)
    return mx.where(trusted, weights, -mx.inf)


def guided_logprobs(
    logprobs: mx.array, log_weights: mx.array, temp: float = 1.0
) -> mx.array:
    """The guided distribution: ``softmax(logprobs / temp) * weight``, normalised.

    A row in which every weight is 0 becomes certain of the model's own argmax.

    Args:
        logprobs (mx.array): The model's log-probabilities, in nats, shape (B, V).
        log_weights (mx.array): From `log_weights`, shape (B, V).
        temp (float): Temperature of the distribution to guide; 0 guides the
            distribution at temperature 1, whose argmax is wanted.

    Returns:
        mx.array: float32 log-probabilities, shape (B, V).
    """
    logprobs = logprobs.astype(mx.float32)
    scaled = logprobs / temp if temp > 0 else logprobs
    guided = scaled + log_weights
    # A candidate the model rules out (-inf) stays out, whatever its weight.
    possible = mx.any(guided > -mx.inf, axis=-1, keepdims=True)
    best = mx.argmax(logprobs, axis=-1, keepdims=True)
    is_best = mx.arange(logprobs.shape[-1]) == best
    guided = mx.where(possible, guided, mx.where(is_best, 0.0, -mx.inf))
    return guided - mx.logsumexp(guided, axis=-1, keepdims=True)
