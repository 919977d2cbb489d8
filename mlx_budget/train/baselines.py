"""What lengths alone say: one Gamma distribution for all positions, and one per token.

Any predictor has to beat them to be worth its training. Knows tokens and lengths;
nothing of hidden states, of predictors or of files.

K is the number of tokens that were seen.
"""

import math
from dataclasses import dataclass

import numpy as np

# A token seen less often has too few lengths for a distribution of its own, too.
from ..method.certain import LEAST_COUNT

MAX_CONCENTRATION = 1e4

_SHIFT = 10


@dataclass(frozen=True, eq=False)
class TokenGammas:
    """The likeliest Gamma distribution of log(L + 1) for each token that comes next.

    A token that was seen less than `LEAST_COUNT` times, or never, has that of all.

    Attributes:
        tokens: Ascending, shape (K,).
        parameters: Concentration and rate of each, shape (2, K).
        overall: Concentration and rate of all lengths together.
        certain: L of the tokens that leave nothing open, shape (K,): they always came
            with one length, `LEAST_COUNT` times or more, or of 1, the closing marker's.
            0 for the others.
    """

    tokens: np.ndarray
    parameters: np.ndarray
    overall: tuple[float, float]
    certain: np.ndarray

    def at(self, tokens: np.ndarray) -> np.ndarray:
        """Concentration and rate where these tokens come next, shape (2, n)."""
        rows, is_known = self._rows(tokens)
        overall = np.array(self.overall)[:, None]
        return np.where(is_known, self.parameters[:, rows], overall)

    def is_open(self, tokens: np.ndarray) -> np.ndarray:
        """Where the length is open although the next token is known, shape (n,)."""
        rows, is_known = self._rows(tokens)
        return ~(is_known & (self.certain[rows] > 0))

    def _rows(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.searchsorted(self.tokens, tokens).clip(max=len(self.tokens) - 1)
        return rows, self.tokens[rows] == tokens


def fit_tokens(tokens: np.ndarray, lengths: np.ndarray) -> TokenGammas:
    """Fits a Gamma distribution for each token.

    Args:
        tokens (np.ndarray): What came next at each of n >= 1 positions.
        lengths (np.ndarray): L there, integers >= 1, shape (n,).
    """
    x = np.log1p(lengths.astype(np.float64))
    overall = fit_gamma(x)
    known, rows = np.unique(tokens, return_inverse=True)
    parameters, certain = [], []
    for row in range(len(known)):
        own = rows == row
        is_often = own.sum() >= LEAST_COUNT
        parameters.append(fit_gamma(x[own]) if is_often else overall)
        longest = lengths[own].max()
        is_same = lengths[own].min() == longest
        is_certain = is_same and (is_often or longest == 1)
        certain.append(longest if is_certain else 0)
    return TokenGammas(known, np.array(parameters).T, overall, np.array(certain))


def fit_gamma(log_lengths: np.ndarray) -> tuple[float, float]:
    """The Gamma distribution under which samples are likeliest.

    Solves log(a) - digamma(a) = log(mean x) - mean(log x) for the concentration a by
    Newton's method in 1/a (Minka, "Estimating a Gamma distribution", 2002).

    Args:
        log_lengths: Samples x = log(L + 1), > 0, one or more.

    Returns:
        tuple[float, float]: Concentration and rate. The concentration is at most
        `MAX_CONCENTRATION`, which equal samples have.

    Raises:
        ValueError: If there are no samples, or not all are above 0 and finite.
    """
    x = np.asarray(log_lengths, np.float64)
    if not x.size or not np.all((x > 0) & (x < np.inf)):
        raise ValueError("A Gamma distribution can be fitted to numbers above 0 alone.")
    mean = x.mean()
    spread = math.log(mean) - np.log(x).mean()
    if spread <= math.log(MAX_CONCENTRATION) - _digamma(MAX_CONCENTRATION):
        return MAX_CONCENTRATION, float(MAX_CONCENTRATION / mean)
    a = (3 - spread + math.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)
    for _ in range(100):
        excess = math.log(a) - _digamma(a) - spread
        new = 1 / (1 / a + excess / (a * a * (1 / a - _trigamma(a))))
        converged = abs(new - a) <= 1e-12 * a
        a = new
        if converged:
            break
    return float(a), float(a / mean)


def _digamma(a: float) -> float:
    """Derivative of log Gamma at a > 0 (DLMF 5.11.2, carried down by 5.5.2)."""
    x = a + _SHIFT
    r = 1 / (x * x)
    series = r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r / 132))))
    return math.log(x) - 0.5 / x - series - sum(1 / (a + k) for k in range(_SHIFT))


def _trigamma(a: float) -> float:
    """Derivative of `_digamma`."""
    x = a + _SHIFT
    r = 1 / (x * x)
    series = r / x * (1 / 6 - r * (1 / 30 - r * (1 / 42 - r * (1 / 30 - r * 5 / 66))))
    return 1 / x + 0.5 * r + series + sum((a + k) ** -2 for k in range(_SHIFT))
