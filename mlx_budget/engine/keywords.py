"""The keyword arguments of replies, for type checkers; settings are made of them.

Knows names and types; nothing of values.
"""

from typing import Any, TypedDict

from .budgets import BudgetLike


class SharedOptions(TypedDict, total=False):
    """Keyword arguments that the replies of a batch share, for type checkers.

    They are those of `ThinkingBudget` and `Sampling`, but for two that each reply may
    have of its own.
    """

    budget_mode: str
    min_thinking_tokens: int
    hard_stop: float | None
    thinking_budget_message: str | None
    reply_prefix: str | None
    answer_anyway: bool
    stop_loops: bool | None
    guidance_tolerance: float
    thinking_start: str | None
    thinking_end: str | None
    temp: float
    top_p: float
    min_p: float
    top_k: int
    min_tokens_to_keep: int
    xtc_probability: float
    xtc_threshold: float
    xtc_special_tokens: list[int] | tuple[int, ...] | None


class ReplyOptions(SharedOptions, total=False):
    """Keyword arguments of what one reply is to be, for type checkers."""

    thinking_budget: BudgetLike
    seed: int | None
    json_schema: Any
