"""Where thinking begins and ends in a stream of tokens, and how long it has been.

Knows markers and token texts; nothing of budgets, predictors or models.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .settings import ThinkingBudget


@dataclass(frozen=True)
class ThinkingMarkers:
    """The texts that open and close a thinking block.

    A marker that is a token of its own, added to the vocabulary, is recognised by that
    token; any other in the decoded text, however it is split into tokens.

    Attributes:
        start: Opening marker; empty if the reply begins by thinking.
        end: Closing marker.
        start_tokens: Token ids that encode ``start``.
        end_tokens: Token ids that encode ``end``.
    """

    start: str
    end: str
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]


def find_markers(
    tokenizer: TokenizerWrapper, start: str | None = None, end: str | None = None
) -> ThinkingMarkers:
    """The thinking markers of a tokenizer, or those given in their stead.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        start (str, optional): Opening marker; "" if replies begin by thinking.
        end (str, optional): Closing marker.

    Raises:
        ValueError: If the tokenizer has no markers and not both are given, or the
            closing marker is empty.
    """
    start = tokenizer.think_start if start is None else start
    end = tokenizer.think_end if end is None else end
    if start is None or end is None:
        raise ValueError(
            "The model's tokenizer has no thinking markers, so its thinking cannot be "
            "budgeted. If the model does think, name its markers with "
            "--thinking-start-token and --thinking-end-token (thinking_start and "
            "thinking_end in Python; an empty start marker means that replies begin "
            "by thinking)."
        )
    if not end.strip():
        raise ValueError("The closing thinking marker (--thinking-end-token) is blank.")
    if start == end:
        raise ValueError(f"Thinking cannot begin and end with the same marker {end!r}.")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()

    return ThinkingMarkers(start, end, encode(start), encode(end))


def markers_of(
    tokenizer: TokenizerWrapper, thinking: ThinkingBudget
) -> ThinkingMarkers | None:
    """The markers that a reply is followed by; None if the model does not think."""
    if not tokenizer.has_thinking and thinking.start is None and thinking.end is None:
        return None
    return find_markers(tokenizer, thinking.start, thinking.end)


def split_reply(
    runs: list[tuple[bool, str]], markers: ThinkingMarkers | None
) -> tuple[str, str]:
    """Thinking and answer of a reply, without markers.

    Args:
        runs (list): Its text in order, in pieces of thinking (True) or answer, markers
            included.
        markers (ThinkingMarkers, optional): Those of the model, if it has any.
    """
    thoughts, answer = [], ""
    for is_thinking, pieces in itertools.groupby(runs, lambda run: run[0]):
        text = "".join(text for _, text in pieces)
        if is_thinking and markers is not None:
            # The markers' outer tokens may reach into the answer.
            if markers.start and markers.start in text:
                before, _, text = text.partition(markers.start)
                answer += before
            text, _, after = text.partition(markers.end)
            thoughts.append(text.strip())
            answer += after
        else:
            answer += text
    return "\n".join(thoughts), answer


class ThinkingTracker:
    """Follows one reply token by token through its thinking block.

    Attributes:
        thinking: Whether the last token left the reply inside a thinking block.
        thinking_tokens: Tokens inside thinking blocks so far, markers not counted, nor
            tokens that were put in to close a block.
        after_newline: Whether the text of the last token contains a newline.
        closed_by: "model" or "budget" once a block was closed, else None.
        blocks: Thinking blocks opened so far.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        markers: ThinkingMarkers,
        prompt: Sequence[int],
    ):
        self._tokenizer = tokenizer
        self.markers = markers
        self._texts: dict[int, str] = {}
        self._added = frozenset(tokenizer.added_tokens_decoder)
        # Tokens since the last marker, and whether each was forced.
        self._block: list[int] = []
        self._forced: list[bool] = []
        self._earlier = 0
        self._in_block = 0
        self.after_newline = False
        self.closed_by: str | None = None
        self.thinking = not markers.start or self._is_open(prompt)
        self.blocks = int(self.thinking)

    @property
    def thinking_tokens(self) -> int:
        return self._earlier + self._in_block

    def update(self, token: int, forced: bool = False) -> int:
        """Takes the next token of the reply.

        Args:
            token: Its id.
            forced: Whether it was put in to close the block, not chosen by the model.

        Returns:
            int: How many of the last tokens make up a marker that has just opened or
            closed thinking, or 0.
        """
        self.after_newline = "\n" in self._text(token)
        self._block.append(token)
        self._forced.append(forced)
        start, end = self.markers.start, self.markers.end
        if self.thinking:
            self._in_block += not forced
            if length := self._completed(end, self.markers.end_tokens):
                self._earlier += self._forced[:-length].count(False)
                self.closed_by = "budget" if forced else "model"
                self._enter(thinking=False)
            return length
        if start and (length := self._completed(start, self.markers.start_tokens)):
            self.blocks += 1
            self._enter(thinking=True)
            return length
        return 0

    @property
    def may_be_opening(self) -> bool:
        """Whether the reply may be in the middle of an opening marker."""
        start = self.markers.start
        if self.thinking or not start or self._is_added(self.markers.start_tokens):
            return False
        tail = self._tokenizer.decode(self._block[-len(start.encode()) :])
        return any(tail.endswith(start[:n]) for n in range(1, len(start)))

    def missing_end_tokens(self) -> tuple[int, ...]:
        """What is left of the closing marker if the model has begun to write it.

        Returns:
            tuple[int, ...]: The closing marker's tokens, without those at the end of
            the reply so far.
        """
        end = self.markers.end_tokens
        for n in range(len(end) - 1, 0, -1):
            if tuple(self._block[-n:]) == end[:n]:
                return end[n:]
        return end

    def _enter(self, thinking: bool) -> None:
        self.thinking = thinking
        self._block = []
        self._forced = []
        self._in_block = 0

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]

    def _is_added(self, tokens: tuple[int, ...]) -> bool:
        return len(tokens) == 1 and tokens[0] in self._added

    def _completed(self, text: str, tokens: tuple[int, ...]) -> int:
        """How many of the last tokens make up a marker that is now complete, or 0."""
        if self._is_added(tokens):
            return int(self._block[-1] == tokens[0])
        # Such a marker may be split otherwise in context, at most into its bytes, and
        # share its outer tokens with the text around it.
        window = self._block[-(len(text.encode()) + 1) :]
        if text not in self._tokenizer.decode(window):
            return 0
        length = 1
        while text not in self._tokenizer.decode(window[-length:]):
            length += 1
        return length

    def _is_open(self, prompt: Sequence[int]) -> bool:
        start, end = self.markers.start_tokens, self.markers.end_tokens
        # What the user wrote opens no block: look behind the last end of a turn.
        ends = [i for i, t in enumerate(prompt) if t in self._tokenizer.eos_token_ids]
        prompt = prompt[ends[-1] + 1 :] if ends else prompt
        if self._is_added(start) and self._is_added(end):
            last = next((t for t in reversed(prompt) if t in (*start, *end)), None)
            return last == start[0]
        text = self._tokenizer.decode(list(prompt))
        return text.rfind(self.markers.start) > text.rfind(self.markers.end)
