"""How one request's thinking is steered, from its handler to mlx-lm's loop and back.

Knows the objects in which mlx-lm's server carries a request; nothing of HTTP or models.
"""

import select
import socket
from dataclasses import dataclass
from typing import Any

from mlx_lm import server
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.constraint import AnswerConstraint
from ..engine.follower import ReplyFollower
from ..engine.plain import ReplySampler
from ..engine.scoring import TokenScore
from ..engine.settings import ThinkingBudget
from .answer_fields import AskedAnswer


@dataclass
class Steering:
    """How one request's thinking is steered, and what has come of it.

    Attributes:
        request: What it gets.
        asked_floor: Fewest tokens of thinking that it asks for in so many words.
        connection: To its client, if that is of this process.
        reply: Follows its reply, once generation has begun.
        left_out_by: The chat template's arguments that left thinking out, if any did.
        only_counts: Whether only the tokens of the prompt are asked for.
        prompt_tokens: Of the prompt, once they are known.
        answer: What is asked of its answer, if anything is.
        prompt_ids: Token ids in place of the prompt's text.
        prompt: Token ids of the prompt, once they are known.
        scores: How many of the likeliest tokens are told with the scores of the
            prompt's tokens; None if these are not told.
        prompt_scores: These, once they are known.
        is_over: Whether nobody wants the reply any more.
        constraint: Holds its answer to that, once generation has begun.
    """

    request: ThinkingBudget
    asked_floor: int = 0
    connection: socket.socket | None = None
    reply: ReplyFollower | None = None
    left_out_by: dict[str, Any] | None = None
    only_counts: bool = False
    prompt_tokens: int | None = None
    answer: AskedAnswer | None = None
    constraint: AnswerConstraint | None = None
    prompt_ids: tuple[int, ...] | None = None
    prompt: list[int] | None = None
    scores: int | None = None
    prompt_scores: list[TokenScore] | None = None
    is_over: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "connection": None}

    def has_client(self) -> bool:
        """Whether the client still listens. One that has stopped to send does not."""
        if self.is_over:
            return False
        if self.connection is None:
            return True
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            return not poll.poll(0) or bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False


@dataclass
class SteeredRequest(server.CompletionRequest):
    """mlx-lm's request, and how its thinking is steered."""

    steering: Steering


@dataclass
class SteeredArguments(server.GenerationArguments):
    """mlx-lm's arguments of a request, and its sampler until that is taken."""

    sampler: ReplySampler | None = None


def take_sampler(args: SteeredArguments, tokenizer: TokenizerWrapper) -> ReplySampler:
    """In place of `mlx_lm.server._make_sampler`: the one made with the prompt."""
    sampler, args.sampler = args.sampler, None
    if sampler is None:
        raise RuntimeError("No prompt was made for the sampler that is asked for.")
    return sampler
