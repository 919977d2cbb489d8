"""The budget sampler: an ordinary mlx-lm sampler that steers thinking to a budget.

The one stateful step of the method: it follows the reply, decides at each step whether
to leave the model alone, guide it or close its thinking, and returns the next token.
Knows mlx-lm's generation loop; nothing of files, Hub or terminal.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.predictor import Predictor
from .answers import Answer, AnswerFormat, answer_to
from .closing import Closing, closing_of, prefix_tokens
from .constrained import ConstrainedSampler
from .constraint import AnswerConstraint
from .context import context_length, vocabulary_size
from .draws import EndOfReply, TokenDraw, read_chosen, read_token
from .enforcing import check_enforceable, for_predictor, knows_lengths
from .fields import take
from .follower import Step
from .guide import Guide
from .keywords import ReplyOptions
from .pace import Pace
from .plain import PlainSampler, ReplySampler
from .priors import prior_for
from .prompts import Prompt, encode_prompt
from .recorder import ForwardPass, HiddenStateRecorder
from .rows import (
    ONE_SAMPLER_PER_REQUEST,
    current_step,
    follow_batches,
    unfollow_batches,
)
from .settings import AutoBudget, Sampling, ThinkingBudget
from .thinking import ThinkingTracker, find_markers, markers_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "BudgetSampler",
    "Prompt",
    "check_enforceable",
    "encode_prompt",
    "knows_lengths",
    "make_budget_sampler",
    "steer",
]


def make_budget_sampler(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None = None,
    *,
    prompt: Prompt,
    **options: "Unpack[ReplyOptions]",
) -> ReplySampler:
    """Makes a sampler for mlx-lm that steers one request's thinking to a budget.

    Use it with the stock loop, ``mlx_lm.stream_generate(model, tokenizer, prompt,
    sampler=sampler)``, or as one of the ``samplers`` of a `BatchGenerator`: there, make
    one for every request of the batch.

    Args:
        model (nn.Module): The mlx-lm model that will generate.
        tokenizer (TokenizerWrapper): Its tokenizer.
        predictor (Predictor or False, optional): The predictor that guides; None for a
            prior, False for the hard stop alone.
        prompt (str, list or mx.array): The very prompt that will be generated from.
        thinking_budget (int, str or tuple, optional): Tokens of thinking: None or -1
            for no budget, 0 to close thinking at once, N > 0 to steer to N tokens;
            "auto" for as many as the predictor expects this question to take (the
            median at the first thinking token), "auto:0.63" or "63%" for that share of
            them; (800, 1000) or "800-1000" for a length between the two; "low",
            "medium", "high" and the other levels of `mlx_budget.engine.budgets.EFFORTS`
            for a share of what the predictor expects, or tokens where none does.
        budget_mode (str): What N tokens mean: "at-most" so many, as in the paper, or
            "about" so many, which are used as well.
        min_thinking_tokens (int): Fewest tokens of thinking, with a budget or without.
            Until then the model can neither close its thinking nor end its reply, and
            the predictor, if there is one, steers beyond them. A tool call still ends
            thinking.
        hard_stop (float, optional): Past the budget thinking is closed at the first
            newline, and at ``hard_stop * thinking_budget`` tokens wherever it is; 1.1
            by default. None leaves it to guidance alone, as in the paper.
        thinking_budget_message (str, optional): Text put before the closing marker on
            a forced close. If it has the closing marker in it, what stands behind that
            begins the answer.
        stop_loops (bool, optional): Whether thinking that has gone into a loop is led
            to its end, and closed if that does not help; by default with a budget and a
            hard stop. True does so without a budget too.
        guidance_tolerance (float): Guided steps evaluate the likeliest tokens alone
            while the total variation distance to the result of the whole vocabulary,
            before top-p and the like, is at most this (0.001 by default); at ``temp=0``
            the token is the same, to the rounding of the predictor's type. 0 always
            evaluates the whole vocabulary.
        reply_prefix (str, optional): Text with which the reply begins, as if the model
            had written it.
        thinking_start, thinking_end (str, optional): Markers in place of the
            tokenizer's; an empty start means that replies begin by thinking.
        temp, top_p, min_p, min_tokens_to_keep, top_k, xtc_probability, xtc_threshold,
            xtc_special_tokens: As in ``mlx_lm.sample_utils.make_sampler``; under
            guidance they apply to the guided distribution. XTC spares the newline and
            the tokens that end a reply unless ``xtc_special_tokens`` names others.
        seed (int, optional): 0 to 2^64 - 1: makes the draws of this request its own,
            whatever else is sampled beside it. MLX's global random generator is left
            as it is; without a seed the draws come from that.
        json_schema (dict, str or class, optional): A JSON schema, as such, as text or
            as a pydantic model, that the answer behind the thinking follows.

    Returns:
        ReplySampler: Log-probabilities (1, V) in, token (1,) out.

    Raises:
        ValueError: If the budget cannot be honoured, with the reason and the way out.
    """
    keywords: dict[str, Any] = dict(options)
    thinking, sampling = take(ThinkingBudget, keywords), take(Sampling, keywords)
    answer = take(AnswerFormat, keywords)
    if keywords:
        raise TypeError(f"make_budget_sampler has no option {next(iter(keywords))!r}.")
    return steer(model, tokenizer, predictor, prompt, thinking, sampling, answer)


def steer(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None,
    prompt: Prompt,
    thinking: ThinkingBudget,
    sampling: Sampling,
    answer: AnswerFormat | Answer | None = None,
    make: "Callable[..., BudgetSampler] | None" = None,
) -> ReplySampler:
    """`make_budget_sampler` with its options as values.

    Args:
        model, tokenizer, predictor, prompt: As there.
        thinking (ThinkingBudget): The budget and how it is kept.
        sampling (Sampling): How tokens are drawn.
        answer (optional): What the answer has to be.
        make (Callable, optional): In place of `BudgetSampler`, with its arguments.
    """
    wanted = answer_to(answer)
    prefix = prefix_tokens(tokenizer, thinking.prefix)
    if wanted is not None and prefix:
        raise ValueError(
            "A reply_prefix cannot be combined with a JSON schema or a tool that must "
            "be called: leave out one of them."
        )
    if not thinking.is_steered:
        draw = TokenDraw(sampling, tokenizer)
        if wanted is None:
            plain = PlainSampler(draw)
            plain.begin_with(prefix)
            return plain
        if markers_of(tokenizer, thinking) is None:
            return ConstrainedSampler(draw, AnswerConstraint(wanted, tokenizer, None))
        predictor = False
    if wanted is not None:
        # What is asked for is an answer.
        thinking = replace(thinking, answer_anyway=True)
    check_enforceable(thinking, predictor)
    thinking = for_predictor(thinking, predictor)
    markers = find_markers(tokenizer, thinking.start, thinking.end)
    most = context_length(model, tokenizer)
    ids = encode_prompt(tokenizer, prompt, most, vocabulary_size(model))
    if not ids:
        raise ValueError("The prompt is empty.")
    guide = None
    if predictor is None:
        predictor = prior_for(tokenizer, markers)
    if isinstance(predictor, Predictor):
        guide = Guide(predictor, thinking, sampling, tokenizer)
    tracker, constraint = ThinkingTracker(tokenizer, markers, ids), None
    close = closing_of(tokenizer, markers, ids, thinking.message)
    if wanted is not None:
        if close.begins_answer:
            raise ValueError(
                "thinking_budget_message goes on behind the closing marker "
                f"{markers.end!r}, where the answer by the JSON schema begins: leave "
                "out what stands there, or the schema."
            )
        constraint = AnswerConstraint(wanted, tokenizer, tracker)
    sampler = (make or BudgetSampler)(
        model,
        thinking,
        TokenDraw(sampling, tokenizer),
        guide,
        tracker,
        close,
        EndOfReply(tokenizer, markers),
        ids[-1],
        constraint,
    )
    sampler.begin_with(prefix)
    return sampler


class BudgetSampler(ReplySampler):
    """The state of a request with a budget.

    mlx-lm builds a step before the token of the last one is read on the host. The
    sampler hands the device the present step first and reads then, so that the device
    computes while the host waits.
    """

    def __init__(
        self,
        model: nn.Module,
        thinking: ThinkingBudget,
        draw: TokenDraw,
        guide: Guide | None,
        tracker: ThinkingTracker,
        close: Closing,
        end: EndOfReply,
        last_prompt_token: int,
        constraint: AnswerConstraint | None = None,
    ):
        """Attaches a recorder to the model, until it is closed or gone.

        Args:
            model (nn.Module): The model that will generate.
            thinking (ThinkingBudget): The budget, or fewest tokens, or both.
            draw (TokenDraw): Draws the tokens that are left to the model.
            guide (optional): Draws the guided ones; None for the hard stop alone.
            tracker (ThinkingTracker): Of the prompt.
            close (Closing): The tokens of a forced close.
            end (EndOfReply): The tokens that end a reply.
            last_prompt_token (int): What the model reads first.
            constraint (optional): Holds the answer to a grammar.
        """
        super().__init__()
        self.constraint = constraint
        self._draw = draw
        self._guide = guide
        self._tracker = tracker
        self._close = close
        self._end = end
        self._closing: deque[tuple[int, Step]] = deque()
        self._pace = Pace(thinking, tracker, guide is not None)
        self._set_budget(thinking)
        self._token: mx.array | None = None  # the last one, until it is read
        self._drawn: mx.array | None = None  # it, before it closed instead of ending
        # What the last forward pass must have been given, and what it was given.
        self._expected_input = last_prompt_token
        self._seen_input: tuple[mx.array, int]
        self._is_misled = False
        reads = guide is not None and guide.predictor.reads_states
        self._recorder = _begin_lease(model, states=reads)
        self._lease = weakref.finalize(self, _end_lease, self._recorder)

    def close(self) -> None:
        """Stops recording hidden states; the model is as it was before."""
        self._lease()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token.

        Args:
            logprobs (mx.array): The model's log-probabilities, shape (1, V).

        Returns:
            mx.array: The token, shape (1,).

        Raises:
            ValueError: If the sampler is used for a second request, or in a loop that
                does not run the model one token at a time.
        """
        if not self._lease.alive:
            raise ValueError("This budget sampler was closed: make a new one.")
        forward, row = self._find_row(logprobs)
        if self.record.steps:
            # The device computes this step while the host waits for the last token.
            mx.async_eval(logprobs)
            self._read_last_token()
            self._check_input()
        else:
            self._draw.check(logprobs.shape[-1])
        self._seen_input = forward.inputs, row
        self._token, step = self._choose(logprobs, forward, row)
        self.record.steps.append(step)
        return self._token

    def begin_with(self, tokens: Sequence[int]) -> None:
        """Lets the reply begin with tokens, as if the model had chosen them."""
        self._closing.extendleft((token, Step.MODEL) for token in reversed(tokens))

    def is_guided(self) -> bool:
        """Whether the next token is one to guide."""
        return not self._closing and self._pace.is_guided

    def _find_row(self, logprobs: mx.array) -> tuple[ForwardPass, int]:
        forward, step = self._recorder.last, current_step()
        rows = 1 if step is None else len(step.samplers)
        if forward is None or forward.rows != rows or len(logprobs) != 1:
            raise ValueError(ONE_SAMPLER_PER_REQUEST)
        return forward, 0 if step is None else step.claim(self)

    def _read_last_token(self) -> None:
        """Follows the reply to its last token; waits for the device to compute it."""
        if self._token is None:
            return
        token, self._token = read_chosen(self._token), None
        if self._drawn is not None:
            rest = self._end.rest_of_close(read_token(self._drawn))
            self._closing.extend((token, Step.MODEL) for token in rest)
            self._drawn = None
        is_forced = self.record.steps[-1] is Step.FORCED
        mark = self._tracker.update(token, forced=is_forced)
        self._pace.take(token)
        if self.constraint is not None:
            self.constraint.take(token, is_forced, mark)
        inputs, row = self._seen_input
        # Computed before the last token was, so this does not wait.
        self._is_misled |= bool(np.array(inputs)[row, 0] != self._expected_input)
        self._expected_input = token

    def _check_input(self) -> None:
        if self._is_misled:
            self.close()
            raise ValueError(
                "This budget sampler follows another request: the token fed to the "
                "model is not the one it chose. Make a sampler for each request, with "
                "that request's own prompt."
            )

    def _choose(
        self, logprobs: mx.array, forward: ForwardPass, row: int
    ) -> tuple[mx.array, Step]:
        position = len(self.record.steps)
        others = partial(self._guided_after, row)
        thinking, pace = self._pace.thinking, self._pace
        is_unknown = isinstance(thinking.tokens, AutoBudget)
        if self._guide is not None and is_unknown and self._tracker.thinking:
            length = self._guide.expected_length(logprobs, forward, row, others)
            self._set_budget(thinking.for_length(length))
        if not self._closing and pace.must_close():
            self._begin_closing()
            if pace.is_stuck():
                self.record.loop_steps.append(position)
        if self._closing:
            return self._next_closing()
        logprobs = self._allowed(logprobs)
        if self._guide is None or not self.is_guided():
            token, step = self._draw(logprobs, position), Step.MODEL
            if thinking.answer_anyway and self._tracker.thinking:
                self._drawn, token = token, self._end.or_close(token)
        else:
            token, is_full = self._guide.choose(
                logprobs, forward, row, others, *pace.event(), position
            )
            step = Step.GUIDED
            if pace.is_loop:
                self.record.loop_steps.append(position)
            if is_full:
                self.record.full_steps.append(position)
        is_unusual = step is Step.GUIDED and self._closes_before_thinking(token)
        if is_unusual or self._would_break_character(token):
            self._begin_closing()
            return self._next_closing()
        return token, step

    def _begin_closing(self) -> None:
        self._drawn = None
        is_line_ended = self._tracker.after_newline
        tokens = self._close.tokens(self._tracker, is_line_ended)
        self._closing.extend((token, Step.FORCED) for token in tokens)

    def _next_closing(self) -> tuple[mx.array, Step]:
        token, step = self._closing.popleft()
        return mx.array([token], dtype=mx.uint32), step

    def _allowed(self, logprobs: mx.array) -> mx.array:
        """Log-probabilities without what must not come now."""
        tracker = self._tracker
        if self._pace.is_before_floor:
            return self._end.put_off(logprobs, tracker.missing_end_tokens())
        if self._pace.thinking.answer_anyway:
            has_no_answer = tracker.may_open and tracker.blocks
            if has_no_answer or self.is_guided():
                logprobs = self._end.without(logprobs)
        if self._pace.may_not_reopen():
            logprobs = self._end.without_opening(logprobs)
        if self.constraint is not None:
            logprobs = self.constraint.allowed(logprobs)
        return logprobs

    def _closes_before_thinking(self, token: mx.array) -> bool:
        """Whether guidance closes a block without any thinking, as no model does by
        itself: it is to look as the template writes such a block then.

        To know, the host waits for the token; at the first thinking token alone.
        """
        end = self._tracker.markers.end_tokens
        is_empty = self._tracker.thinking_tokens == 0 and self._close.has_empty_form
        return is_empty and len(end) == 1 and read_token(token) == end[0]

    def _would_break_character(self, token: mx.array) -> bool:
        """Whether the hard stop would come in the middle of a character.

        To know, the host waits for the token; only just before the hard stop.
        """
        if not self._pace.is_near_limit():
            return False
        return self._tracker.leaves_character_open(read_token(token))

    def _guided_after(self, row: int) -> list[int]:
        """Rows after ``row`` that the same predictor will guide in this step."""
        rows, step = [], current_step()
        for other, sampler in enumerate(step.samplers if step else ()):
            if other > row and isinstance(sampler, BudgetSampler):
                sampler._read_last_token()
                if sampler._shares_guide(self) and sampler.is_guided():
                    rows.append(other)
        return rows

    def _shares_guide(self, other: "BudgetSampler") -> bool:
        if self._guide is None or other._guide is None:
            return False
        return self._guide.predictor is other._guide.predictor

    def _set_budget(self, thinking: ThinkingBudget) -> None:
        self._pace.thinking = thinking
        self.record.budget, self.record.floor = thinking.ceiling, thinking.bounds[0]


def _begin_lease(model: nn.Module, states: bool) -> HiddenStateRecorder:
    follow_batches()
    try:
        return HiddenStateRecorder.acquire(model, states)
    except ValueError:
        unfollow_batches()
        raise


def _end_lease(recorder: HiddenStateRecorder) -> None:
    recorder.release()
    unfollow_batches()
