"""Whether a predictor's output depends on its input.

A deep encoder that is trained too fast can lose its input for good: it then says the
same for every hidden state, its loss is that of one Gamma distribution for each token,
and no other number shows it. Knows predicted distributions and lengths; nothing of
models or of training.
"""

import numpy as np

# Below this share of the lengths' own spread predictions count as all the same.
LEAST_RESPONSE = 0.001


class CollapsedError(ValueError):
    """Raised in place of writing a predictor that does not see its input."""


def response(
    concentration: np.ndarray, rate: np.ndarray, tokens: np.ndarray, lengths: np.ndarray
) -> float | None:
    """How much predictions differ between inputs, where the next token is the same.

    It is the standard deviation of the predicted mean of log(L + 1) around its mean for
    each token, divided by the standard deviation of the true log(L + 1) around its own
    mean for each token: what the predictor makes of hidden states, as a share of what
    is left to explain once the token is known. Predictions that are right on average
    correlate with the lengths as much as this share says. At `LEAST_RESPONSE`, 0.001,
    it would take four million replies to tell such a correlation from none: nobody can
    make use of it, and nothing is lost by calling it none. Encoders that collapsed had
    4e-7 to 4e-5, rounding included; what learned something had more than 0.1.

    Args:
        concentration, rate (np.ndarray): Predicted at n positions, for the token that
            came next, shape (n,).
        tokens (np.ndarray): That token, shape (n,).
        lengths (np.ndarray): The true L, shape (n,).

    Returns:
        float: 0 or more; None where the tokens leave no lengths to explain, or a
        prediction is not a finite number.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        predicted = np.asarray(concentration, np.float64) / rate
    true = np.log1p(np.asarray(lengths, np.float64))
    left = _within(true, tokens)
    # One token with one length, in the arithmetic of float64, has no variance.
    if not left > 1e-12 or not np.isfinite(predicted).all():
        return None
    return float(np.sqrt(_within(predicted, tokens) / left))


def has_collapsed(found: float | None) -> bool:
    """Whether a `response` is that of a predictor that does not see its input."""
    return found is not None and found < LEAST_RESPONSE


def _within(values: np.ndarray, tokens: np.ndarray) -> float:
    """Mean squared distance from the mean of the values of the same token."""
    if not len(values):
        return 0.0
    _, rows, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    means = np.bincount(rows, values) / counts
    return float(np.mean((values - means[rows]) ** 2))
