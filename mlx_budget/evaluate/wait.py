"""The other half of budget forcing: thinking that is made to last.

Where the model closes its thinking too early, "Wait" takes the place of the closing
marker (Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393). Knows
mlx-lm's samplers; nothing of predictors.
"""

from collections import deque

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.draws import TokenDraw, read_token
from ..engine.sampler import PlainSampler, Prompt, ReplySampler, encode_prompt
from ..engine.settings import Sampling, ThinkingBudget
from ..engine.thinking import ThinkingTracker, find_markers
from ..method.predictor import Predictor

WAIT = "Wait"


def make_wait_sampler(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None,
    prompt: Prompt,
    thinking: ThinkingBudget,
    sampling: Sampling,
    *,
    minimum: int,
) -> "WaitSampler":
    """Makes a sampler for mlx-lm whose thinking lasts at least ``minimum`` tokens.

    Args:
        model, tokenizer, predictor, prompt, thinking, sampling: As in
            `mlx_budget.engine.sampler.steer`, without a budget.
        minimum (int): Tokens of thinking before the model may close it; those of
            "Wait" count.

    Raises:
        ValueError: If the closing marker is not one token, and so cannot be replaced.
    """
    markers = find_markers(tokenizer, thinking.start, thinking.end)
    if len(markers.end_tokens) != 1:
        raise ValueError(
            f"The strategy wait needs a closing marker of one token, and "
            f"{markers.end!r} has {len(markers.end_tokens)}: leave the strategy out."
        )
    plain = PlainSampler(TokenDraw(sampling, tokenizer))
    tracker = ThinkingTracker(tokenizer, markers, encode_prompt(tokenizer, prompt))
    wait = tokenizer.encode(WAIT, add_special_tokens=False)
    return WaitSampler(plain, tracker, list(wait), minimum)


class WaitSampler(ReplySampler):
    """Each step waits for the token that was drawn.

    The tokens of "Wait" count as the model's own: its record is that of a sampler
    without a budget.
    """

    def __init__(
        self,
        plain: PlainSampler,
        tracker: ThinkingTracker,
        wait: list[int],
        minimum: int,
    ):
        super().__init__()
        self._plain = plain
        self._tracker = tracker
        self._wait = wait
        self._minimum = minimum
        self._waiting: deque[int] = deque()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token, as `PlainSampler` does."""
        token = read_token(self._plain(logprobs))
        (end,) = self._tracker.markers.end_tokens
        if not self._waiting and token == end and self._is_early():
            self._waiting.extend(self._wait)
        if self._waiting:
            token = self._waiting.popleft()
        self._tracker.update(token)
        return mx.array([token], dtype=mx.uint32)

    def _is_early(self) -> bool:
        tracker = self._tracker
        return tracker.thinking and tracker.thinking_tokens < self._minimum
