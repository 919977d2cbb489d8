"""Splits a reply that was kept as the pieces of a stream into thinking and answer.

Knows pieces of text and markers; nothing of tokens.
"""

import itertools
import re
from collections.abc import Sequence

from .markers import ThinkingMarkers

# What parts two blocks of thinking in a run.
_BOUNDARY = "\0"


def split_reply(
    runs: Sequence[tuple[bool, str]], markers: ThinkingMarkers | None
) -> tuple[str, str]:
    """Thinking and answer of a reply that was kept as the pieces of a stream.

    Who has the `ReplyFollower` of the reply asks that.

    Args:
        runs (Sequence): Its text in order, as pieces of thinking (True, markers
            included) or answer, such as the ``is_thinking`` and ``text`` of the
            responses of `stream_generate`.
        markers (ThinkingMarkers, optional): Those of the model, if it has any.
    """
    thoughts: list[str] = []
    answers: list[str] = []
    for is_thinking, pieces in itertools.groupby(runs, lambda run: run[0]):
        texts = [text for _, text in pieces]
        if not is_thinking or markers is None:
            answers.append("".join(texts))
            continue
        opened, closed, rest = _split_block(texts, markers)
        if closed and not opened.strip() and answers:
            # It closes what was reasoned behind the close.
            opened, answers = "".join(answers), []
        thoughts += [thought.strip() for thought in opened.split(_BOUNDARY)]
        answers.append(rest)
    return "\n".join(thoughts), "".join(answers)


def _split_block(texts: list[str], markers: ThinkingMarkers) -> tuple[str, bool, str]:
    """The thinking of a run, whether it was closed, and what reaches into the answer.

    The closing marker is the one that ends with the run's last text; what the run
    quotes before is thinking.
    """
    text = "".join(texts).rstrip()
    last = next((len(t.rstrip()) for t in reversed(texts) if t.strip()), 0)
    at, is_closed, rest = text.rfind(markers.end), False, ""
    if at >= 0 and at + len(markers.end) > len(text) - last:
        text, rest, is_closed = text[:at], text[at + len(markers.end) :], True
    if markers.start:
        if text.lstrip().startswith(markers.start):
            text = text.lstrip()[len(markers.start) :]
        side_by_side = re.escape(markers.end) + r"\s*" + re.escape(markers.start)
        text = re.sub(side_by_side, _BOUNDARY, text)
    return text, is_closed, rest
