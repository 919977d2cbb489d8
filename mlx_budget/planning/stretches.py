"""Thinking in stretches: each part of a plan is led to its own end within its share.

A stretch is steered as a whole block of thinking would be. Where the model closes it,
or its budget does, the hint of the next part is put in; the last one ends the thinking.
Knows the budget sampler; nothing of how plans are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.answers import Answer, AnswerFormat
from ..engine.closing import encode_message
from ..engine.draws import read_token
from ..engine.follower import Step
from ..engine.markers import ThinkingMarkers, find_markers
from ..engine.pace import Pace
from ..engine.plain import ReplySampler
from ..engine.sampler import BudgetSampler, Prompt, steer
from ..engine.settings import Sampling, ThinkingBudget
from ..method.predictor import Predictor
from .plans import Plan
from .prompts import hint_of

NO_ROOM = "no room"


@dataclass
class Stretch:
    """A part of a plan as it was thought through.

    Attributes:
        share: Its tokens, those of its hint among them.
        hint: Token ids that begin it.
        passed_on: Tokens that other stretches left to it.
        thinking: The model's own tokens in it; what of its share is not its hint may
            be used by them.
        closed_by: What ended it: "model", "budget" or "loop"; `NO_ROOM` if its share
            does not hold its hint and it was left out; None if it did not end.
        has_begun: Whether its hint was put in, or it needed none.
    """

    share: int
    hint: tuple[int, ...]
    passed_on: int = 0
    thinking: int = 0
    closed_by: str | None = None
    has_begun: bool = False

    @property
    def budget(self) -> int:
        """Tokens that the model itself may think in it."""
        return self.share + self.passed_on - len(self.hint)

    @property
    def used(self) -> int:
        """Its tokens, the hint among them."""
        return self.thinking + len(self.hint) if self.has_begun else 0

    @property
    def is_left_out(self) -> bool:
        """Whether there is no room for it."""
        return self.closed_by == NO_ROOM


def stretches_of(
    tokenizer: TokenizerWrapper,
    markers: ThinkingMarkers,
    plan: Plan,
    shares: Sequence[int],
) -> list[Stretch]:
    """The stretches of a plan, before any of them has begun.

    A plan of one part, the question itself, has no hint. A part whose share does not
    hold its hint and a token of thinking is left out, and its share goes to the next
    part that is not, or behind the last one to that; if all are, thinking is one
    stretch without a hint.
    """
    if len(plan.parts) == 1:
        return [Stretch(shares[0], ())]
    stretches = [
        Stretch(share, _encode(tokenizer, markers, hint_of(plan, i)))
        for i, share in enumerate(shares)
    ]
    line_end = len(_line_end(tokenizer))
    left, followed = 0, None
    for stretch in stretches:
        needed = line_end if followed else 0  # its hint may have to begin a line
        if stretch.budget + left > needed:
            stretch.passed_on, left, followed = left, 0, stretch
        else:
            stretch.closed_by, left = NO_ROOM, left + stretch.share
    if followed is None:
        followed = stretches[0]
        followed.hint, followed.closed_by = (), None
        left -= followed.share
    followed.passed_on += left
    return stretches


@dataclass(frozen=True)
class InStretches:
    """Stands in the place of `steer` for one reply that follows a plan.

    It is a value, so that it can be sent to the other ranks of a model.

    Attributes:
        plan: The plan.
        shares: Tokens of each of its parts.
        rollover: Whether what a stretch leaves over goes to the next one.
        found: Is filled with the stretches, which say what became of them.
    """

    plan: Plan
    shares: Sequence[int]
    rollover: bool
    found: list[Stretch] = field(default_factory=list)

    def __call__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        predictor: Predictor | bool | None,
        prompt: Prompt,
        thinking: ThinkingBudget,
        sampling: Sampling,
        answer: AnswerFormat | Answer | None = None,
    ) -> ReplySampler:
        """As `steer`; the budget is that of all parts together."""
        markers = find_markers(tokenizer, thinking.start, thinking.end)
        self.found[:] = stretches_of(tokenizer, markers, self.plan, self.shares)
        thinking = replace(thinking, tokens=sum(self.shares), least=0)
        sampler = partial(StretchSampler, self.found, self.rollover, tokenizer)
        options = (prompt, thinking, sampling, answer)
        return steer(model, tokenizer, predictor, *options, make=sampler)


class StretchSampler(BudgetSampler):
    """The state of a request whose thinking follows a plan."""

    def __init__(
        self,
        stretches: list[Stretch],
        rollover: bool,
        tokenizer: TokenizerWrapper,
        *args: Any,
    ):
        """As a budget sampler, with stretches.

        Args:
            stretches (list[Stretch]): Of the plan; they are told what became of them.
            rollover (bool): Whether what one leaves over goes to the next.
            tokenizer (TokenizerWrapper): mlx-lm's.
            args: Of `BudgetSampler`, the budget that of all stretches together.
        """
        super().__init__(*args)
        self._stretches = stretches
        self._rollover = rollover
        self._whole = self._pace.thinking
        self._ends = sorted(tokenizer.eos_token_ids)
        self._line_end = _line_end(tokenizer)
        self._at = -1  # the stretch that thinking is in
        self._before = 0  # thinking tokens before it
        # A token that was drawn where the hint of the next stretch would stand instead
        # if it closes this one.
        self._swapped: mx.array | None = None
        if self._tracker.thinking:
            self._begin()

    @property
    def _is_last(self) -> bool:
        return self._following() is None

    def _read_last_token(self) -> None:
        if self._token is None:
            return
        if self._swapped is not None and read_token(self._swapped) in self._closers():
            # The first token of the hint stands in its place already.
            self.record.steps[-1] = Step.FORCED
            self._go_on("model", is_begun=True)
        self._swapped = None
        super()._read_last_token()
        tracker = self._tracker
        if self._at < 0 and tracker.thinking:
            self._begin()
        elif self._at >= 0:
            now = self._stretches[self._at]
            now.thinking = tracker.thinking_tokens - self._before
            if not tracker.thinking and now.closed_by is None:
                now.closed_by = tracker.closed_by or "model"

    def _choose(self, logprobs: mx.array, forward: Any, row: int) -> Any:
        token, step = super()._choose(logprobs, forward, row)
        is_inside = self._at >= 0 and self._tracker.thinking
        if step is Step.FORCED or not is_inside or self._is_last:
            return token, step
        self._drawn, self._swapped = None, token
        ends = mx.array(self._closers(), token.dtype)
        first = mx.array(self._hint_after()[0], token.dtype)
        return mx.where(mx.any(token == ends), first, token), step

    def _begin_closing(self) -> None:
        if self._at < 0 or self._is_last or not self._tracker.thinking:
            super()._begin_closing()
            return
        self._drawn = None
        self._go_on("loop" if self._pace.is_stuck() else "budget")

    def _closes_before_thinking(self, token: mx.array) -> bool:
        return self._is_last and super()._closes_before_thinking(token)

    def _closers(self) -> list[int]:
        """Tokens that close a stretch where they are drawn."""
        return [self._tracker.missing_end_tokens()[0], *self._ends]

    def _following(self) -> int | None:
        """The next stretch that is not left out."""
        for i in range(self._at + 1, len(self._stretches)):
            if not self._stretches[i].is_left_out:
                return i
        return None

    def _hint_after(self) -> tuple[int, ...]:
        """The hint of the next stretch, on a line of its own."""
        following = self._following()
        hint = () if following is None else self._stretches[following].hint
        is_line_ended = self._tracker.after_newline or self._tracker.is_blank
        return hint if is_line_ended else self._line_end + hint

    def _go_on(self, closed_by: str, is_begun: bool = False) -> None:
        """Ends the stretch; the hint of the next one is put in.

        Args:
            closed_by (str): What ends it.
            is_begun (bool): Whether the hint's first token is there already.
        """
        now = self._stretches[self._at]
        now.closed_by = closed_by
        now.thinking = self._tracker.thinking_tokens - self._before
        left = max(now.budget - now.thinking, 0) if closed_by == "model" else 0
        self._begin(left if self._rollover else 0, is_begun)

    def _begin(self, passed_on: int = 0, is_begun: bool = False) -> None:
        """Begins the next stretch: its hint, then its budget."""
        hint, at = self._hint_after(), self._following()
        assert at is not None  # the last stretch is ended by the engine
        self._at, self._before = at, self._tracker.thinking_tokens
        now = self._stretches[at]
        now.has_begun, now.hint = True, hint
        now.passed_on += passed_on
        self._closing.extend((token, Step.FORCED) for token in hint[is_begun:])
        budget = replace(self._whole, tokens=now.budget)
        has_guide = self._guide is not None
        self._pace = Pace(budget, self._tracker, has_guide, self._before)


def _line_end(tokenizer: TokenizerWrapper) -> tuple[int, ...]:
    return tuple(tokenizer.encode("\n", add_special_tokens=False))


def _encode(
    tokenizer: TokenizerWrapper, markers: ThinkingMarkers, text: str
) -> tuple[int, ...]:
    """Tokens of a hint; control tokens that a model wrote into it are left out."""
    tokens, before = {*tokenizer.all_special_tokens, markers.end}, ""
    while text != before:  # what is left may make up another
        before = text
        for token in tokens:
            text = text.replace(token, "")
    return encode_message(tokenizer, markers, text)
