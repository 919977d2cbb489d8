"""What is trained: a predictor whose heads are shared rows plus one row per token.

The row of a token is what all tokens share plus what is its own, which alone weight
decay pulls to 0: a token seen twice first follows hidden states as any token does.
The first guess, before any update, is a Gamma distribution for each token, all but
blind to hidden states.
Knows the predictor and its loss; nothing of data on disk or of the run.

B is the batch, N decoder layers, D model width, P predictor width, K known tokens.
"""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..method import gamma
from ..method.encoder_predictor import EncoderPredictor
from ..method.guidance import length_to_log
from ..method.predictor_config import PredictorConfig
from .report import fit_gamma

# Lengths of the whole set that a token's own are mixed with for its first guess.
_PRIOR_COUNT = 10
# Concentrations and rates of first guesses: a token with one length only has no Gamma.
LARGEST = 300.0


class Learner(nn.Module):
    """A predictor in training.

    Args:
        config (PredictorConfig): With ``known_tokens`` = K.
        tokens (np.ndarray): The tokens it gets to know, ascending, shape (K,).
        next_tokens (np.ndarray): Of the training positions, for the first guess.
        lengths (np.ndarray): L of the training positions.
    """

    def __init__(
        self,
        config: PredictorConfig,
        tokens: np.ndarray,
        next_tokens: np.ndarray,
        lengths: np.ndarray,
    ):
        super().__init__()
        self.predictor = EncoderPredictor(config)
        _randomize(self.predictor)
        self._tokens = mx.array(tokens, dtype=mx.int32)
        # A constant part of the encoding, along which the first guess lies.
        signs = mx.where(mx.random.bernoulli(shape=(config.width,)), 1.0, -1.0)
        self.predictor.layers[-1].output_norm.bias = signs
        shared, own = _first_guess(tokens, next_tokens, lengths)
        self.shared = mx.array(shared)[:, None] * signs / config.width  # (2, P)
        self.own = mx.array(own)[..., None] * signs / config.width  # (2, K, P)

    def outputs(self, states: mx.array, rows: mx.array) -> tuple[mx.array, mx.array]:
        """Concentration and rate for the token that came next, and for no other.

        Args:
            states (mx.array): Hidden states, shape (B, N + 1, D).
            rows (mx.array): Place of that token among the known ones, shape (B,).

        Returns:
            tuple[mx.array, mx.array]: Shape (B,) each.
        """
        x = self.predictor.encode(states)  # (B, P)
        heads = self.shared[:, None] + self.own[:, rows]  # (2, B, P)
        concentration, rate = nn.softplus((heads * x).sum(axis=-1))
        return concentration, rate

    def losses(self, states: mx.array, rows: mx.array, lengths: mx.array) -> mx.array:
        """Negative log-likelihood of log(L + 1), in nats, at each position.

        Args:
            states, rows: As in `outputs`.
            lengths (mx.array): L, shape (B,).

        Returns:
            mx.array: float32, shape (B,).
        """
        return -gamma.log_pdf(length_to_log(lengths), *self.outputs(states, rows))

    def export(self, known: np.ndarray) -> EncoderPredictor:
        """The predictor as it is now, with heads for some of the tokens.

        Args:
            known (np.ndarray): Places among the K tokens, ascending.
        """
        predictor = EncoderPredictor(
            replace(self.predictor.config, known_tokens=len(known))
        )
        trained = self.predictor.parameters()
        heads = self.shared[:, None] + self.own[:, mx.array(known)]
        trained["concentration_head"], trained["rate_head"] = (
            {"weight": head} for head in heads
        )
        predictor.update({**trained, "tokens": self._tokens[mx.array(known)]})
        predictor.eval()
        return predictor


def _randomize(predictor: EncoderPredictor) -> None:
    """BERT's initial weights: normal with a deviation of 0.02, biases 0."""
    for module in predictor.modules():
        if isinstance(module, nn.Linear):
            module.weight = mx.random.normal(module.weight.shape, scale=0.02)
            if "bias" in module:
                module.bias = mx.zeros_like(module.bias)
    predictor.cls = mx.random.normal(predictor.cls.shape, scale=0.02)
    # The heads are the learner's.
    predictor.freeze(keys=["tokens"])
    predictor.concentration_head.freeze()
    predictor.rate_head.freeze()


def _first_guess(
    tokens: np.ndarray, next_tokens: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Head outputs for all tokens, (2,), and what each token's differ by, (2, K)."""
    x = np.log1p(lengths.astype(np.float64))
    shared = _outputs_of(x)
    places = (np.arange(_PRIOR_COUNT) + 0.5) / _PRIOR_COUNT
    prior = np.quantile(x, places)
    rows = np.searchsorted(tokens, next_tokens)
    own = [
        _outputs_of(np.concatenate([prior, x[rows == row]])) - shared
        for row in range(len(tokens))
    ]
    return shared.astype(np.float32), np.array(own, np.float32).T


def _outputs_of(samples: np.ndarray) -> np.ndarray:
    """Head outputs whose softplus are the likeliest Gamma's parameters, shape (2,)."""
    parameters = np.array(fit_gamma(samples))
    parameters *= min(1, LARGEST / parameters.max())
    return parameters + np.log(-np.expm1(-parameters))
