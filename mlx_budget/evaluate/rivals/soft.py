"""Thinking that the model is led to close itself, when its budget is nearly used up.

Knows how likely the closing marker is; nothing of predictors.
"""

import mlx.core as mx
import numpy as np

from .following import FollowingSampler, normalised


class SoftClose(FollowingSampler):
    """The closing marker becomes likelier over the last part of the budget.

    As oMLX's `ThinkingBudgetProcessor`: what is missing of the marker is lifted by the
    gap to the likeliest token, times 2, times how far the last 30 % are used; to 1 nat
    above that token at most, and not at all from more than 30 nats below it.
    """

    start = 0.7
    factor = 2.0
    most_gap = 30.0
    most_lead = 1.0

    def adjust(self, logprobs: mx.array) -> mx.array:
        budget = self.thinking.ceiling or 0
        begin = int(self.start * budget)
        used = self.tracker.thinking_tokens
        if used <= begin:
            return logprobs
        progress = (used - begin) / max(budget - begin, 1)
        end = self.tracker.missing_end_tokens()[0]
        logits = logprobs.astype(mx.float32)
        top, own = mx.max(logits, axis=-1), logits[:, end]  # (1,)
        gap = top - own
        lifted = own + self.factor * progress * mx.maximum(gap, 1.0)
        lifted = mx.minimum(lifted, top + self.most_lead)
        logits[:, end] = mx.where(gap <= self.most_gap, lifted, own)
        return normalised(logits)


class TopKClose(FollowingSampler):
    """Past the budget thinking closes once the marker is among the 3 likeliest.

    As ds4's `--think-budget-soft-rank 3`; at the hard stop wherever it is.
    """

    rank = 3

    def before(self, logprobs: mx.array) -> tuple[int, ...]:
        tracker = self.tracker
        if tracker.thinking_tokens < (self.thinking.ceiling or 0):
            return ()
        end = tracker.missing_end_tokens()[0]
        likelier = mx.sum(logprobs > logprobs[:, end : end + 1])
        is_likely = int(np.array(likelier)) < self.rank and not tracker.is_mid_character
        return tuple(self.closing()) if is_likely else ()
