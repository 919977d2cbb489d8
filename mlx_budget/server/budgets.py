"""What a request asks of thinking, in whichever of the known fields.

Knows the fields and the server's limits; nothing of HTTP or of models.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.budgets import EFFORT_TOKENS, BudgetRange
from ..engine.context import UNKNOWN_LENGTH
from ..engine.settings import ANSWER_TOKENS, ThinkingBudget
from .budget_fields import asked_budget
from .errors import RequestError

# Of max_tokens, thinking under a budget leaves this share for the answer, or as many
# tokens as an answer gets by default if those are fewer.
ANSWER_SHARE = 0.25
# What mlx_lm.server generates at most for a request that sets no limit.
MAX_TOKENS = 512


@dataclass(frozen=True)
class BudgetPolicy:
    """How the server treats thinking.

    Attributes:
        thinking: What requests get that do not say.
        most: Tokens that no budget passes, if any.
        stop_in_thinking: Whether stop words end a reply in its thinking too.
        reasoning_field: In which field thinking is told: ``reasoning``,
            ``reasoning_content``, or ``both``.
        efforts: Tokens of each level, for models whose lengths nothing predicts.
    """

    thinking: ThinkingBudget = ThinkingBudget()
    most: int | None = None
    stop_in_thinking: bool = False
    reasoning_field: str = "both"
    efforts: Mapping[str, int] = field(default_factory=lambda: EFFORT_TOKENS)


def limit_of(thinking: ThinkingBudget, is_open: bool = False) -> int | None:
    """Most tokens of a reply whose request sets no limit, nor the server.

    Args:
        thinking (ThinkingBudget): What the request gets.
        is_open (bool): Whether its interface lets such a reply go on to the end of the
            model's context.

    Returns:
        int, optional: None for what mlx-lm's server has for all.
    """
    if is_open:
        return UNKNOWN_LENGTH
    return None if thinking.is_free else _room_for(thinking)


def _room_for(thinking: ThinkingBudget) -> int:
    """Room for thinking and an answer."""
    # Whether there is a prediction is not known yet.
    without = thinking.without_prediction()
    return max(thinking.max_tokens, without.max_tokens)


def leaving_room(
    thinking: ThinkingBudget, max_tokens: int, forced: int, asked: int = 0
) -> ThinkingBudget:
    """The same, with thinking that leaves room for an answer.

    Args:
        thinking (ThinkingBudget): What a request gets.
        max_tokens (int): Most tokens of the reply.
        forced (int): Tokens that a forced close puts in.
        asked (int): Fewest tokens of thinking that the request itself asks for.

    Raises:
        RequestError: If there is no room for those.
    """
    if thinking.is_free:
        return thinking
    room = min(int(max_tokens * ANSWER_SHARE), max(ANSWER_TOKENS - forced, 0))
    left = max(max_tokens - room - forced, 0)
    has_budget = thinking.tokens is not None
    most = left
    if has_budget:
        # The most whose limit, rounded down, is what is left.
        most = max(math.ceil((left + 1) / (thinking.hard_stop or 1) - 1e-6) - 1, 0)
    if asked > most:
        raise RequestError(
            f"max_tokens of {max_tokens:,} leaves room for {most:,} tokens of "
            f"thinking, and at least {asked:,} are asked for: raise it, or ask for "
            "less thinking.",
            "max_tokens",
        )
    if not has_budget:
        return replace(thinking, least=min(thinking.least, most))
    return thinking.at_most(most)


def asked_floor(body: dict[str, Any]) -> int:
    """Fewest tokens of thinking that a request asks for in so many words.

    Raises:
        RequestError: If they are no number of tokens.
    """
    least = body.get("min_thinking_tokens")
    if least is None:
        least = 0
    elif isinstance(least, bool) or not isinstance(least, int) or least < 0:
        raise RequestError(
            f"min_thinking_tokens must be a number of tokens, 0 or more; not "
            f"{least!r}.",
            "min_thinking_tokens",
        )
    _, budget = asked_budget(body, None, EFFORT_TOKENS) or ("", None)
    return max(least, budget.low if isinstance(budget, BudgetRange) else 0)


def budget_source(body: Mapping[str, Any], policy: BudgetPolicy) -> str:
    """The field that sets a request's budget, or "server" where that does.

    Raises:
        RequestError: As `read_thinking`.
    """
    asked = asked_budget(body, policy.thinking.tokens, policy.efforts)
    return "server" if asked is None else asked[0]


def _text(body: dict[str, Any], field: str, default: str | None) -> str | None:
    text = body.get(field)
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{field} must be a text.", field)
    return default if text is None else text


def read_thinking(body: dict[str, Any], policy: BudgetPolicy) -> ThinkingBudget:
    """What a request's body asks for, within the server's policy.

    Args:
        body (dict): Of the request.
        policy (BudgetPolicy): The server's.

    Raises:
        RequestError: If a field has a wrong type or value, or two disagree.
    """
    asked = asked_budget(body, policy.thinking.tokens, policy.efforts)
    budget = asked[1] if asked is not None else policy.thinking.tokens
    message = _text(body, "thinking_budget_message", policy.thinking.message)
    prefix = _text(body, "reply_prefix", policy.thinking.prefix)
    mode = body.get("budget_mode")
    if mode is None:
        mode = policy.thinking.mode
    floor = asked_floor(body)
    if policy.most is not None and floor > policy.most:
        raise RequestError(
            f"At least {floor:,} tokens of thinking are asked for, and this server "
            f"lets no request think for more than {policy.most:,}.",
            "min_thinking_tokens",
        )
    least = body.get("min_thinking_tokens")
    if least is None:
        # A budget that is asked for beats a floor that is not.
        ceiling = ThinkingBudget(budget).ceiling if asked else None
        default = policy.thinking.least
        least = default if ceiling is None else min(default, ceiling)
    try:
        thinking = replace(
            policy.thinking,
            tokens=budget,
            mode=mode,
            least=least,
            message=message,
            prefix=prefix,
        )
    except ValueError as e:
        raise RequestError(str(e), str(e).partition(" ")[0]) from None
    return thinking.at_most(policy.most)
