"""Prompts that have been read, for batches that ask them again.

Knows KV caches and tokens; nothing of what is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import LRUPromptCache

from .drafts import flat_caches

# mlx-lm keeps caches of several models apart; here there is one.
_MODEL = "model"


@dataclass
class KnownPrompts:
    """KV caches of prompts, kept until there is no more room.

    Nothing is thrown away for what comes later: who asks the same questions in the same
    order again and again would else find none of them.

    Attributes:
        max_bytes: Most memory for them.
    """

    max_bytes: int
    _kept: LRUPromptCache = field(default_factory=lambda: LRUPromptCache(2**31))

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return self._kept.nbytes

    def __len__(self) -> int:
        return len(self._kept)

    def nearest(self, prompt: Sequence[int]) -> tuple[list[Any] | None, list[int]]:
        """A copy of the caches that hold most of a prompt, and its other tokens.

        Args:
            prompt (Sequence[int]): Token ids; the last of them is never held, since the
                model has to go on from it.
        """
        *read, last = prompt
        if not read:
            return None, [last]
        caches, rest = self._kept.fetch_nearest_cache(_MODEL, read)
        return caches, [*rest, last]

    def keep(self, tokens: Sequence[int], caches: list[Any]) -> None:
        """Keeps the caches of tokens that have been read, if there is room for them.

        Args:
            tokens (Sequence[int]): What each of the caches holds.
            caches (list): One for each layer, which nobody writes to any more.
        """
        if not tokens or self.nbytes + sum(c.nbytes for c in caches) > self.max_bytes:
            return
        # Else they would hold on to the batch that they were cut from.
        mx.eval([layer.state for layer in flat_caches(caches)])
        self._kept.insert_cache(_MODEL, list(tokens), caches)
