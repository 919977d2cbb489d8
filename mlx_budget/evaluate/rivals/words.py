"""Words that a model is kept from writing while it thinks, or that say it reflects.

Knows tokenizers; nothing of budgets.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .following import FollowingSampler, held_down

# Those of "Wait, We Don't Need to 'Wait'!" (NoWait, arXiv 2506.08343): the words that
# most often open a paragraph of QwQ-32B's thinking. "double-check" is in "check".
REFLECTION = (
    *("wait", "alternatively", "hmm", "but", "however", "alternative", "another"),
    *("check", "oh", "maybe", "verify", "other", "again", "now", "ah", "any"),
)

_Found = dict[tuple[str, ...], "Words"]
_found: weakref.WeakKeyDictionary[TokenizerWrapper, _Found] = (
    weakref.WeakKeyDictionary()
)


class Words:
    """How a tokenizer writes some words, whatever their case and what stands before.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        words (tuple): In small letters.

    Attributes:
        tokens: Each token that is such a word by itself, with spaces or punctuation
            around it or none.
        pieces: Where a word takes several tokens, all of them.
    """

    def __init__(self, tokenizer: TokenizerWrapper, words: tuple[str, ...]):
        self._tokenizer = tokenizer
        wanted = set(words)
        self.tokens = sorted(
            token
            for token in tokenizer.get_vocab().values()
            if _bare(tokenizer.decode([token])) in wanted
        )
        alone = set(self.tokens)
        pieces = set()
        for word in words:
            for form in (word, word.capitalize(), word.upper()):
                for text in (form, f" {form}", f"\n{form}"):
                    tokens = tokenizer.encode(text, add_special_tokens=False)
                    # A line's end before it is no part of the word.
                    while tokens and not tokenizer.decode(tokens[:1]).strip():
                        tokens = tokens[1:]
                    if len(tokens) > 1 and not alone & set(tokens):
                        pieces.add(tuple(tokens))
        self.pieces = sorted(pieces)
        # By the last token but one, so that few are looked at.
        self._before: dict[int, list[tuple[int, ...]]] = {}
        for piece in self.pieces:
            self._before.setdefault(piece[-2], []).append(piece)

    def completed_by(self, before: Sequence[int]) -> list[int]:
        """Tokens that would write such a word after some others.

        Args:
            before (Sequence[int]): The last tokens of the text.
        """
        pieces = self._before.get(before[-1], []) if before else []
        ends = {tokens[-1] for tokens in pieces if self._are_begun(tokens, before)}
        return [*self.tokens, *sorted(ends)] if ends else self.tokens

    def _are_begun(self, tokens: tuple[int, ...], before: Sequence[int]) -> bool:
        """Whether all of a word's tokens but the last stand at the end of a text."""
        length = len(tokens) - 1
        if tuple(before[-length:]) != tokens[:-1]:
            return False
        # A word that brings no space of its own does not begin behind a letter.
        decode = self._tokenizer.decode
        has_space = decode([tokens[0]])[:1].isspace()
        is_inside = (
            len(before) > length and decode([before[-length - 1]])[-1:].isalpha()
        )
        return has_space or not is_inside

    def begun_by(self, token: int) -> bool:
        """Whether a token is such a word, or the first of its tokens."""
        return token in self.tokens or any(t[0] == token for t in self.pieces)

    @property
    def longest(self) -> int:
        """Most tokens that one of the words takes."""
        return max(map(len, self.pieces), default=1)


def words_of(tokenizer: TokenizerWrapper, words: tuple[str, ...]) -> Words:
    """`Words`, found once for each tokenizer."""
    found = _found.setdefault(tokenizer, {})
    if words not in found:
        found[words] = Words(tokenizer, words)
    return found[words]


class NoWait(FollowingSampler):
    """Words of reflection are never drawn while the model thinks."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._words = words_of(self.tokenizer, REFLECTION)
        self._last: list[int] = []

    def adjust(self, logprobs: mx.array) -> mx.array:
        return held_down(logprobs, self._words.completed_by(self._last))

    def take(self, token: int) -> None:
        self._last = [*self._last, token][-self._words.longest :]


def _bare(text: str) -> str:
    """A text in small letters, without what stands around its letters."""
    letters = [i for i, character in enumerate(text) if character.isalpha()]
    return text[letters[0] : letters[-1] + 1].lower() if letters else ""
