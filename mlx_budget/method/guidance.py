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
# Candidates without any chance to end in the window keep this much of their chance to
# end before its upper bound, in nats: too little to count beside one that has a chance,
# and all there is to choose by where none has.
LOG_OUTSIDE = -200.0
# Stands for log(L + 1) of an endless L: above that of any number of tokens.
LOG_ENDLESS = 1000.0

Tokens = mx.array | float


@dataclass(frozen=True)
class Window:
    """The event that thinking is conditioned on: ``least <= L <= most``.

    L is the number of thinking tokens still to come. It counts the candidate itself and
    the closing marker, so that the closing marker has L = 1. Both bounds are numbers,
    or hold one for each row, shape (B, 1).

    Attributes:
        most: Most tokens still to come, >= 1; infinity for no ceiling.
        least: Fewest tokens still to come, at most ``most``; 0 or 1 for no floor.

    Raises:
        ValueError: If the bounds are numbers that no length can meet.
    """

    most: Tokens = math.inf
    least: Tokens = 0

    def __post_init__(self) -> None:
        most, least = self.most, self.least
        if isinstance(most, mx.array) or isinstance(least, mx.array):
            return
        if not (most >= 1 and least <= most):
            raise ValueError(
                f"A window must end at 1 token or later, and not before it begins: "
                f"not at {most} for one that begins at {least}."
            )

    @property
    def has_floor(self) -> bool:
        """Whether ``least`` rules anything out, in one row at least it may."""
        return isinstance(self.least, mx.array) or self.least > 1

    def log_bounds(self) -> tuple[mx.array, mx.array]:
        """``log(L + 1)`` of the longest length within and of the longest below.

        Returns:
            tuple[mx.array, mx.array]: float32, each of shape () or (B, 1). The first is
            `LOG_ENDLESS` for no ceiling, the second 0 for no floor.
        """
        most = mx.minimum(length_to_log(self.most), LOG_ENDLESS)
        least = mx.array(self.least, dtype=mx.float32)
        return most, mx.log(mx.maximum(least, 1))


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
    window: Window | Tokens,
    thresholds: GuidanceThresholds = GuidanceThresholds(),
) -> mx.array:
    """Log of the weight of each candidate token, in nats.

    The weight is the probability that thinking, with this candidate next, ends within
    the window: with F the CDF of the Gamma distribution of log(L + 1),
    ``F(log(most + 1)) - F(log(least))``, and 0 for candidates outside the thresholds.
    Without a floor it is that of Budget Guidance (arXiv 2506.13752, §3),
    ``F(log(b + 1))``, bit for bit. docs/method.md derives both.

    Args:
        concentration (mx.array): Predicted concentrations, shape (B, V).
        rate (mx.array): Predicted rates, shape (B, V).
        window (Window, mx.array or float): The event; tokens b of budget left, >= 1, a
            number or one for each row, shape (B, 1), stand for ``Window(b)``.
        thresholds (GuidanceThresholds): Which predictions to trust.

    Returns:
        mx.array: float32, shape (B, V); -inf where the weight is 0. With a floor, see
        `log_event_weights` for candidates outside the window.
    """
    window = as_window(window)
    log_most, log_below = window.log_bounds()
    at_most = gamma.log_cdf(log_most, concentration, rate)
    at_most = mx.where(log_most < LOG_ENDLESS, at_most, 0)
    weights = at_most
    if window.has_floor:
        below = gamma.log_cdf(log_below, concentration, rate)
        weights = log_event_weights(at_most, below, log_below > 0)
    trusted = thresholds.trust(concentration, rate) & (at_most > LOG_SMALLEST_WEIGHT)
    return mx.where(trusted, weights, -mx.inf)


def as_window(window: Window | Tokens) -> Window:
    """The window itself, or the one that ends so many tokens from here."""
    return window if isinstance(window, Window) else Window(window)


def log_event_weights(
    log_at_most: mx.array, log_below: mx.array, has_floor: mx.array
) -> mx.array:
    """Log-weights of a window from a distribution of L of any kind, in nats.

    Candidates whose chance to end within the window is below the smallest weight keep
    ``exp(LOG_OUTSIDE)`` of their chance to end before its upper bound. Beside a
    candidate with a chance that counts for nothing; where none has one, the choice is
    the published one. The closing marker, which has L = 1, is the caller's to leave
    out of a window with a floor.

    Args:
        log_at_most (mx.array): log P(L <= most) of each candidate, shape (B, V).
        log_below (mx.array): log P(L < least), likewise.
        has_floor (mx.array): Whether a row's window has a floor, shape () or (B, 1).

    Returns:
        mx.array: float32, shape (B, V).
    """
    # Differences of probabilities cancel in neither tail if they are taken in logs:
    # log_cdf holds 1 - P near P = 1 as well as P near 0.
    inside = log_at_most + mx.log(-mx.expm1(mx.minimum(log_below - log_at_most, 0)))
    outside = log_at_most + LOG_OUTSIDE
    weights = mx.where(inside > LOG_SMALLEST_WEIGHT, inside, outside)
    return mx.where(has_floor, weights, log_at_most)


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
