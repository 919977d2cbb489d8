"""Ends a reply at a stop word, wherever its text is split into tokens.

Knows texts; nothing of tokens. (mlx-lm looks for the tokens that a word alone is
encoded to, which are not those that it has within a text.)
"""

from collections.abc import Sequence


class StopWords:
    """Looks for stop words in a text that comes in pieces.

    Args:
        words (Sequence[str]): None of them empty.

    Attributes:
        found: The word that has ended the text, if one has.
    """

    def __init__(self, words: Sequence[str]):
        self._words = tuple(words)
        self._held = ""
        self._is_leading = False
        self.found: str | None = None

    def begin_answer(self) -> None:
        """Says that an answer follows a marker.

        White space that leads it is no paragraph's end: words that are nothing else are
        looked for behind it.
        """
        self._is_leading = True

    def take(self, text: str) -> tuple[str, bool]:
        """Takes the next piece.

        Returns:
            tuple[str, bool]: What can be told, held back before or new, and whether a
            stop word followed, which ends the text.
        """
        text = self._held + text
        lead = len(text) - len(text.lstrip()) if self._is_leading else 0
        starts = [(word, 0 if word.strip() else lead) for word in self._words]
        found = [(i, word) for word, at in starts if (i := text.find(word, at)) >= 0]
        if found:
            begin, self.found = min(found, key=lambda place: place[0])
            self._held = ""
            return text[:begin], True
        length = max((_begun(word, text[at:]) for word, at in starts), default=0)
        told, self._held = text[: len(text) - length], text[len(text) - length :]
        self._is_leading &= not told.strip()
        return told, False

    def rest(self) -> str:
        """What was held back, when no more is to come."""
        held, self._held = self._held, ""
        return held


def _begun(word: str, text: str) -> int:
    """How many characters at the end of a text may be the beginning of a word."""
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(word[:n])), 0)
