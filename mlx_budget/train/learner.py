"""What is trained: a predictor whose heads are shared rows plus one row per token.

The row of a token is what all tokens share plus what is its own, which alone weight
decay pulls to 0: a token seen twice first follows hidden states as any token does.
The first guess, before any update, is a Gamma distribution for each token, blind to
hidden states. A deep encoder that had to begin by unlearning what a random one says of
them would lose them: the updates of all its layers add up, and it ends at the same
output for every input.
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
from .baselines import fit_gamma

# Lengths of the whole set that a token's own are mixed with for its first guess.
_PRIOR_COUNT = 10
# The share of the encoding that is constant at first, and carries the first guess.
_CONSTANT_SHARE = 0.25
# The least deviation of a number of a hidden state, by the root mean square of those of
# its layer, that it is scaled by.
_LEAST_DEVIATION = 0.01
# Concentrations and rates of first guesses: a token with one length only has no Gamma.
LARGEST = 300.0


class Learner(nn.Module):
    """A predictor in training.

    Args:
        config (PredictorConfig): With ``known_tokens`` = K.
        tokens (np.ndarray): The tokens it gets to know, ascending, shape (K,).
        next_tokens (np.ndarray): Of the training positions, for the first guess.
        lengths (np.ndarray): L of the training positions.
        moments (tuple): Mean and standard deviation of hidden states, shape (N + 1, D)
            each, of a configuration that standardises them.
    """

    def __init__(
        self,
        config: PredictorConfig,
        tokens: np.ndarray,
        next_tokens: np.ndarray,
        lengths: np.ndarray,
        moments: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        super().__init__()
        self.predictor = EncoderPredictor(config)
        _randomize(self.predictor)
        if moments is not None:
            mean, deviation = moments
            self.predictor.input_mean = mx.array(mean, mx.float32)
            self.predictor.input_scale = mx.array(_scale_of(deviation), mx.float32)
        self._tokens = mx.array(tokens, dtype=mx.int32)
        # The first guess lies along the constants, and nothing along the rest.
        constants = max(1, round(_CONSTANT_SHARE * config.width))
        is_constant = mx.arange(config.width) < constants
        signs = mx.where(mx.random.bernoulli(shape=(config.width,)), 1.0, -1.0)
        signs = mx.where(is_constant, signs, 0.0)
        norm = self.predictor.last_norm
        norm.bias, norm.weight = signs, mx.where(is_constant, 0.0, 1.0)
        guess = mx.array(_first_guess(tokens, next_tokens, lengths))
        # What tokens share is in units of the first guess: parameters differ in size by
        # hundreds, and hidden states change each by much the same share.
        self._unit = mx.maximum(mx.abs(guess), 1)[..., None]  # (2, K, 1)
        self.shared = mx.stack([signs / constants] * 2)  # (2, P)
        self.own = (guess[..., None] - self._unit) * signs / constants  # (2, K, P)

    def heads(self, rows: mx.array) -> mx.array:
        """Rows of the two heads for some of the known tokens.

        Args:
            rows (mx.array): Their places, shape (R,).

        Returns:
            mx.array: Shape (2, R, P).
        """
        return self._unit[:, rows] * self.shared[:, None] + self.own[:, rows]

    def outputs(self, states: mx.array, rows: mx.array) -> tuple[mx.array, mx.array]:
        """Concentration and rate for the token that came next, and for no other.

        Args:
            states (mx.array): Hidden states, shape (B, N + 1, D).
            rows (mx.array): Place of that token among the known ones, shape (B,).

        Returns:
            tuple[mx.array, mx.array]: Shape (B,) each.
        """
        x = self.predictor.encode(states)  # (B, P)
        concentration, rate = nn.softplus((self.heads(rows) * x).sum(axis=-1))
        return concentration, rate

    def losses(self, states: mx.array, rows: mx.array, lengths: mx.array) -> mx.array:
        """Negative log-likelihood of log(L + 1), in nats, at each position.

        Args:
            states, rows: As in `outputs`.
            lengths (mx.array): L, shape (B,).

        Returns:
            mx.array: float32, shape (B,).
        """
        return losses_of(lengths, *self.outputs(states, rows))

    def export(self, known: np.ndarray, certain: np.ndarray) -> EncoderPredictor:
        """The predictor as it is now, with heads for some of the tokens.

        Args:
            known (np.ndarray): Places among the K tokens, ascending.
            certain (np.ndarray): L of each of the K tokens if it is certain, else 0.
                That of the closing marker stays learnt: half a token less than 1 is a
                mode that `GuidanceThresholds` do not trust.
        """
        certain = np.where(certain > 1, certain, 0)[known]
        predictor = EncoderPredictor(
            replace(
                self.predictor.config,
                known_tokens=len(known),
                has_certain_lengths=bool(certain.any()),
            )
        )
        trained = self.predictor.parameters()
        trained["concentration_head"], trained["rate_head"] = (
            {"weight": head} for head in self.heads(mx.array(known))
        )
        trained["tokens"] = self._tokens[mx.array(known)]
        if predictor.config.has_certain_lengths:
            trained["certain_lengths"] = mx.array(certain, mx.int32)
        predictor.update(trained)
        predictor.eval()
        return predictor


def losses_of(lengths: mx.array, concentration: mx.array, rate: mx.array) -> mx.array:
    """Negative log-likelihood of log(L + 1), in nats, elementwise."""
    return -gamma.log_pdf(length_to_log(lengths), concentration, rate)


def _randomize(predictor: EncoderPredictor) -> None:
    """BERT's initial weights: normal with a deviation of 0.02, biases 0.

    What a layer adds to the residual stream is smaller the more layers there are, as in
    GPT-2 (Radford et al., "Language models are unsupervised multitask learners", 2019).
    """
    for module in predictor.modules():
        if isinstance(module, nn.Linear):
            module.weight = mx.random.normal(module.weight.shape, scale=0.02)
            if "bias" in module:
                module.bias = mx.zeros_like(module.bias)
    predictor.cls = mx.random.normal(predictor.cls.shape, scale=0.02)
    for layer in predictor.layers:
        for module in (layer.attention_output, layer.down):
            module.weight = module.weight * (2 * len(predictor.layers)) ** -0.5
    # The heads are the learner's.
    predictor.freeze(recurse=False, keys=["tokens"])
    predictor.concentration_head.freeze()
    predictor.rate_head.freeze()


def _scale_of(deviation: np.ndarray) -> np.ndarray:
    """What to multiply centred hidden states with, shape (N + 1, D).

    A number that hardly varies in training stays small: elsewhere it may vary more.
    """
    usual = np.sqrt(np.mean(deviation**2, axis=-1, keepdims=True))
    least = _LEAST_DEVIATION * usual
    return 1 / np.where(deviation > least, deviation, np.where(usual > 0, usual, 1))


def _first_guess(
    tokens: np.ndarray, next_tokens: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Head outputs for each token, shape (2, K)."""
    x = np.log1p(lengths.astype(np.float64))
    places = (np.arange(_PRIOR_COUNT) + 0.5) / _PRIOR_COUNT
    prior = np.quantile(x, places)
    rows = np.searchsorted(tokens, next_tokens)
    guesses = [
        _outputs_of(np.concatenate([prior, x[rows == row]]))
        for row in range(len(tokens))
    ]
    return np.array(guesses, np.float32).T


def _outputs_of(samples: np.ndarray) -> np.ndarray:
    """Head outputs whose softplus are the likeliest Gamma's parameters, shape (2,)."""
    parameters = np.array(fit_gamma(samples))
    parameters *= min(1, LARGEST / parameters.max())
    return parameters + np.log(-np.expm1(-parameters))
