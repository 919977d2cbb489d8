"""Thinking that is slow before one moment and fast after it.

Zhang et al., "AlphaOne: Reasoning Models Thinking Slow and Fast at Test Time", arXiv
2505.24863. Knows words and paragraphs; nothing of predictors.
"""

import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .following import FollowingSampler, Paragraphs
from .lasting import WAIT
from .words import words_of

SLOW = ("wait", "hmm", "alternatively")


class AlphaOne(FollowingSampler):
    """Before the moment "Wait" is put in at the ends of paragraphs, by chance.

    The chance falls from 1 to 0 in a straight line. After the moment a word of slow
    thinking that is drawn closes thinking. Nothing else does.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._words = words_of(self.tokenizer, SLOW)
        self._wait = self.tokenizer.encode(WAIT, add_special_tokens=False)
        self._paragraphs = Paragraphs()
        self._is_at_end = False
        self._last: list[int] = []
        # Apart from the draws of tokens, which depend on their places alone.
        self._chance = random.Random(self.sampling.seed)

    def before(self, logprobs: mx.array) -> Sequence[int]:
        moment = self.thinking.ceiling or 0
        if not self._is_at_end or self.used >= moment:
            return ()
        is_drawn = self._chance.random() < 1 - self.used / moment
        return self._wait if is_drawn else ()

    def instead_of(self, token: int) -> Sequence[int]:
        is_slow = token in self._words.completed_by(self._last)
        is_after = self.used >= (self.thinking.ceiling or 0)
        return self.closing() if is_slow and is_after else ()

    def take(self, token: int) -> None:
        self._last = [*self._last, token][-self._words.longest :]
        text = self.tokenizer.decode([token])
        self._is_at_end = self._paragraphs.ended_with(text)
