"""Thinking that is made to last: "Wait" in place of a closing marker that is early.

Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393, and Huang et al.,
"m1", arXiv 2504.00869. Knows budgets with a floor; nothing of predictors.
"""

from collections.abc import Sequence
from typing import Any

from .following import FollowingSampler

WAIT = "Wait"


class Lasting(FollowingSampler):
    """Until the floor "Wait" is put in where the model would close its thinking.

    Of a marker of several tokens the first is replaced. What was put in counts toward
    the floor. With a budget thinking is cut there.
    """

    def instead_of(self, token: int) -> Sequence[int]:
        if self.used < self.thinking.least and self.begins_to_close(token):
            return self.tokenizer.encode(WAIT, add_special_tokens=False)
        return ()


class LastingTimes(FollowingSampler):
    """The first times that the model would close its thinking, or end its reply in it,
    "Wait" is put in; at the budget thinking is cut.

    Args:
        times (str): How many, as a number.
        request: As in `FollowingSampler`.
    """

    def __init__(self, times: str, *request: Any):
        super().__init__(*request)
        self._left = int(times)

    @property
    def spent(self) -> int:
        """As in m1 with what was put in."""
        return self.used

    def instead_of(self, token: int) -> Sequence[int]:
        ends = self.begins_to_close(token) or token in self.tokenizer.eos_token_ids
        if not ends or self._left == 0:
            return ()
        self._left -= 1
        return self.tokenizer.encode(WAIT, add_special_tokens=False)
