"""How a token is drawn from a distribution: mlx-lm's sampler, with draws of its own,
and what may not be drawn.

Knows `Sampling` and mlx-lm's sampler; nothing of budgets or requests.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .markers import ThinkingMarkers
from .settings import MAX_SEED, Sampling

# A step of a Weyl sequence: 2^64 over the golden ratio, which is odd, so that no two
# of the first 2^64 positions of a request share a key.
_STEP = 0x9E3779B97F4A7C15


class TokenDraw:
    """Draws the token at a position of a reply.

    With a seed the draw depends on the seed, the position and the distribution alone;
    MLX's global random generator is left as it was. Without one it draws from that.
    """

    def __init__(self, sampling: Sampling, tokenizer: TokenizerWrapper):
        self._sampling = sampling
        special = sampling.xtc_special_tokens
        if special is None:
            special = (*tokenizer.encode("\n"), *tokenizer.eos_token_ids)
        self._draw: Callable[[mx.array], mx.array] = make_sampler(
            temp=sampling.temp,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            min_tokens_to_keep=sampling.min_tokens_to_keep,
            top_k=sampling.top_k,
            xtc_probability=sampling.xtc_probability,
            xtc_threshold=sampling.xtc_threshold,
            xtc_special_tokens=list(special),
        )

    @property
    def temp(self) -> float:
        """The sampling temperature."""
        return self._sampling.temp

    def __call__(self, logprobs: mx.array, position: int) -> mx.array:
        """Draws a token.

        Args:
            logprobs (mx.array): Log-probabilities in nats, shape (1, V).
            position (int): Index of the token in its reply, from 0.

        Returns:
            mx.array: The token, shape (1,).

        Raises:
            ValueError: If ``top_k`` or ``min_tokens_to_keep`` is not below V. mlx-lm's
                own error would come too late: MLX's generator is spoilt by then.
        """
        vocab_size = logprobs.shape[-1]
        for name in ("top_k", "min_tokens_to_keep"):
            value = getattr(self._sampling, name)
            if value >= vocab_size:
                raise ValueError(
                    f"{name} has to be an integer in the range from 1 to "
                    f"{vocab_size - 1:,}, below the size of the vocabulary; not "
                    f"{value:,}."
                )
        seed = self._sampling.seed
        if seed is None or self._sampling.temp == 0:
            return self._draw(logprobs)
        random: Any = mx.random  # whose state MLX calls an object
        state = random.state[0]
        mx.random.seed((seed + position * _STEP) & MAX_SEED)
        try:
            return self._draw(logprobs)
        finally:
            random.state[0][:] = state


def at_temperature_1(sampling: Sampling) -> Sampling:
    """The same for a distribution that is at its temperature already."""
    return replace(sampling, temp=1.0) if sampling.temp > 0 else sampling


def read_token(token: mx.array) -> int:
    """The id of a token, shape (1,); waits until the device has computed it."""
    value: Any = token.item()
    return value


class EndOfReply:
    """The tokens that end a reply or open thinking, taken out of a distribution."""

    def __init__(self, tokenizer: TokenizerWrapper, markers: ThinkingMarkers):
        self._ends = mx.array(sorted(tokenizer.eos_token_ids))
        self._close = markers.end_tokens
        self._open = markers.start_tokens

    def without(self, logprobs: mx.array) -> mx.array:
        """Log-probabilities (1, V) in which the reply cannot end here."""
        return _without(logprobs, self._ends)

    def without_opening(self, logprobs: mx.array) -> mx.array:
        """Log-probabilities (1, V) in which no thinking block begins here."""
        return _without(logprobs, mx.array(self._open[:1]))

    def as_close(self, logprobs: mx.array, temp: float) -> mx.array:
        """Log-probabilities (1, V) in which the end of thinking takes the place of that
        of the reply.

        The closing marker is drawn as often as the end of the reply would have been,
        besides its own share; at a temperature of 0 where that would have been the
        likeliest. A closing marker of several tokens gets nothing: its first token may
        as well begin something else.
        """
        rest = self.without(logprobs)
        if len(self._close) != 1:
            return rest
        (close,) = self._close
        ends = logprobs[:, self._ends]
        if temp > 0:
            # Sampling scales what it is given by the temperature.
            ends = temp * mx.logsumexp(ends / temp, axis=-1)
            own = rest[:, close]
            rest[:, close] = temp * mx.logaddexp(own / temp, ends / temp)
        else:
            rest[:, close] = mx.maximum(rest[:, close], ends.max(axis=-1))
        return rest


def _without(logprobs: mx.array, tokens: mx.array) -> mx.array:
    kept = mx.array(logprobs)
    if tokens.size:
        kept[:, tokens] = -mx.inf
    return kept
