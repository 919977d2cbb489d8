"""The distribution of a length that is certain.

The closing marker has L = 1, and a heading that is always followed by the same few
tokens always has the same L. A Gamma distribution is fitted to such lengths never
narrowly enough, and what is left of its width is enough to be wrong by: six tokens
would have a chance to fit into five. Knows lengths alone; nothing of predictors.
"""

import mlx.core as mx
import numpy as np

# Standard deviations of 0.1 % of log(L + 1) tell lengths below 50 tokens apart.
CONCENTRATION = 1e6
# A token seen less often may have come with one length by chance.
LEAST_COUNT = 10
# Shares of the squares that sums in float32 may be wrong by.
_ROUNDING = 1e-6


def mean_of(lengths: mx.array) -> mx.array:
    """The mean of log(L + 1), in nats, that stands for a length that is certain.

    It is that of half a token less, so that L tokens are enough and L - 1 are not.

    Args:
        lengths (mx.array): L, of any shape.

    Returns:
        mx.array: float32, of the same shape.
    """
    return mx.log1p(lengths.astype(mx.float32) - 0.5)


def parameters_of(lengths: mx.array) -> tuple[mx.array, mx.array]:
    """Concentration and rate of lengths that are certain, float32, of their shape."""
    mean = mean_of(lengths)
    return mx.full(mean.shape, CONCENTRATION), CONCENTRATION / mean


def certain_lengths(sums: np.ndarray) -> np.ndarray:
    """The lengths of the tokens that always came with the same one.

    Args:
        sums (np.ndarray): Of 1, x and x^2 with x = log(L + 1), for each of K tokens,
            shape (3, K).

    Returns:
        np.ndarray: L, int64, shape (K,); 0 for a token that came with several, or less
        than `LEAST_COUNT` times.
    """
    number, total, squares = sums
    mean = total / np.maximum(number, 1)
    is_same = squares - mean * total <= _ROUNDING * squares
    lengths = np.rint(np.expm1(mean)).astype(np.int64)
    return np.where(is_same & (number >= LEAST_COUNT), lengths, 0)
