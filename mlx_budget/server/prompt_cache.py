"""mlx-lm's cache of prompts, with entries that hold what they are stored under.

Knows KV caches and tokens; nothing of requests, models or HTTP.
"""

from typing import Any

from mlx_lm.models.cache import LRUPromptCache

from ..engine.drafts import flat_caches
from ..ranks import leads, share


class PromptCache(LRUPromptCache):
    """mlx-lm's, mended in two places.

    Its server stores the caches of a model and its draft model under the prompt and the
    reply, but behind the last token that was verified the reply was not read, and the
    draft model is a token further behind: what is read behind such an entry would
    continue another text. And it takes a prompt that is stored as a whole for read,
    which leaves the model nothing to continue from.

    Args:
        max_size (int): Most entries.
        quantized_kv_start (int, optional): Tokens from which on mlx-lm quantises KV
            caches; None if it does not.
    """

    def __init__(self, max_size: int, quantized_kv_start: int | None = None):
        super().__init__(max_size)
        self._quantized_kv_start = quantized_kv_start

    def fetch_nearest_cache(
        self, model: Any, tokens: list[Any]
    ) -> tuple[list[Any] | None, list[Any]]:
        """The caches that hold most of a prompt, and its other tokens, at least one.

        Args:
            model: What the model is known by.
            tokens (list): The prompt.
        """
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if cache is not None and not rest:
            cache, rest = super().fetch_nearest_cache(model, tokens[:-1])
            rest = [*rest, *tokens[-1:]]
        return cache, rest

    def insert_cache(
        self, model: Any, tokens: list[Any], prompt_cache: list[Any], **kwargs: Any
    ) -> None:
        """Stores caches under the tokens that all of them hold.

        Args:
            model: What the model is known by: its path, that of its adapter, and that
                of its draft model or None.
            tokens (list): What has been read, or nearly.
            prompt_cache (list): One KV cache for each layer, of the draft model too.
            kwargs: As in mlx-lm.
        """
        *_, draft = model
        held = len(tokens)
        if draft is not None:
            held = self._cut(prompt_cache, held)
        if held:
            super().insert_cache(model, tokens[:held], prompt_cache, **kwargs)

    def trim_to(
        self, *, n_sequences: int | None = None, n_bytes: int | None = None
    ) -> None:
        """As mlx-lm's; on several ranks all keep as many as rank 0.

        Args:
            n_sequences (int, optional): Most entries.
            n_bytes (int, optional): Most memory; ranks may have more or less in it.
        """
        if leads():
            super().trim_to(n_sequences=n_sequences, n_bytes=n_bytes)
        kept = share(len(self), "entries of the prompt cache")
        super().trim_to(n_sequences=kept)

    def _cut(self, prompt_cache: list[Any], length: int) -> int:
        """Cuts caches to the tokens that all of them hold.

        Returns:
            int: How many those are, or 0 if they are not known.
        """
        layers = list(flat_caches(prompt_cache))
        if any(map(self._is_left_behind, layers)):
            return 0
        held = min(length, *(getattr(layer, "offset", length) for layer in layers))
        for layer in layers:
            surplus = getattr(layer, "offset", length) - held
            if surplus and not layer.is_trimmable():
                return 0
            if surplus and layer.trim(surplus) != surplus:
                return 0
        return held

    def _is_left_behind(self, layer: Any) -> bool:
        """Whether mlx-lm went on with a quantised copy of the cache.

        It does so in lists that its server does not see, with tokens in the cache that
        were only drafted.
        """
        start = self._quantized_kv_start
        return (
            start is not None
            and hasattr(layer, "to_quantized")
            and layer.offset >= start
        )
