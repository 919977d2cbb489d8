"""The guided step of one request: from a prediction to the token that is drawn.

Knows the method and how tokens are drawn; nothing of the reply or of when to guide.

B is the batch (always 1 here), K the number of candidates, V the vocabulary.
"""

import math
from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method import candidates
from ..method.guidance import Window, quantile_lengths
from ..method.predictor import Outputs, Predictor, ReplyProgress
from .draws import TokenDraw, at_temperature_1
from .recorder import ForwardPass
from .settings import Sampling, ThinkingBudget
from .sharing import first_token, predict


def window_after(thinking: ThinkingBudget, used: int) -> Window:
    """What is left of a budget's bounds, in tokens still to come.

    Bounds are of thinking without the closing marker, which a window counts: both are
    one more in a window. A budget without a lower bound is the published b: it starts
    at the budget and falls by 1 with every token, never below 1.

    Args:
        thinking (ThinkingBudget): The budget, in tokens.
        used (int): Tokens of thinking so far.
    """
    low, high = thinking.bounds
    most = math.inf if high is None else max(high - used + (low > 0), 1)
    return Window(most, low - used + 1 if used < low else 0)


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
        is_small = predictor.known_tokens is not None
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
        outputs = self._outputs(logprobs, forward, row, others, ReplyProgress())
        token = first_token(self.predictor, logprobs)
        concentration, rate = self.predictor.parameters_of(outputs(None))
        return quantile_lengths((0.5,), concentration[0, token], rate[0, token])[0]

    def choose(
        self,
        logprobs: mx.array,
        forward: ForwardPass,
        row: int,
        others: Callable[[], Sequence[int]],
        window: Window,
        progress: ReplyProgress,
        position: int,
    ) -> tuple[mx.array, bool]:
        """Draws the token at a position of the reply.

        Args:
            logprobs, forward, row, others: As in `expected_length`.
            window (Window): Tokens that thinking may still take.
            progress (ReplyProgress): Of the reply.
            position (int): Index of the token in its reply.

        Returns:
            tuple[mx.array, bool]: The token, shape (1,), and whether all tokens that
            the predictor knows were evaluated, not the likeliest alone.
        """
        outputs = self._outputs(logprobs, forward, row, others, progress)
        is_full = False

        def log_weights(tokens: mx.array | None) -> mx.array:
            nonlocal is_full
            weights = self.predictor.log_weights(outputs(tokens), window)
            if tokens is None:
                is_full = True
                weights = self.predictor.over_vocabulary(weights, -mx.inf)
            return weights

        guided = candidates.guided_logprobs(
            logprobs, log_weights, self._temp, self._tolerance, candidates.CANDIDATES
        )
        return self._draw(guided, position), is_full

    def _outputs(
        self,
        logprobs: mx.array,
        forward: ForwardPass,
        row: int,
        others: Callable[[], Sequence[int]],
        progress: ReplyProgress,
    ) -> Callable[[mx.array | None], Outputs]:
        """Gives the predictor's outputs for the tokens that it is called with."""
        predictor, vocab_size = self.predictor, logprobs.shape[-1]
        if not predictor.reads_states:
            predictor.check_vocabulary(vocab_size)
            return lambda tokens: predictor.outputs(None, progress, tokens)
        predictor.check_sizes(*forward.sizes(), vocab_size)
        prediction = predict(predictor, forward, row, others)
        return lambda tokens: prediction.outputs(row, progress, tokens)
