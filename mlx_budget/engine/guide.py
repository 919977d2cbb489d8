"""The guided step of one request: from a prediction to the token that is drawn.

Knows the method and how tokens are drawn; nothing of the reply or of when to guide.

B is the batch (always 1 here), K the number of candidates, V the vocabulary.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method import candidates, kernels
from ..method.guidance import quantile_lengths
from ..method.predictor import Predictor
from .draws import TokenDraw, at_temperature_1
from .recorder import ForwardPass
from .settings import Sampling, ThinkingBudget
from .sharing import SharedPrediction, first_token, predict


class Guide:
    """Draws from the guided distribution.

    Attributes:
        predictor: The predictor whose weights it uses.
    """

    def __init__(
        self,
        predictor: Predictor,
        thinking: ThinkingBudget,
        sampling: Sampling,
        tokenizer: TokenizerWrapper,
    ):
        self.predictor = predictor
        # The tokens that a predictor knows, if not all, are few, and bring no wait.
        is_small = predictor.config.known_tokens is not None
        self._tolerance = 0.0 if is_small else thinking.guidance_tolerance
        self._temp = sampling.temp
        self._draw = TokenDraw(at_temperature_1(sampling), tokenizer)

    def expected_length(
        self,
        logprobs: mx.array,
        forward: ForwardPass,
        row: int,
        others: Callable[[], Sequence[int]],
    ) -> float:
        """The median length, in tokens, of thinking that begins with this step.

        Args:
            logprobs (mx.array): The model's log-probabilities in nats, shape (1, V).
            forward (ForwardPass): The pass that they come from.
            row (int): Their row in it.
            others (Callable): As in `mlx_budget.engine.sharing.predict`.
        """
        prediction = self._predict(logprobs, forward, row, others)
        outputs = prediction.head_outputs(row, None)
        token = first_token(self.predictor, logprobs)
        concentration, rate = self.predictor.parameters_of(outputs)
        return quantile_lengths((0.5,), concentration[0, token], rate[0, token])[0]

    def choose(
        self,
        logprobs: mx.array,
        forward: ForwardPass,
        row: int,
        others: Callable[[], Sequence[int]],
        remaining: int,
        position: int,
    ) -> tuple[mx.array, bool]:
        """Draws the token at a position of the reply.

        Args:
            logprobs, forward, row, others: As in `expected_length`.
            remaining (int): Tokens of budget left, >= 1.
            position (int): Index of the token in its reply.

        Returns:
            tuple[mx.array, bool]: The token, shape (1,), and whether all tokens that
            the predictor knows were evaluated, not the likeliest alone.
        """
        prediction = self._predict(logprobs, forward, row, others)
        config, is_full = self.predictor.config, False

        def log_weights(tokens: mx.array | None) -> mx.array:
            nonlocal is_full
            outputs = prediction.head_outputs(row, tokens)
            weights = kernels.log_weights(*outputs, remaining, config.thresholds)
            if tokens is None:
                is_full = True
                weights = self.predictor.over_vocabulary(weights, -mx.inf)
            return weights

        guided = candidates.guided_logprobs(
            logprobs, log_weights, self._temp, self._tolerance, candidates.CANDIDATES
        )
        return self._draw(guided, position), is_full

    def _predict(
        self,
        logprobs: mx.array,
        forward: ForwardPass,
        row: int,
        others: Callable[[], Sequence[int]],
    ) -> SharedPrediction:
        self.predictor.check_sizes(*forward.sizes(), logprobs.shape[-1])
        return predict(self.predictor, forward, row, others)
