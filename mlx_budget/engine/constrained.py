"""The sampler of a request to a model that does not think, with an answer by a grammar.

Knows how tokens are drawn and mlx-lm's batches; nothing of schemas or budgets.
"""

import mlx.core as mx

from .constraint import AnswerConstraint
from .draws import TokenDraw, read_chosen
from .plain import ReplySampler
from .rows import ONE_SAMPLER_PER_REQUEST, current_step


class ConstrainedSampler(ReplySampler):
    """The state of a request whose answer is constrained, to a model without thinking.

    Args:
        draw (TokenDraw): Draws its tokens.
        constraint (AnswerConstraint): Of the answer, which is the whole reply.
    """

    def __init__(self, draw: TokenDraw, constraint: AnswerConstraint):
        super().__init__()
        self._draw = draw
        self.constraint = self._constraint = constraint
        self._token: mx.array | None = None
        self._position = 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token.

        Args:
            logprobs (mx.array): The model's log-probabilities, shape (1, V).

        Returns:
            mx.array: The token, shape (1,).

        Raises:
            ValueError: If it is called for several positions at a time.
        """
        if (step := current_step()) is not None:
            step.claim(self)
        if len(logprobs) != 1:
            raise ValueError(ONE_SAMPLER_PER_REQUEST)
        # The device computes this step while the host waits for the last token.
        mx.async_eval(logprobs)
        if self._token is not None:
            self._constraint.take(read_chosen(self._token), False)
        allowed = self._constraint.allowed(logprobs)
        self._token = self._draw(allowed, self._position)
        self._position += 1
        return self._token
