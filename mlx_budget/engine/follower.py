"""Follows a reply for whoever consumes it: what is thinking, what is answer, how much.

The sampler runs one token ahead and keeps a tracker of its own; what it did to each
token is in its `SteeringRecord`. Knows markers, tokens and text; nothing of samplers or
models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .thinking import ThinkingMarkers, ThinkingTracker


class Step(Enum):
    """How a token came to be chosen."""

    MODEL = "by the model"
    GUIDED = "under guidance"
    FORCED = "put in to close thinking"


@dataclass
class SteeringRecord:
    """What a sampler did to its reply: to be read while it runs and when it is gone.

    Attributes:
        budget: The budget in tokens; None without one, and as long as an automatic
            budget waits for the first thinking token.
        steps: How each token was chosen, from the first. A sampler without a budget
            leaves every token to the model and keeps none.
        full_steps: Indices of the guided tokens for which the whole vocabulary, or all
            tokens that the predictor knows, were evaluated.
    """

    budget: int | None = None
    steps: list[Step] = field(default_factory=list)
    full_steps: list[int] = field(default_factory=list)

    def step(self, index: int) -> Step:
        """How the token with an index, from 0, was chosen."""
        return self.steps[index] if index < len(self.steps) else Step.MODEL

    def indices(self, kind: Step) -> list[int]:
        """Indices, from 0, of the tokens that were chosen in a way."""
        return [index for index, step in enumerate(self.steps) if step is kind]


@dataclass(frozen=True)
class _Mark:
    """A marker that the tracker has found.

    Attributes:
        text: The marker.
        offset: Where in the reply's text it may begin at the earliest, in characters.
        opens: Whether thinking follows it.
    """

    text: str
    offset: int
    opens: bool


class ReplyFollower:
    """Takes the tokens of one reply in order, and says what each of them is.

    Attributes:
        tokens: The reply so far, without a token that only ends it.
        is_thinking: Whether the last token belongs to thinking, markers included.
        guided_tokens: Tokens that were chosen under guidance.
        answer_tokens: Tokens outside of thinking.
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
        self._detokenizer = tokenizer.detokenizer
        self._record = record
        self._begins_thinking = self.is_in_thinking
        self._marks: list[_Mark] = []
        self._offsets: list[int] = []  # where the text of each token may begin
        self.tokens: list[int] = []
        self.is_thinking = self.is_in_thinking
        self.guided_tokens = 0
        self.answer_tokens = 0

    @property
    def thinks(self) -> bool:
        """Whether the model has thinking markers at all."""
        return self._tracker is not None

    @property
    def is_in_thinking(self) -> bool:
        """Whether what comes next belongs to thinking."""
        return self._tracker is not None and self._tracker.thinking

    @property
    def may_be_opening(self) -> bool:
        """Whether the reply may be in the middle of an opening marker."""
        return self._tracker is not None and self._tracker.may_be_opening

    @property
    def thinking_tokens(self) -> int:
        """Tokens of thinking so far; markers and forced tokens are not counted."""
        return 0 if self._tracker is None else self._tracker.thinking_tokens

    @property
    def thinking_budget(self) -> int | None:
        """The budget in tokens, or None."""
        return self._record.budget

    @property
    def closed_by(self) -> str | None:
        """What has ended thinking, "model" or "budget", or None."""
        return None if self._tracker is None else self._tracker.closed_by

    @property
    def text(self) -> str:
        """The whole reply, as ``mlx_lm.stream_generate`` gives it in pieces."""
        self._detokenizer.finalize()
        return self._detokenizer.text

    def take(self, token: int) -> bool:
        """Takes the next token.

        Returns:
            bool: Whether it belongs to thinking, markers included.
        """
        step = self._record.step(len(self.tokens))
        self._offsets.append(len(self._detokenizer.text))
        self._detokenizer.add_token(token)
        self.tokens.append(token)
        self.guided_tokens += step is Step.GUIDED
        self.is_thinking = False
        if (tracker := self._tracker) is not None:
            was_thinking = tracker.thinking
            if length := tracker.update(token, forced=step is Step.FORCED):
                markers = tracker.markers
                found = markers.start if tracker.thinking else markers.end
                offset = self._offsets[-length]
                self._marks.append(_Mark(found, offset, tracker.thinking))
            self.is_thinking = was_thinking or tracker.thinking
        self.answer_tokens += not self.is_thinking
        return self.is_thinking

    def split(self) -> tuple[str, str]:
        """Thinking and answer so far, without markers.

        They are told apart by where the markers were found, whatever else the reply
        quotes. Blocks of thinking are stripped and put on lines of their own.
        """
        text, at = self.text, 0
        thoughts, answers = [""] * self._begins_thinking, [""]
        is_thinking = self._begins_thinking
        for mark in self._marks:
            # No other marker of its kind begins between the offset and the marker.
            begin = text.find(mark.text, mark.offset)
            end = begin + len(mark.text)
            if begin < 0:  # a detokenizer that shows no special tokens
                begin = end = mark.offset
            (thoughts if is_thinking else answers)[-1] += text[at:begin]
            at, is_thinking = end, mark.opens
            if is_thinking:
                thoughts.append("")
        (thoughts if is_thinking else answers)[-1] += text[at:]
        return "\n".join(thought.strip() for thought in thoughts), "".join(answers)
