"""When thinking has to end, has to go on, or is steered: budget, floor and loops.

Knows the budget of a reply and its tracker; nothing of models or of how tokens are
drawn.
"""

from ..method.guidance import Window
from ..method.predictor import ReplyProgress
from .guide import window_after
from .loops import LoopFinder, Repetition
from .settings import ThinkingBudget
from .thinking import ThinkingTracker

# A character has four bytes at most, and so as many tokens.
_LONGEST_CHARACTER = 4
# A model that goes on opening blocks when its budget is spent opens no more than these.
_MOST_BLOCKS = 3


class Pace:
    """What the budget of a reply says of its next token.

    Args:
        thinking (ThinkingBudget): The budget, or fewest tokens, or both, or neither
            where loops are looked for.
        tracker (ThinkingTracker): Follows the reply.
        has_guide (bool): Whether anything guides.
        before (int): Thinking tokens before those that the budget is of.

    Attributes:
        thinking: The budget; an automatic one in tokens once that is known.
    """

    def __init__(
        self,
        thinking: ThinkingBudget,
        tracker: ThinkingTracker,
        has_guide: bool,
        before: int = 0,
    ):
        self.thinking = thinking
        self._before = before
        self._tracker = tracker
        self._has_guide = has_guide
        self._loops = LoopFinder() if thinking.watches_loops else None
        self._repetition = Repetition.NONE

    def take(self, token: int) -> None:
        """Takes the next token of the reply, when its tracker has."""
        self._repetition = Repetition.NONE
        if self._loops is not None and self._tracker.thinking:
            self._loops.take(token)
            self._repetition = self._loops.repetition

    @property
    def used(self) -> int:
        """Thinking tokens of the budget so far."""
        return self._tracker.thinking_tokens - self._before

    @property
    def is_loop(self) -> bool:
        """Whether thinking has gone into a loop."""
        return self._repetition is not Repetition.NONE

    @property
    def is_before_floor(self) -> bool:
        """Whether the reply has to think on, whatever the model would do."""
        tracker = self._tracker
        if self.is_loop or not tracker.thinking or tracker.blocks > 1:
            return False
        return self.used < self.thinking.bounds[0]

    @property
    def is_guided(self) -> bool:
        """Whether there is something to steer to at the next token."""
        if not self._has_guide or not self._tracker.starts_line or self.must_close():
            return False
        has_budget = self.thinking.tokens is not None
        return has_budget or self.is_before_floor or self.is_loop

    def event(self) -> tuple[Window, ReplyProgress]:
        """What guidance steers to, and how far the reply has come."""
        used, thinking = self.used, self.thinking
        progress = ReplyProgress(used, thinking.ceiling or thinking.bounds[0] or used)
        if self.is_loop:  # as if the budget were used up
            return Window(most=1), progress
        return window_after(thinking, used), progress

    def must_close(self) -> bool:
        """Whether thinking has to be closed by force now."""
        tracker, budget = self._tracker, self.thinking.ceiling
        if not tracker.thinking:
            return False
        if budget == 0 or self.is_stuck():
            return True
        if budget is None or (limit := self.thinking.limit) is None:
            return False
        used = self.used
        if used >= limit:
            return True
        is_past = used >= budget + self._may_end_at_budget
        return is_past and tracker.after_newline and not tracker.is_mid_character

    def is_stuck(self) -> bool:
        """Whether it is time to close thinking that does not leave its loop."""
        tracker = self._tracker
        if self._repetition is not Repetition.STUCK or tracker.is_mid_character:
            return False
        cycle = self._loops.cycle if self._loops is not None else []
        return tracker.after_newline or not tracker.has_newline(cycle)

    def is_near_limit(self) -> bool:
        """Whether the hard stop may come in the middle of the next character."""
        tracker, limit = self._tracker, self.thinking.limit
        if limit is None or not tracker.thinking or tracker.is_mid_character:
            return False
        return self.used + _LONGEST_CHARACTER > limit

    def may_not_reopen(self) -> bool:
        """Whether an opening marker that came now would be one too many."""
        tracker, thinking = self._tracker, self.thinking
        if not tracker.may_open or tracker.blocks < _MOST_BLOCKS:
            return False
        is_held = thinking.limit is not None
        return is_held and self.used >= (thinking.ceiling or 0)

    @property
    def _may_end_at_budget(self) -> bool:
        """Whether guidance closes thinking that ends at its upper bound exactly."""
        has_window = self.thinking.bounds[0] > 0
        return self._has_guide and has_window and self._tracker.blocks == 1
