"""Samplers for requests without a budget, and what all our samplers have in common.

Knows how tokens are drawn and mlx-lm's batches; nothing of budgets.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from ..ranks import current
from .draws import TokenDraw, read_chosen
from .follower import SteeringRecord, Step
from .rows import current_step

if TYPE_CHECKING:
    from .constraint import AnswerConstraint


class ReplySampler:
    """The state of one request: call it as mlx-lm calls a sampler.

    Attributes:
        record: What it did to its reply so far.
        constraint: Holds the answer to a grammar; None if it is free.
    """

    def __init__(self) -> None:
        self.record = SteeringRecord()
        self.constraint: AnswerConstraint | None = None
        self._prefix: deque[int] = deque()

    def begin_with(self, tokens: Sequence[int]) -> None:
        """Lets the reply begin with tokens, as if the model had chosen them."""
        self._prefix = deque(tokens)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token; see the samplers themselves."""
        raise NotImplementedError

    def check_answer(self) -> None:
        """Raises a ValueError if the answer could not be held to its grammar."""
        if self.constraint is not None and self.constraint.error is not None:
            raise ValueError(self.constraint.error)

    @property
    def budget(self) -> int | None:
        """The budget in tokens, once it is known, or None without one."""
        return self.record.budget

    @property
    def forced_steps(self) -> set[int]:
        """Indices, from 0, of the tokens it put in to close thinking."""
        return set(self.record.indices(Step.FORCED))

    @property
    def guided_steps(self) -> list[int]:
        """Indices of the tokens that were chosen under guidance."""
        return self.record.indices(Step.GUIDED)

    @property
    def full_steps(self) -> list[int]:
        """As in the record."""
        return self.record.full_steps

    def close(self) -> None:
        """Leaves the model as it was before."""


class PlainSampler(ReplySampler):
    """The state of a request without a budget."""

    def __init__(self, draw: TokenDraw):
        super().__init__()
        self._draw = draw
        self._position = 0
        self._token: mx.array | None = None

    def skip(self, tokens: int) -> None:
        """Draws as if the reply had so many tokens already."""
        self._position += tokens

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token.

        Args:
            logprobs (mx.array): The model's log-probabilities, shape (1, V).

        Returns:
            mx.array: The token, shape (1,).
        """
        if (step := current_step()) is not None:
            step.claim(self)
        if current() is not None and self._token is not None:
            # The other ranks are to know it before they go on from another one.
            mx.async_eval(logprobs)
            read_chosen(self._token)
        self._position += 1
        if self._prefix:
            self._token = mx.array([self._prefix.popleft()], dtype=mx.uint32)
        else:
            self._token = self._draw(logprobs, self._position - 1)
        return self._token
