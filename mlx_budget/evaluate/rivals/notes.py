"""Notes in the middle of thinking that say how much of the budget is left.

As Seed-OSS writes them, which was trained to (`<seed:cot_budget_reflect>`); here they
are plain text for any model. Knows budgets; nothing of predictors.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .following import FollowingSampler

NOTE = "(I have used {used} tokens, and {left} are left.)\n"


class RemainingBudget(FollowingSampler):
    """A note at the first line's end after each quarter of the budget, three in all."""

    parts = 4

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._noted = 0

    def before(self, logprobs: mx.array) -> Sequence[int]:
        budget, used = self.thinking.ceiling or 0, self.tracker.thinking_tokens
        part = self.parts * used // max(budget, 1)
        if part <= self._noted or not self.tracker.after_newline:
            return ()
        self._noted = part
        note = NOTE.format(used=used, left=budget - used)
        return self.tokenizer.encode(note, add_special_tokens=False)
