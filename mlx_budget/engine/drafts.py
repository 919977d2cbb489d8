"""What speculative decoding needs of a model: KV caches that give tokens back.

Knows KV caches; nothing of samplers, budgets or how tokens are drafted.
"""

from collections.abc import Iterable, Iterator
from typing import Any


def flat_caches(caches: Iterable[Any]) -> Iterator[Any]:
    """The caches of some layers, of which each has one or several."""
    for cache in caches:
        yield from getattr(cache, "caches", (cache,))


def check_draftable(caches: Iterable[Any], prompt: int, max_tokens: int) -> None:
    """Checks that drafted tokens can be taken back wherever a reply ends.

    mlx-lm checks it before the first token alone: once a sliding window is full, it
    goes on from tokens that were rejected.

    Args:
        caches (Iterable): Of the model's layers, with what was read before.
        prompt (int): Tokens of the prompt.
        max_tokens (int): Most tokens of the reply; -1 for no limit.

    Raises:
        ValueError: If they cannot, with the way out.
    """
    for cache in flat_caches(caches):
        if not cache.is_trimmable():
            raise ValueError(
                f"A draft model needs KV caches that give tokens back, and those of "
                f"the model ({type(cache).__name__}) do not: leave out the draft model."
            )
        window = getattr(cache, "max_size", None)
        if window is None:
            continue
        room = window - 1 - cache.offset - prompt
        if not 0 <= max_tokens <= room:
            length = f"may get {max_tokens:,}" if max_tokens >= 0 else "has no limit"
            way_out = f"Set max_tokens to at most {room:,}, or leave"
            raise ValueError(
                f"A draft model cannot be used past the sliding window of the model, "
                f"which is {window:,} tokens: the prompt has {prompt:,}, and the reply "
                f"{length}. {way_out if room > 0 else 'Leave'} out the draft model."
            )
