"""What a request asks of thinking, in whichever of the known fields.

Knows the fields and the server's limits; nothing of HTTP or of models.
"""

from dataclasses import dataclass, replace
from typing import Any

from ..engine.settings import (
    ANSWER_TOKENS,
    AutoBudget,
    Budget,
    BudgetRange,
    ThinkingBudget,
    check_budget,
)

# The first is ours; the others are what other servers taught clients.
FIELDS = (
    "thinking_budget",
    "thinking_token_budget",
    "thinking_budget_tokens",
    "max_thinking_tokens",
    "reasoning_budget",
    "reasoning_budget_tokens",
    "reasoning_max_tokens",
    "reasoning.max_tokens",
    "thinking.budget_tokens",
    "chat_template_kwargs.thinking_budget",
)
EFFORT_FIELDS = ("reasoning_effort", "reasoning.effort")
EFFORTS: dict[str, Budget] = {
    "none": 0,
    "minimal": AutoBudget(0.2),
    "low": AutoBudget(0.4),
    "medium": AutoBudget(0.7),
    "high": AutoBudget(),
    "xhigh": AutoBudget(1.5),
    "max": None,
}
# Fields that switch thinking on or off, and their values that do.
SWITCHES: dict[str, dict[Any, bool]] = {
    "enable_thinking": {True: True, False: False},
    "think": {True: True, False: False},
    "reasoning.enabled": {True: True, False: False},
    "thinking.type": {"enabled": True, "adaptive": True, "disabled": False},
}
# Of max_tokens, thinking under a budget leaves this share for the answer, or as many
# tokens as an answer gets by default if those are fewer.
ANSWER_SHARE = 0.25
# What mlx_lm.server generates at most for a request that sets no limit.
MAX_TOKENS = 512


class RequestError(ValueError):
    """A request that cannot be honoured.

    Attributes:
        field: The field that is wrong, if it is one.
        status: Of HTTP.
    """

    def __init__(self, message: str, field: str | None = None, status: int = 400):
        super().__init__(message)
        self.field = field
        self.status = status


@dataclass(frozen=True)
class BudgetPolicy:
    """How the server treats thinking.

    Attributes:
        thinking: What requests get that do not say.
        most: Tokens that no budget passes, if any.
        stop_in_thinking: Whether stop words end a reply in its thinking too.
    """

    thinking: ThinkingBudget = ThinkingBudget()
    most: int | None = None
    stop_in_thinking: bool = False


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
    most = int(left / (thinking.hard_stop or 1)) if has_budget else left
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
    ranges = (b for b in _asked_budgets(body).values() if isinstance(b, BudgetRange))
    return max([least, *(b.low for b in ranges)])


def read_thinking(body: dict[str, Any], policy: BudgetPolicy) -> ThinkingBudget:
    """What a request's body asks for, within the server's policy.

    Args:
        body (dict): Of the request.
        policy (BudgetPolicy): The server's.

    Raises:
        RequestError: If a field has a wrong type or value, or two disagree.
    """
    asked = _asked_budgets(body, policy.thinking.tokens)
    (first, budget), *others = asked.items() or [("", policy.thinking.tokens)]
    for other, value in others:
        if value != budget:
            raise RequestError(
                f"{first} and {other} disagree: give one of them.", field=other
            )
    message = body.get("thinking_budget_message")
    if message is None:
        message = policy.thinking.message
    elif not isinstance(message, str):
        raise RequestError(
            "thinking_budget_message must be a text.", "thinking_budget_message"
        )
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
            policy.thinking, tokens=budget, mode=mode, least=least, message=message
        )
    except ValueError as e:
        raise RequestError(str(e), str(e).partition(" ")[0]) from None
    return thinking.at_most(policy.most)


def _asked_budgets(body: dict[str, Any], default: Budget = None) -> dict[str, Budget]:
    _check_objects(body)
    asked: dict[str, Budget] = {}
    for field in FIELDS:
        if (value := _value(body, field)) is not None:
            asked[field] = _read_budget(field, value)
    for field in EFFORT_FIELDS:
        if (value := _value(body, field)) is not None:
            asked[field] = _choice(field, value, EFFORTS)
    for field, values in SWITCHES.items():
        if (value := _value(body, field)) is None:
            continue
        if not _choice(field, value, values):
            asked[field] = 0
        elif 0 in asked.values() or (not asked and default == 0):
            asked[field] = None  # any length but none
    return asked


def _check_objects(body: dict[str, Any]) -> None:
    """Refuses what is in the objects ``thinking`` and ``reasoning`` and not known."""
    for parent in ("thinking", "reasoning"):
        place = body.get(parent)
        if place is None:
            continue
        fields = (*FIELDS, *EFFORT_FIELDS, *SWITCHES)
        known = [f.split(".")[1] for f in fields if f.startswith(f"{parent}.")]
        if not isinstance(place, dict):
            raise RequestError(
                f"{parent} must be an object with {', '.join(known)}.", parent
            )
        for name in place:
            if name not in known:
                field = f"{parent}.{name}"
                raise RequestError(
                    f"{field} is not known here: {parent} takes {', '.join(known)}.",
                    field,
                )


def _value(body: dict[str, Any], field: str) -> Any:
    """The value of a field, which may lie in an object; None if it is not given."""
    parent, _, name = field.rpartition(".")
    place = body.get(parent) if parent else body
    return place.get(name) if isinstance(place, dict) else None


def _choice(field: str, value: Any, known: dict[Any, Any]) -> Any:
    """What a value stands for."""
    for name, meaning in known.items():
        if type(value) is type(name) and value == name:
            return meaning
    names = (str(name).lower() if name in (True, False) else name for name in known)
    raise RequestError(f"{field} must be {', '.join(names)}; not {value!r}.", field)


def _read_budget(field: str, value: object) -> Budget:
    try:
        return check_budget(value)
    except ValueError as e:
        message = str(e).replace("thinking_budget", field, 1)
        if field not in message:
            message = f"{field}: {message}"
        raise RequestError(message, field) from None
