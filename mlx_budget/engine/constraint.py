"""Holds the answer of one reply to a grammar, and leaves its thinking alone.

Knows the reply's tracker and masks of tokens; nothing of schemas, budgets or of how
tokens are drawn.
"""

from collections.abc import Iterable, Sequence
from enum import Enum

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .answers import Answer
from .thinking import Mark, MarkKind, ThinkingTracker

# Tokens of white space that may stand between a marker and the answer.
_MOST_BLANKS = 2


class _Place(Enum):
    """Where a reply is, as far as its answer goes."""

    THINKING = "in thinking, which is free"
    START = "where thinking may begin, or the answer"
    BEFORE = "before the answer"
    ANSWER = "in the answer"
    AFTER = "behind the answer, where something has to follow it"
    END = "where the reply has to end"
    FREE = "in what is none of ours"


class AnswerConstraint:
    """The state of one reply's answer.

    Args:
        answer (Answer): What it has to be.
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        tracker (ThinkingTracker, optional): Follows the reply; None if the model does
            not think.

    Attributes:
        error: Why the answer could not be held to its grammar, if it could not. The
            reply ends then.
    """

    def __init__(
        self,
        answer: Answer,
        tokenizer: TokenizerWrapper,
        tracker: ThinkingTracker | None,
    ):
        self._matcher = answer.begin(tokenizer)
        self._tokenizer = tokenizer
        self._tracker = tracker
        self._answer = answer
        self._ends = sorted(tokenizer.eos_token_ids)
        self._blanks = _blanks(tokenizer)
        self._blanks_left = _MOST_BLANKS
        self.error: str | None = None
        # What the reply is writing of, and how much of it is there.
        self._begun: list[int] = []
        call = answer.call
        self._before = _encode(tokenizer, call.start if call else "")
        self._after = _encode(tokenizer, call.end if call else "")
        self._openings: list[tuple[int, ...]] = []
        self._header: tuple[int, ...] = ()
        self._calls: list[tuple[int, ...]] = []
        self._no_calls: mx.array | None = None  # all tokens but those that begin one
        self._place = _Place.BEFORE
        if tracker is not None:
            self._read_markers(tracker)

    def take(self, token: int, is_forced: bool, mark: Mark | None = None) -> None:
        """Takes the next token of the reply, when its tracker has.

        Args:
            token (int): The token.
            is_forced (bool): Whether it was put in to close thinking.
            mark (Mark, optional): What the tracker found it to end.
        """
        if self._place is _Place.THINKING:
            self._leave_thinking(mark)
        elif is_forced:
            return
        elif self._place is _Place.START:
            self._take_start(token)
        elif self._place is _Place.BEFORE:
            self._take_before(token)
        elif self._place is _Place.ANSWER:
            self._take_answer(token)
        elif self._place is _Place.AFTER:
            self._take_after(token)

    def allowed(self, logprobs: mx.array) -> mx.array:
        """Log-probabilities of what may come now, normalised.

        Args:
            logprobs (mx.array): In nats, shape (1, V).
        """
        if self._place is _Place.FREE:
            return logprobs
        size = logprobs.shape[-1]
        if self._place is _Place.THINKING:
            if not (starts := self._unwanted_calls(size)):
                return logprobs
            if self._no_calls is None:
                kept = np.ones(size, bool)
                kept[starts] = False
                self._no_calls = mx.array(kept)
            mask = self._no_calls
        else:
            mask = mx.array(self._mask(size))
        rest = mx.where(mask, logprobs.astype(mx.float32), -mx.inf)
        return rest - mx.logsumexp(rest, axis=-1, keepdims=True)

    def _read_markers(self, tracker: ThinkingTracker) -> None:
        markers = tracker.markers
        if markers.frames:
            raise ValueError(
                "Answers by a JSON schema are not known for models that write "
                f"{markers.frames[0]} around their answers."
            )
        tools = markers.tool_formats
        self._header = _encode(self._tokenizer, markers.answer_header)
        self._calls = [_encode(self._tokenizer, tool.start) for tool in tools]
        if tracker.thinking:
            self._place = _Place.THINKING
        elif not tracker.is_left_out:
            self._place = _Place.START
            self._openings = [markers.start_tokens]
            if self._header:
                self._openings.append(self._header)

    def _leave_thinking(self, mark: Mark | None) -> None:
        tracker = self._tracker
        if tracker is None or tracker.thinking:
            return
        self._place, self._begun = _Place.BEFORE, []
        if mark is None or mark.kind is not MarkKind.TOOL:
            return
        if self._answer.call is not None and mark.text == self._answer.call.start:
            self._place = _Place.ANSWER
        elif self._answer.may_call:
            self._place = _Place.FREE

    def _take_start(self, token: int) -> None:
        if self._tracker is not None and self._tracker.thinking:
            self._place, self._begun = _Place.THINKING, []
            return
        written = (*self._begun, token)
        if self._header and written == self._header:
            self._place, self._begun = _Place.BEFORE, []
        elif any(opening[: len(written)] == written for opening in self._openings):
            self._begun.append(token)
        elif not self._is_blank(token):
            self._place = _Place.BEFORE
            self._take_before(token)

    def _take_before(self, token: int) -> None:
        if not self._begun and self._is_blank(token):
            return
        written = (*self._begun, token)
        if self._before:
            self._begun.append(token)
            if written == self._before:
                self._place, self._begun = _Place.ANSWER, []
                self._blanks_left = _MOST_BLANKS
        elif any(call[: len(written)] == written for call in self._possible_calls()):
            self._begun.append(token)
            if written in self._possible_calls():
                self._place = _Place.FREE
        else:
            self._place = _Place.ANSWER
            self._take_answer(token)

    def _take_answer(self, token: int) -> None:
        if self._before and self._is_blank(token):
            return
        if token in self._ends:
            self._place = _Place.END
            return
        self._blanks_left = 0
        if not self._matcher.consume_token(token):
            self._fail()
        elif self._matcher.is_stopped():
            self._place = _Place.AFTER if self._after else _Place.END
            self._begun, self._blanks_left = [], _MOST_BLANKS
            if self._matcher.is_error():
                self._fail()

    def _take_after(self, token: int) -> None:
        if not self._begun and self._is_blank(token):
            return
        self._begun.append(token)
        if len(self._begun) >= len(self._after):
            self._place = _Place.END

    def _fail(self) -> None:
        reason = self._matcher.get_error().partition("\n<state>")[0].strip()
        self.error = f"The answer could not be held to its JSON schema: {reason:.200}"
        self._place = _Place.END

    def _is_blank(self, token: int) -> bool:
        """Whether a token is white space that may come here; uses it up."""
        if self._blanks_left and token in self._blanks:
            self._blanks_left -= 1
            return True
        return False

    def _possible_calls(self) -> Sequence[tuple[int, ...]]:
        return self._calls if self._answer.may_call else ()

    def _unwanted_calls(self, size: int) -> list[int]:
        """Tokens that begin a call of a tool in thinking, where none may be called."""
        if self._answer.may_call or self._answer.call is not None:
            return []
        firsts = (call[0] for call in self._calls if len(call) == 1)
        return [token for token in firsts if token < size]

    def _mask(self, size: int) -> np.ndarray:
        """What may come now, shape (V,)."""
        mask, place, begun = np.zeros(size, bool), self._place, tuple(self._begun)

        def allow(tokens: Iterable[int]) -> None:
            for token in tokens:
                if token < size:
                    mask[token] = True

        def allow_next(texts: Iterable[tuple[int, ...]]) -> None:
            n = len(begun)
            allow(text[n] for text in texts if len(text) > n and text[:n] == begun)

        is_begun = bool(begun)
        if place is _Place.END:
            allow(self._ends)
            return mask
        if place is _Place.START:
            allow_next(self._openings)
            if self._header or is_begun:
                if not is_begun and self._blanks_left:
                    allow(self._blanks)
                return mask
        if place is _Place.AFTER:
            allow_next([self._after])
        elif place is not _Place.ANSWER and self._before:
            allow_next([self._before])
        else:
            if place is not _Place.ANSWER:
                allow_next(self._possible_calls())
            if not is_begun:
                self._add_grammar(mask)
        if not is_begun and self._blanks_left:
            allow(self._blanks)
        return mask

    def _add_grammar(self, mask: np.ndarray) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little").astype(bool)[: len(mask)]
        mask[: len(allowed)] |= allowed
        can_end = self._matcher.is_accepting() and not self._after
        for token in self._ends:
            if token < len(mask):
                mask[token] = can_end
        if not mask.any():
            if not self._matcher.is_error():
                self.error = "The JSON schema leaves no way to go on."
            else:
                self._fail()
            self._place = _Place.END
            mask[[token for token in self._ends if token < len(mask)]] = True


def _encode(tokenizer: TokenizerWrapper, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()


def _blanks(tokenizer: TokenizerWrapper) -> list[int]:
    """Tokens of the white space that templates put behind a marker."""
    encoded = (_encode(tokenizer, text) for text in ("\n", "\n\n", " "))
    return sorted({tokens[0] for tokens in encoded if len(tokens) == 1})
