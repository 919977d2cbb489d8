"""What the samplers of all rivals have in common: they read each token as it is drawn.

Knows mlx-lm's samplers and where thinking begins and ends; nothing of predictors or of
what a rival does.
"""

from collections import deque
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...engine.closing import closing_of, prefix_tokens
from ...engine.draws import TokenDraw, read_token
from ...engine.follower import Step
from ...engine.plain import ReplySampler
from ...engine.prompts import Prompt, encode_prompt
from ...engine.rows import current_step
from ...engine.settings import Sampling, ThinkingBudget
from ...engine.thinking import ThinkingTracker, find_markers
from ...method.predictor import Predictor
from ...ranks import note_token

# A character has four bytes at most, and so as many tokens.
_LONGEST_CHARACTER = 4


class FollowingSampler(ReplySampler):
    """The state of one request of a rival; a subclass says what the rival does.

    It reads each token before the next step of the model, which costs some of mlx-lm's
    pipelining. By itself it closes thinking at the hard stop of its budget, wherever
    that is, and draws all other tokens as a request without a budget does.

    Its arguments are those of `mlx_budget.engine.sampler.steer`, so that the class can
    stand in its place.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        predictor: Predictor | bool | None,
        prompt: Prompt,
        thinking: ThinkingBudget,
        sampling: Sampling,
    ):
        super().__init__()
        markers = find_markers(tokenizer, thinking.start, thinking.end)
        ids = encode_prompt(tokenizer, prompt)
        self.tokenizer = tokenizer
        self.thinking = thinking
        self.sampling = sampling
        self.tracker = ThinkingTracker(tokenizer, markers, ids)
        self.record.budget = thinking.ceiling
        self.record.floor = thinking.least
        self._draw = TokenDraw(sampling, tokenizer)
        self._close = closing_of(tokenizer, markers, ids, thinking.message)
        self.begin_with(prefix_tokens(tokenizer, thinking.prefix))
        self._put_in: deque[int] = deque()
        self._has_put_in = 0

    def adjust(self, logprobs: mx.array) -> mx.array:
        """What to draw the next token of thinking from.

        Args:
            logprobs (mx.array): The model's log-probabilities in nats, shape (1, V).
        """
        return logprobs

    def before(self, logprobs: mx.array) -> Sequence[int]:
        """What is put in before the next token of thinking is drawn."""
        return ()

    def instead_of(self, token: int) -> Sequence[int]:
        """What is put in, in place of a token of thinking that was drawn."""
        return ()

    def take(self, token: int) -> None:
        """Takes a token of the reply, when the tracker has."""

    @property
    def used(self) -> int:
        """Thinking tokens so far, with those that were put into thinking."""
        return self.tracker.thinking_tokens + self._has_put_in

    @property
    def spent(self) -> int:
        """What counts toward the budget at which thinking is cut, in tokens."""
        return self.tracker.thinking_tokens

    def closing(self) -> Sequence[int]:
        """What closes thinking now, with the message of the budget if it has one."""
        tracker = self.tracker
        return self._close.tokens(tracker, is_line_ended=tracker.after_newline)

    def begins_to_close(self, token: int) -> bool:
        """Whether a token goes on with the closing marker, or begins it."""
        return token == self.tracker.missing_end_tokens()[0]

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token.

        Args:
            logprobs (mx.array): The model's log-probabilities, shape (1, V).

        Returns:
            mx.array: The token, shape (1,).
        """
        if (batch_step := current_step()) is not None:
            batch_step.claim(self)
        token, step = self._choose(logprobs)
        note_token(token)
        was_thinking = self.tracker.thinking
        self.tracker.update(token, forced=step is Step.FORCED)
        self._has_put_in += was_thinking and step is Step.FORCED
        self.take(token)
        self.record.steps.append(step)
        return mx.array([token], dtype=mx.uint32)

    def _choose(self, logprobs: mx.array) -> tuple[int, Step]:
        if self._prefix:
            return self._prefix.popleft(), Step.MODEL
        position = len(self.record.steps)
        thinks = self.tracker.thinking
        if thinks and not self._put_in:
            must_close = self._must_close()
            self._put_in.extend(self.closing() if must_close else self.before(logprobs))
        if self._put_in:
            return self._put_in.popleft(), Step.FORCED
        drawn = self._draw(self.adjust(logprobs) if thinks else logprobs, position)
        token = read_token(drawn)
        if thinks:
            self._put_in.extend(self._in_place_of(token))
            if self._put_in:
                return self._put_in.popleft(), Step.FORCED
        return token, Step.MODEL

    def _in_place_of(self, token: int) -> Sequence[int]:
        if self.thinking.answer_anyway and token in self.tokenizer.eos_token_ids:
            return self.closing()
        return self.instead_of(token)

    def _must_close(self) -> bool:
        tracker, limit = self.tracker, self.thinking.limit
        if limit is None or (over := self.spent - limit) < 0:
            return False
        return over >= _LONGEST_CHARACTER or not tracker.is_mid_character


class Paragraphs:
    """Where paragraphs end in a text that comes token by token.

    At blank lines; in a text that has had none so far, at the end of any line.
    """

    def __init__(self) -> None:
        self._line_ends = 0  # since the last text that is not white space
        self._has_blank_line = False

    def ended_with(self, text: str) -> bool:
        """Takes the text of a token; whether a paragraph ends with it."""
        if text.strip():
            text = text[len(text.rstrip()) :]
            self._line_ends = 0
        self._line_ends += text.count("\n")
        if self._line_ends > 1:
            self._has_blank_line = True
        ends = 2 if self._has_blank_line else 1
        return "\n" in text and self._line_ends >= ends


def held_down(logprobs: mx.array, tokens: Sequence[int]) -> mx.array:
    """Log-probabilities (1, V), normalised, without some tokens."""
    there = [token for token in tokens if token < logprobs.shape[-1]]
    if not there:
        return logprobs
    kept = mx.array(logprobs)
    kept[:, mx.array(there)] = -mx.inf
    return normalised(kept)


def normalised(logprobs: mx.array) -> mx.array:
    """Log-probabilities (1, V) that add up to 1 again, in float32."""
    logprobs = logprobs.astype(mx.float32)
    return logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
