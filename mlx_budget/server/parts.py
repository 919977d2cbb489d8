"""Tells mlx-lm's handler which part of a reply a text is.

The handler splits a reply where its text holds the tokenizer's markers, wherever that
is. Here the reply is split where the markers were found already, so the handler looks
for marks of ours in their place. Knows pieces of replies; nothing of HTTP.
"""

from typing import Any

from mlx_lm import server
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.follower import Part, Piece
from ..engine.thinking import MarkKind

# Of Unicode's private use, which no model writes.
_MARK = "\ue0f0"
OPEN, CLOSE = f"{_MARK}open{_MARK}", f"{_MARK}close{_MARK}"
# mlx-lm 0.31 splits replies by tokens, and takes no text from here.
SPLITS_TEXT = hasattr(server, "make_text_state_machine")


class _MarkedTokenizer:
    """A tokenizer whose thinking markers are ours, and whose frames are gone."""

    has_thinking = True
    structural_markers = ()
    think_start = OPEN
    think_end = CLOSE

    def __init__(self, tokenizer: TokenizerWrapper):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def make_machine(tokenizer: TokenizerWrapper) -> Any:
    """mlx-lm's state machine over the marks and texts that are given here."""
    return server.make_text_state_machine(_MarkedTokenizer(tokenizer))


def mark_of(piece: Piece) -> str:
    """The mark for the handler that stands before a piece, or in its place."""
    if piece.mark is MarkKind.OPEN:
        return OPEN
    is_close = piece.mark in (MarkKind.CLOSE, MarkKind.TOOL)
    return CLOSE if is_close else ""


def text_of(piece: Piece) -> str:
    """The text of a piece for the handler, which sees no markers."""
    return "" if piece.part is Part.MARKER else piece.text.replace(_MARK, "")
