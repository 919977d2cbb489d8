"""Thinking that is made to last: "Wait" in place of a closing marker that is early.

Muennighoff et al., "s1: Simple test-time scaling", arXiv 2501.19393. Knows budgets with
a floor; nothing of predictors.
"""

from collections.abc import Sequence

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
