"""How a token is drawn from a distribution: mlx-lm's sampler, with draws of its own,
and what may not be drawn.

Knows `Sampling` and mlx-lm's sampler; nothing of budgets or requests.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..ranks import current, note_token, share
from .markers import ThinkingMarkers
from .settings import MAX_SEED, Sampling

# A step of a Weyl sequence: 2^64 over the golden ratio, which is odd, so that no two
# of the first 2^64 positions of a request share a key.
_STEP = 0x9E3779B97F4A7C15
_LEAST_SHARE = 1e-6  # of top_p


def random_seed() -> int:
    """A seed that nobody has chosen, the same on all ranks."""
    return share(int.from_bytes(os.urandom(8), "little"), "a seed")


class TokenDraw:
    """Draws the token at a position of a reply.

    With a seed the draw depends on the seed, the position and the distribution alone;
    MLX's global random generator is left as it was. Without one it draws from that.
    """

    def __init__(self, sampling: Sampling, tokenizer: TokenizerWrapper):
        if current() is not None and sampling.seed is None and sampling.temp > 0:
            # Ranks have to draw alike, and their generators are their own.
            sampling = replace(sampling, seed=random_seed())
        self._sampling = sampling
        special = sampling.xtc_special_tokens
        if special is None:
            special = (*tokenizer.encode("\n"), *tokenizer.eos_token_ids)
        self._special = special
        self._sampler: Callable[[mx.array], mx.array] | None = None

    def __call__(self, logprobs: mx.array, position: int) -> mx.array:
        """Draws a token.

        Args:
            logprobs (mx.array): Log-probabilities in nats, shape (1, V).
            position (int): Index of the token in its reply, from 0.

        Returns:
            mx.array: The token, shape (1,).

        Raises:
            ValueError: As `check`.
        """
        if self._sampler is None:
            self._sampler = self._make(logprobs.shape[-1])
        draw, seed = self._sampler, self._sampling.seed
        if self._sampling.temp == 0:
            return draw(logprobs)
        random: Any = mx.random  # whose state MLX calls an object
        state = random.state[0]
        if seed is None:
            try:
                return draw(logprobs)
            except BaseException:
                # mlx-lm's samplers are compiled, generator included: what raises
                # within leaves it without a value, for all draws that follow.
                random.state[0][:] = state
                raise
        mx.random.seed((seed + position * _STEP) & MAX_SEED)
        try:
            return draw(logprobs)
        finally:
            random.state[0][:] = state

    def check(self, vocab_size: int) -> None:
        """Checks what depends on the vocabulary.

        mlx-lm's own errors come too late, when MLX's generator is spoilt, and tokens
        that are not there are written beyond the end of an array.

        Args:
            vocab_size (int): V.

        Raises:
            ValueError: Naming the value that is not allowed.
        """
        for name in ("top_k", "min_tokens_to_keep"):
            value = getattr(self._sampling, name)
            if value >= vocab_size:
                raise ValueError(
                    f"{name} has to be an integer in the range from 1 to "
                    f"{vocab_size - 1:,}, below the size of the vocabulary; not "
                    f"{value:,}."
                )
        for token in self._sampling.xtc_special_tokens or ():
            if token >= vocab_size:
                raise ValueError(
                    f"xtc_special_tokens has to be tokens from 0 to "
                    f"{vocab_size - 1:,}; not {token:,}."
                )

    def _make(self, vocab_size: int) -> Callable[[mx.array], mx.array]:
        self.check(vocab_size)
        sampling = self._sampling
        return make_sampler(
            temp=sampling.temp,
            # Below float32's least share no token would be left.
            top_p=max(sampling.top_p, _LEAST_SHARE) if sampling.top_p else 0.0,
            min_p=sampling.min_p,
            min_tokens_to_keep=sampling.min_tokens_to_keep,
            top_k=sampling.top_k,
            xtc_probability=sampling.xtc_probability,
            xtc_threshold=sampling.xtc_threshold,
            xtc_special_tokens=[t for t in self._special if t < vocab_size],
        )


def at_temperature_1(sampling: Sampling) -> Sampling:
    """The same for a distribution that is at its temperature already."""
    return replace(sampling, temp=1.0) if sampling.temp > 0 else sampling


def read_token(token: mx.array) -> int:
    """The id of a token, shape (1,); waits until the device has computed it."""
    value: Any = token.item()
    return value


def read_chosen(token: mx.array) -> int:
    """`read_token`, of a token of the reply, which has to be the same on all ranks."""
    chosen = read_token(token)
    note_token(chosen)
    return chosen


class EndOfReply:
    """The tokens that end a reply or open thinking, taken out of a distribution."""

    def __init__(self, tokenizer: TokenizerWrapper, markers: ThinkingMarkers):
        self._ends = sorted(tokenizer.eos_token_ids)
        self._close = markers.end_tokens
        self._open = markers.start_tokens

    def without(self, logprobs: mx.array) -> mx.array:
        """Log-probabilities (1, V) in which the reply cannot end here."""
        return _without(logprobs, self._ends)

    def without_opening(self, logprobs: mx.array) -> mx.array:
        """Log-probabilities (1, V) in which no thinking block begins here."""
        return _without(logprobs, self._open[:1])

    def put_off(self, logprobs: mx.array, missing: Sequence[int]) -> mx.array:
        """Log-probabilities (1, V), normalised, in which thinking goes on.

        Neither the reply ends here nor does the closing marker begin; nor does one go
        on that was begun in other tokens.

        Args:
            logprobs (mx.array): In nats, shape (1, V).
            missing (Sequence[int]): What is left of the closing marker.
        """
        rest = _without(logprobs, [*self._ends, *self._close[:1], *missing[:1]])
        rest = rest.astype(mx.float32)
        return rest - mx.logsumexp(rest, axis=-1, keepdims=True)

    def or_close(self, token: mx.array) -> mx.array:
        """The token drawn, shape (1,); the first of the closing marker for an end.

        So thinking is closed as often as the reply would have ended in it.
        """
        is_end = mx.any(token == mx.array(self._ends, token.dtype))
        return mx.where(is_end, mx.array(self._close[0], token.dtype), token)

    def rest_of_close(self, drawn: int) -> tuple[int, ...]:
        """What follows the token of `or_close`, if that was drawn as an end."""
        return self._close[1:] if drawn in self._ends else ()


def _without(logprobs: mx.array, tokens: Sequence[int]) -> mx.array:
    kept = mx.array(logprobs)
    if there := _there(logprobs, tokens):
        kept[:, mx.array(there)] = -mx.inf
    return kept


def _there(logprobs: mx.array, tokens: Sequence[int]) -> list[int]:
    """Tokens of the distribution: MLX does not say so if there are others."""
    return [token for token in tokens if token < logprobs.shape[-1]]
