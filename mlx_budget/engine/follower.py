"""Follows a reply for whoever consumes it: what is thinking, what is answer, how much.

The sampler runs one token ahead and keeps a tracker of its own; what it did to each
token is in its `SteeringRecord`. Knows markers, tokens and text; nothing of samplers or
models.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .markers import ThinkingMarkers
from .thinking import Mark, MarkKind, ThinkingTracker


class Step(Enum):
    """How a token came to be chosen."""

    MODEL = "by the model"
    GUIDED = "under guidance"
    FORCED = "put in"


@dataclass
class SteeringRecord:
    """What a sampler did to its reply: to be read while it runs and when it is gone.

    Attributes:
        budget: The budget in tokens; None without one, and as long as an automatic
            budget waits for the first thinking token.
        floor: Fewest tokens of thinking, 0 without a floor.
        steps: How each token was chosen, from the first. A sampler without a budget
            leaves every token to the model and keeps none.
        full_steps: Indices of the guided tokens for which the whole vocabulary, or all
            tokens that the predictor knows, were evaluated.
        loop_steps: Indices of the tokens that were to lead out of a loop: guided ones,
            and the first of those that were put in.
    """

    budget: int | None = None
    floor: int = 0
    steps: list[Step] = field(default_factory=list)
    full_steps: list[int] = field(default_factory=list)
    loop_steps: list[int] = field(default_factory=list)

    def step(self, index: int) -> Step:
        """How the token with an index, from 0, was chosen."""
        return self.steps[index] if index < len(self.steps) else Step.MODEL

    def has_left_loop(self, begin: int, end: int) -> bool:
        """Whether a marker was a way out of a loop.

        Args:
            begin, end (int): Indices of its first token, and behind its last.
        """
        steps = [index for index in self.loop_steps if index < end]
        if not steps or steps[-1] >= begin:
            return bool(steps)
        # A message may stand before it.
        return all(self.step(i) is Step.FORCED for i in range(steps[-1], end))

    def indices(self, kind: Step) -> list[int]:
        """Indices, from 0, of the tokens that were chosen in a way."""
        return [index for index, step in enumerate(self.steps) if step is kind]


class Part(Enum):
    """What a piece of a reply's text is."""

    THINKING = "thinking"
    ANSWER = "answer"
    MARKER = "marker"


@dataclass(frozen=True)
class Piece:
    """A piece of a reply's text.

    Attributes:
        part: What it is.
        text: The text; the pieces of a reply put together are the whole of it.
        mark: What it does, where a marker tells two parts apart.
    """

    part: Part
    text: str
    mark: MarkKind | None = None


class ReplyFollower:
    """Takes the tokens of one reply in order, and says what each of them is.

    Thinking and answer are told apart by where the markers were found, whatever else
    the reply quotes.

    Attributes:
        tokens: The reply so far, without a token that only ends it.
        is_thinking: Whether the last token belongs to thinking, markers included.
        guided_tokens: Tokens that were chosen under guidance.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        markers: ThinkingMarkers | None,
        prompt: Sequence[int],
        record: SteeringRecord,
    ):
        """Begins before the first token.

        Args:
            tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
            markers (ThinkingMarkers, optional): None if the model does not think.
            prompt (Sequence[int]): Token ids of the prompt.
            record (SteeringRecord): Of the reply's sampler.
        """
        self._tracker = None
        if markers is not None:
            self._tracker = ThinkingTracker(tokenizer, markers, prompt)
        self._record = record
        self._detokenizer = tokenizer.detokenizer
        self._offsets: list[int] = []  # where the text of each token may begin
        # Marks whose text is still to come, each with where it may begin.
        self._marks: list[tuple[Mark, int]] = []
        self._has_left_loop = False
        self._told = 0  # characters of the text that are in the pieces
        self._part = Part.THINKING if self.is_in_thinking else Part.ANSWER
        self._pieces: list[Piece] = []
        self.tokens: list[int] = []
        self.is_thinking = self.is_in_thinking
        self.guided_tokens = 0
        self._forced_tokens = 0
        # Whether what is put in behind the close has begun the answer.
        self._begins_answer = False
        # Each token where guidance would act, with the thinking tokens before it.
        self._line_starts: list[tuple[int, int]] = []
        self._first_block_tokens: int | None = None

    @property
    def thinks(self) -> bool:
        """Whether the model has thinking markers at all."""
        return self._tracker is not None

    @property
    def opening(self) -> str:
        """The marker that opens thinking; empty without one."""
        return "" if self._tracker is None else self._tracker.markers.start

    @property
    def is_in_thinking(self) -> bool:
        """Whether what comes next belongs to thinking."""
        return self._tracker is not None and self._tracker.thinking

    @property
    def is_left_out(self) -> bool:
        """Whether the prompt leaves thinking out, having closed it."""
        return self._tracker is not None and self._tracker.is_left_out

    @property
    def is_holding(self) -> bool:
        """Whether text waits until it is known to be a marker or not."""
        return self._told < len(self._detokenizer.text)

    @property
    def thinking_tokens(self) -> int:
        """Tokens of thinking so far; markers and forced tokens are not counted."""
        return 0 if self._tracker is None else self._tracker.thinking_tokens

    @property
    def after_close_tokens(self) -> int:
        """Tokens that were reasoned on behind the close, markers not counted."""
        return 0 if self._tracker is None else self._tracker.after_close_tokens

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer so far; markers and forced tokens are not counted."""
        return (
            len(self.tokens) if self._tracker is None else self._tracker.answer_tokens
        )

    @property
    def forced_tokens(self) -> int:
        """Tokens so far that were put in: messages, markers, what a sampler adds."""
        return self._forced_tokens

    @property
    def marker_tokens(self) -> int:
        """Tokens so far of markers that the model wrote, and of white space by them.

        With thinking, answer, what was reasoned behind the close and what was put in
        they are all tokens of the reply.
        """
        told = self.thinking_tokens + self.after_close_tokens + self.answer_tokens
        return len(self.tokens) - told - self.forced_tokens

    def has_answered(self, most: int | None) -> bool:
        """Whether the reply has used its tokens behind the close, None for no limit.

        Before any thinking, white space that an opening marker may follow is not yet an
        answer.
        """
        if most is None or self.is_in_thinking:
            return False
        tracker = self._tracker
        is_before = tracker is not None and tracker.blocks == 0 and tracker.may_open
        used = self.answer_tokens + self.after_close_tokens
        return used >= most and (not is_before or self.is_left_out)

    @property
    def thinking_budget(self) -> int | None:
        """The budget in tokens, or None."""
        return self._record.budget

    @property
    def closed_by(self) -> str | None:
        """What has ended thinking, "model", "budget" or "loop", or None.

        A budget of 0 has, too, where the prompt leaves thinking out.
        """
        if (tracker := self._tracker) is None:
            return None
        if tracker.closed_by is None and self.is_left_out:
            return "budget" if self.thinking_budget == 0 else None
        return "loop" if self._has_left_loop else tracker.closed_by

    @property
    def text(self) -> str:
        """The whole reply, as ``mlx_lm.stream_generate`` gives it in pieces."""
        ended = copy.copy(self._detokenizer)
        ended.finalize()
        return ended.text

    def take(self, token: int) -> list[Piece]:
        """Takes the next token.

        Returns:
            list[Piece]: The text that can be told now. What may be the beginning of a
            marker, or of a character, waits until that is known.
        """
        step = self._record.step(len(self.tokens))
        self._offsets.append(len(self._detokenizer.text))
        self._detokenizer.add_token(token)
        self.tokens.append(token)
        self.guided_tokens += step is Step.GUIDED
        self._forced_tokens += step is Step.FORCED
        if (tracker := self._tracker) is None:
            return self._tell(self._detokenizer.text)
        was_thinking, is_forced = tracker.thinking, step is Step.FORCED
        if tracker.starts_line:
            self._line_starts.append((token, tracker.thinking_tokens))
        mark = tracker.update(token, is_forced)
        if self._first_block_tokens is None and tracker.closed_by is not None:
            self._first_block_tokens = tracker.thinking_tokens
        if mark is not None:
            self._marks.append((mark, self._offsets[-mark.length]))
            if mark.kind in (MarkKind.CLOSE, MarkKind.TOOL):
                end = len(self.tokens)
                begin = end - mark.length
                self._has_left_loop = self._record.has_left_loop(begin, end)
        is_part_of_answer = mark is not None and mark.is_of_the_answer
        self.is_thinking = not is_part_of_answer and (
            was_thinking
            or (is_forced and tracker.is_blank)
            or tracker.thinking
            or mark is not None
        )
        # White space around a closing marker that is put in belongs to it.
        is_empty = tracker.thinking_tokens == 0 and tracker.is_blank
        text = self._detokenizer.text
        self._begins_answer = (
            is_forced
            and not was_thinking
            and (self._begins_answer or not tracker.is_blank)
        )
        is_behind = not was_thinking and not self._begins_answer
        is_around = is_forced and (is_behind or (was_thinking and is_empty))
        return self._tell(
            text, held=_begun(text, tracker.awaited()), is_around=is_around
        )

    def finish(self) -> list[Piece]:
        """The text that was held back, when no more tokens come."""
        return self._tell(self.text, is_last=True)

    @property
    def pieces(self) -> list[Piece]:
        """The pieces of the reply so far; together they are its text."""
        ended = copy.copy(self)
        ended._pieces, ended._marks = [*self._pieces], [*self._marks]
        ended.finish()
        return ended._pieces

    def line_lengths(self) -> list[tuple[int, int, int]]:
        """What the first block of thinking tells of lengths.

        Returns:
            list[tuple[int, int, int]]: For each place at which guidance would act, the
            token that came next, the thinking tokens before it, and L, the tokens from
            it to the closing marker, both counted. Empty unless the model itself closed
            its thinking, without a budget or a floor.
        """
        is_steered = self.thinking_budget is not None or self._record.floor > 0
        if self.closed_by != "model" or is_steered:
            return []
        end = self._first_block_tokens or 0
        # A newline in the closing marker itself starts no line.
        starts = [(t, used) for t, used in self._line_starts if used <= end]
        return [(t, used, end - used + 1) for t, used in starts]

    def split(self) -> tuple[str, str]:
        """Thinking and answer so far, without markers.

        Blocks of thinking are stripped and put on lines of their own. What was reasoned
        on behind the close, and closed again, is thinking.
        """
        blocks, answer, kept = [""], "", 0
        for piece in self.pieces:
            if piece.part is Part.THINKING:
                blocks[-1] += piece.text
            elif piece.part is Part.ANSWER:
                answer += piece.text
            if piece.mark in (MarkKind.TOOL, MarkKind.TOOL_END):
                kept = len(answer)
            elif piece.mark is MarkKind.OPEN:
                # White space before the block is no answer.
                answer = answer[:kept] + answer[kept:].strip()
                blocks.append("")
            elif piece.mark is MarkKind.CLOSE_AGAIN:
                blocks.append(answer[kept:])
                answer = answer[:kept]
            elif piece.mark in (MarkKind.CLOSE, MarkKind.HEADER):
                kept = len(answer)
        thoughts = (block.strip() for block in blocks)
        return "\n".join(filter(None, thoughts)), answer

    def why_no_answer(self, finish_reason: str | None) -> str | None:
        """Why a reply that has ended has no answer, in words; None if it has one.

        Args:
            finish_reason (str, optional): "stop" if the model ended it, "length" at
                the limit on tokens; of any other nothing is said.
        """
        if finish_reason not in ("stop", "length") or not self.thinks:
            return None
        if self.split()[1].strip():
            return None
        if finish_reason == "length":
            return "the limit on tokens cut it off"
        where = "inside" if self.is_in_thinking else "right behind"
        return f"the model ended its reply {where} its thinking"

    def _tell(
        self,
        text: str,
        held: int = 0,
        is_around: bool = False,
        is_last: bool = False,
    ) -> list[Piece]:
        """The pieces that end before the last ``held`` characters of the text."""
        before = len(self._pieces)
        while self._marks:
            mark, offset = self._marks[0]
            # No other marker of its kind begins between the offset and the marker.
            begin = text.find(mark.text, offset)
            end = begin + len(mark.text)
            if begin < 0:
                if not is_last:  # its last character is still to come
                    return self._pieces[before:]
                begin = end = self._told  # special tokens that are not shown
            del self._marks[0]
            self._add(self._part, text[self._told : begin])
            part = Part.ANSWER if mark.is_of_the_answer else Part.MARKER
            goes_on = mark.kind in (MarkKind.OPEN, MarkKind.REPEAT)
            self._part = Part.THINKING if goes_on else Part.ANSWER
            self._pieces.append(Piece(part, text[begin:end], mark.kind))
            self._told = end
        told = max(len(text) - held, self._told)
        self._add(Part.MARKER if is_around else self._part, text[self._told : told])
        self._told = told
        return self._pieces[before:]

    def _add(self, part: Part, text: str) -> None:
        if text:
            self._pieces.append(Piece(part, text))


def _begun(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a marker."""
    longest = 0
    for marker in filter(None, markers):
        # Most texts end without its first character, which is found fast.
        at = text.find(marker[0], max(len(text) - len(marker) + 1, 0))
        while at >= 0 and not marker.startswith(text[at:]):
            at = text.find(marker[0], at + 1)
        longest = max(longest, len(text) - at if at >= 0 else 0)
    return longest
