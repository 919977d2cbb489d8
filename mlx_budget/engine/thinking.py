"""Where thinking begins and ends in a stream of tokens, and how long it has been.

Knows markers and token texts; nothing of budgets, predictors or models.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .markers import (
    MarkerFinder,
    ThinkingMarkers,
    ToolFormat,
    find_markers,
    markers_of,
)
from .splitting import split_reply
from .tags import may_be_tag
from .template import reply_part

__all__ = [
    "Mark",
    "MarkKind",
    "ThinkingMarkers",
    "ThinkingTracker",
    "find_markers",
    "markers_of",
    "split_reply",
]

# What stands before a marker that a text mentions: a quotation mark, or a word and a
# space. A reply that has reasoned on ends a line or a sentence before it closes.
_MENTION = re.compile(r"""(["'`“‘«(\[{<]|\w[,;:]? )$""")
_FENCE = re.compile(r"^ *(```|~~~)", re.MULTILINE)


def _is_mention(before: str, markers: ThinkingMarkers) -> bool:
    """Whether a marker behind a text of an answer is only mentioned in it."""
    line = before.rpartition("\n")[2]
    is_in_quotes = any(line.count(quote) % 2 for quote in '"`')
    if is_in_quotes or _MENTION.search(before) or len(_FENCE.findall(before)) % 2:
        return True
    # If one of a pair on a line is mentioned, both are; stars around it are bold type.
    lead, opening, _ = line.rpartition(markers.start or "\n")
    is_pair = bool(opening) and markers.end not in line
    is_bold = lead.endswith(("*", "_"))
    return is_pair and (is_bold or _MENTION.search(lead) is not None)


class MarkKind(Enum):
    """What a marker that was found does."""

    OPEN = "opens thinking"
    REPEAT = "repeats the opening marker of the prompt"
    CLOSE = "closes thinking"
    CLOSE_AGAIN = "closes what was reasoned behind the close"
    TOOL = "begins a tool call, which ends thinking"
    TOOL_END = "ends a tool call"
    HEADER = "opens an answer without thinking before it"
    FRAME = "stands around an answer"


@dataclass(frozen=True)
class Mark:
    """A marker at the end of the reply so far.

    Attributes:
        kind: What it does.
        text: The marker.
        length: How many of the last tokens make it up.
    """

    kind: MarkKind
    text: str
    length: int

    @property
    def is_of_the_answer(self) -> bool:
        """Whether the marker itself belongs to the answer."""
        return self.kind in (MarkKind.TOOL, MarkKind.TOOL_END)


class ThinkingTracker:
    """Follows one reply token by token through its thinking.

    Thinking begins where the prompt has opened it, at an opening marker at the start of
    the reply, or at one right behind a closing marker, white space aside; anywhere else
    an opening marker is text. It ends at the closing marker or at a tool call. A
    closing marker in the answer means that all before it was thinking as well.

    Attributes:
        markers: The markers that it looks for.
        thinking: Whether the last token left the reply inside a thinking block.
        thinking_tokens: Tokens inside thinking blocks so far, markers not counted, nor
            tokens that were put in to close a block.
        after_close_tokens: Tokens of what was reasoned behind the close, or without
            having been opened, and closed.
        answer_tokens: Tokens of the answer so far, tool calls included.
        after_newline: Whether the text of the last token contains a newline.
        closed_by: "model" or "budget" once a block was closed, else None.
        blocks: Thinking blocks opened so far.
        is_left_out: Whether the prompt has closed thinking before the reply began.
    """

    def __init__(
        self,
        tokenizer: TokenizerWrapper,
        markers: ThinkingMarkers,
        prompt: Sequence[int],
    ):
        self._tokenizer = tokenizer
        self.markers = markers
        self._start = MarkerFinder(tokenizer, markers.start)
        self._end = MarkerFinder(tokenizer, markers.end)
        self._tools = [
            (MarkerFinder(tokenizer, tool.start), tool) for tool in markers.tool_formats
        ]
        self._tool_end: MarkerFinder | None = None  # while a tool is called
        self._header = MarkerFinder(tokenizer, markers.answer_header)
        self._frames = [MarkerFinder(tokenizer, text) for text in markers.frames]
        self._is_framed = False
        self._texts: dict[int, str] = {}
        # Tokens since the last marker, and whether each was put in.
        self._block: list[int] = []
        self._forced: list[bool] = []
        self._earlier = 0
        self._in_block = 0
        self._may_open = True
        self._has_mark = False  # whether there was a marker, of any kind
        # Tokens of the answer that a closing marker would turn into thinking.
        self._since_close = 0
        self.after_close_tokens = 0
        self.answer_tokens = 0
        self.after_newline = False
        self.closed_by: str | None = None
        self.thinking, self.is_left_out = not markers.start, False
        if markers.start:
            part = reply_part(tokenizer, markers, prompt)
            self.thinking = part.rfind(markers.start) > part.rfind(markers.end)
            opening = markers.frames[:1]
            self._is_framed = part.rstrip().endswith(opening) if opening else False
            is_closed = markers.end in part or self._is_framed
            self.is_left_out = not self.thinking and is_closed
        self.blocks = int(self.thinking)

    @property
    def thinking_tokens(self) -> int:
        return self._earlier + self._in_block

    @property
    def starts_line(self) -> bool:
        """Whether guidance acts on the next token: the first of thinking, or one behind
        a newline, in the first block.
        """
        is_first = self.thinking_tokens == 0 or self.after_newline
        return self.thinking and self.blocks == 1 and is_first

    @property
    def may_open(self) -> bool:
        """Whether an opening marker that came now would open thinking."""
        return self._may_open and not self.thinking and bool(self.markers.start)

    @property
    def is_blank(self) -> bool:
        """Whether the block that the reply is in is white space so far."""
        return not self._tokenizer.decode(self._block).strip()

    def awaited(self) -> list[str]:
        """Markers of several tokens that may be about to come."""
        if self.thinking:
            finders = [self._end, *(finder for finder, _ in self._tools)]
            if self._may_open:
                finders.append(self._start)
        elif self._tool_end is not None:
            finders = [self._tool_end]
        else:
            finders = [self._end, *self._frames]
            if self._may_open:
                finders += [self._start, self._header]
        return [finder.text for finder in finders if not finder.is_token]

    @property
    def is_mid_character(self) -> bool:
        """Whether the last token left a character of several bytes incomplete."""
        # It has four bytes, and so four tokens, at most.
        return self._tokenizer.decode(self._block[-4:]).endswith("\ufffd")

    def has_newline(self, tokens: Sequence[int]) -> bool:
        """Whether one of some tokens would end a line."""
        return any("\n" in self._text(token) for token in tokens)

    def update(self, token: int, forced: bool = False) -> Mark | None:
        """Takes the next token of the reply.

        Args:
            token: Its id.
            forced: Whether it was put in to close the block, not chosen by the model.

        Returns:
            Mark or None: The marker that the reply ends with now, if it tells its parts
            apart.
        """
        text = self._text(token)
        self.after_newline = "\n" in text
        self._block.append(token)
        self._forced.append(forced)
        if self.thinking:
            return self._think(text, forced)
        if forced:
            # White space behind the closing marker, or a text that begins the answer.
            self._may_open = self._may_open and self._is_blank()
            return None
        return self._answer(text)

    def missing_end_tokens(self) -> tuple[int, ...]:
        """What is left of the closing marker if the model has begun to write it.

        Returns:
            tuple[int, ...]: The closing marker's tokens, without what the reply ends
            with already, in whatever tokens.
        """
        end = self.markers.end_tokens
        for n in range(len(end) - 1, 0, -1):
            if tuple(self._block[-n:]) == end[:n]:
                return end[n:]
        if begun := self._end.begun(self._block):
            return self._encode(self.markers.end[len(begun) :])
        return end

    def missing_tool_tokens(self) -> tuple[int, ...]:
        """What is left of the start of a tool call that the model has begun to write.

        Returns:
            tuple[int, ...]: Its tokens; none if the reply ends with no beginning of
            one, or with what may be much else: the first characters of a text, the
            beginning of two, or as much of the closing marker.
        """
        begun = [(finder.begun(self._block), tool) for finder, tool in self._tools]
        longest = max((text for text, _ in begun), key=len, default="")
        tools = [tool for text, tool in begun if text == longest]
        is_other = len(longest) <= len(self._end.begun(self._block)) or len(tools) > 1
        if is_other or not self._may_begin(tools[0], longest):
            return ()
        start = tools[0].start
        finder = MarkerFinder(self._tokenizer, longest)
        if 2 * len(longest) <= len(start) and not finder.has_added_token:
            return ()
        return self._encode(start[len(longest) :])

    def leaves_character_open(self, token: int) -> bool:
        """Whether a character would be incomplete if this token came next."""
        tail = [*self._block[-3:], token]
        return self._tokenizer.decode(tail).endswith("\ufffd")

    def _think(self, text: str, forced: bool) -> Mark | None:
        self._in_block += not forced
        if self._may_open and not forced:
            if length := self._start.found(self._block, text):
                self._may_open = False
                return Mark(MarkKind.REPEAT, self.markers.start, length)
            self._may_open = self._is_blank()
        if length := self._end.found(self._block, text):
            self._in_block = self._forced[:-length].count(False)
            self.closed_by = "budget" if forced else "model"
            return self._enter(MarkKind.CLOSE, self.markers.end, length)
        if (found := self._tool_begins(text)) is not None:
            tool, length = found
            if self._forced[-length]:
                return None  # a budget message mentions it
            self._in_block = self._forced[:-length].count(False)
            self.answer_tokens += self._forced[-length:].count(False)
            self.closed_by = "budget" if forced else "model"
            self._tool_end = MarkerFinder(self._tokenizer, tool.end)
            return self._enter(MarkKind.TOOL, tool.start, length)
        return None

    def _answer(self, text: str) -> Mark | None:
        self.answer_tokens += 1
        self._since_close += 1
        if (end := self._tool_end) is not None:
            if not (length := end.found(self._block, text)):
                return None
            self._tool_end = None
            return self._enter(MarkKind.TOOL_END, end.text, length)
        if self._may_open:
            for finder, kind in (
                (self._start, MarkKind.OPEN),
                (self._header, MarkKind.HEADER),
            ):
                if length := finder.found(self._block, text):
                    # White space before the marker is no answer.
                    self.answer_tokens -= self._since_close
                    self.blocks += kind is MarkKind.OPEN
                    return self._enter(kind, finder.text, length)
            self._may_open = self._is_blank()
        if (found := self._tool_begins(text)) is not None:
            self._tool_end = MarkerFinder(self._tokenizer, found[0].end)
            return None
        for finder in self._frames:
            length = finder.found(self._block, text)
            if length and self._is_frame(finder, length):
                return self._pass_frame(finder.text, length)
        if length := self._end.found(self._block, text):
            if not self._is_mentioned(length):
                self.after_close_tokens += self._since_close - length
                self.answer_tokens -= self._since_close
                return self._enter(MarkKind.CLOSE_AGAIN, self.markers.end, length)
        return None

    def _is_frame(self, finder: MarkerFinder, length: int) -> bool:
        """Whether a text around answers does stand around this one.

        One in ordinary tokens opens an answer as its first text, and closes what was
        opened.
        """
        if self._is_mentioned(length):
            return False
        if finder.has_added_token or finder is not self._frames[0]:
            return finder.has_added_token or self._is_framed
        text = self._tokenizer.decode(self._block)
        return not self._is_framed and not text.partition(finder.text)[0].strip()

    def _pass_frame(self, text: str, length: int) -> Mark:
        """Takes a text around answers out of the count."""
        self._is_framed = text == self.markers.frames[0]
        self.answer_tokens -= length
        since_close = self._since_close - length
        mark = self._enter(MarkKind.FRAME, text, length)
        self._since_close = since_close
        return mark

    def _tool_begins(self, text: str) -> tuple[ToolFormat, int] | None:
        """What begins a tool call with the last token, and its length in tokens."""
        for finder, tool in self._tools:
            length = finder.found(self._block, text)
            if length and self._may_begin(tool, tool.start):
                return tool, length
        return None

    def _may_begin(self, tool: ToolFormat, written: str) -> bool:
        """Whether a call may begin where so much of its start was written last."""
        if tool.anywhere:
            return True
        text = self._tokenizer.decode(self._block[-len(written.encode()) - 8 :])
        return not text[: text.rfind(written)].rpartition("\n")[2].strip()

    def _enter(self, kind: MarkKind, text: str, length: int) -> Mark:
        self._has_mark = True
        self.thinking = kind is MarkKind.OPEN
        self._may_open = kind in (MarkKind.CLOSE, MarkKind.CLOSE_AGAIN)
        self._earlier += self._in_block
        self._in_block = self._since_close = 0
        self._block, self._forced = [], []
        return Mark(kind, text, length)

    def _is_blank(self) -> bool:
        """Whether the block is blank so far, the beginning of a marker aside."""
        begun = self._start.begun(self._block) or self._header.begun(self._block)
        text = self._tokenizer.decode(self._block).removesuffix(begun).strip()
        # Behind a tag at the very beginning a reply may open thinking as well.
        is_first = not self.thinking and self.blocks == 0 and not self._has_mark
        return may_be_tag(text) if is_first else not text

    def _is_mentioned(self, length: int) -> bool:
        before = self._tokenizer.decode(self._block[:-length])
        return _is_mention(before, self.markers)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]
