"""The other half of budget forcing: thinking that is made to last.

Where the model closes its thinking too early, "Wait" takes the place of the closing
marker (Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393). Knows
mlx-lm's samplers; nothing of predictors.
"""

from collections import deque

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.sampler import BudgetSampler, encode_prompt, make_budget_sampler
from ..engine.thinking import ThinkingTracker, find_markers

WAIT = "Wait"


def make_wait_sampler(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: bool | None = None,
    *,
    prompt: str | list[int] | mx.array,
    minimum: int,
    thinking_start: str | None = None,
    thinking_end: str | None = None,
    **options,
) -> "WaitSampler":
    """Makes a sampler for mlx-lm whose thinking lasts at least ``minimum`` tokens.

    Args:
        model, tokenizer, predictor, prompt, options: As in `make_budget_sampler`.
        minimum (int): Tokens of thinking before the model may close it; those of
            "Wait" count.
        thinking_start, thinking_end: As in `make_budget_sampler`.

    Raises:
        ValueError: If the closing marker is not one token, and so cannot be replaced.
    """
    markers = find_markers(tokenizer, thinking_start, thinking_end)
    if len(markers.end_tokens) != 1:
        raise ValueError(
            f"The strategy wait needs a closing marker of one token, and "
            f"{markers.end!r} has {len(markers.end_tokens)}: leave the strategy out."
        )
    plain = make_budget_sampler(model, tokenizer, False, prompt=prompt, **options)
    tracker = ThinkingTracker(tokenizer, markers, encode_prompt(tokenizer, prompt))
    wait = tokenizer.encode(WAIT, add_special_tokens=False)
    return WaitSampler(plain, tracker, list(wait), minimum)


class WaitSampler:
    """The state of one request; each step waits for the token that was drawn.

    Attributes:
        forced_steps, guided_steps, budget: As of a `BudgetSampler` without a budget;
            the tokens of "Wait" count as the model's own.
    """

    forced_steps: frozenset[int] = frozenset()
    guided_steps: tuple[int, ...] = ()
    budget = None

    def __init__(
        self,
        plain: BudgetSampler,
        tracker: ThinkingTracker,
        wait: list[int],
        minimum: int,
    ):
        self._plain = plain
        self._tracker = tracker
        self._wait = wait
        self._minimum = minimum
        self._waiting: deque[int] = deque()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token, as `BudgetSampler` does."""
        token = self._plain(logprobs).item()
        (end,) = self._tracker.markers.end_tokens
        if not self._waiting and token == end and self._is_early():
            self._waiting.extend(self._wait)
        if self._waiting:
            token = self._waiting.popleft()
        self._tracker.update(token)
        return mx.array([token], dtype=mx.uint32)

    def close(self) -> None:
        """As `BudgetSampler.close`."""
        self._plain.close()

    def _is_early(self) -> bool:
        tracker = self._tracker
        return tracker.thinking and tracker.thinking_tokens < self._minimum
