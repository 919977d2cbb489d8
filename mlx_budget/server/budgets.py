"""What a request asks of thinking, in whichever of the known fields.

Knows the fields and the server's limits; nothing of HTTP or of models.
"""

from dataclasses import dataclass, replace

from ..engine.generate import default_max_tokens
from ..engine.settings import (
    ANSWER_TOKENS,
    DEFAULT_HARD_STOP,
    AutoBudget,
    check_budget,
    check_hard_stop,
    check_tolerance,
    limit_budget,
)
from ..method.candidates import DEFAULT_TOLERANCE

# The first is ours; the others are what other servers taught clients.
FIELDS = (
    "thinking_budget",
    "thinking_token_budget",
    "thinking_budget_tokens",
    "chat_template_kwargs.thinking_budget",
)
EFFORTS = {
    "none": 0,
    "low": AutoBudget(0.4),
    "medium": AutoBudget(0.7),
    "high": AutoBudget(),
}
# Of max_tokens, thinking under a budget leaves this share for the answer, or as many
# tokens as an answer gets by default if those are fewer.
ANSWER_SHARE = 0.25


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
        default: Budget of requests that set none.
        most: Tokens that no budget passes, if any.
        hard_stop, guidance_tolerance: As in `make_budget_sampler`.
        thinking_budget_message: Of requests that set none.

    Raises:
        ValueError: If one of them is none.
    """

    default: int | AutoBudget | None = None
    most: int | None = None
    hard_stop: float | None = DEFAULT_HARD_STOP
    guidance_tolerance: float = DEFAULT_TOLERANCE
    thinking_budget_message: str | None = None

    def __post_init__(self):
        check_hard_stop(self.hard_stop)
        check_tolerance(self.guidance_tolerance)


@dataclass(frozen=True)
class ThinkingRequest:
    """What one request gets.

    Attributes:
        budget: Tokens, or how to find them, or None for no budget.
        message: Text put before the closing marker on a forced close.
        policy: The server's.
    """

    budget: int | AutoBudget | None
    message: str | None
    policy: BudgetPolicy

    def leaving_room(self, max_tokens: int, forced: int) -> "ThinkingRequest":
        """The same, with thinking that leaves room for an answer.

        Args:
            max_tokens (int): Most tokens of the reply.
            forced (int): Tokens that a forced close puts in.
        """
        if self.budget is None:
            return self
        room = min(int(max_tokens * ANSWER_SHARE), max(ANSWER_TOKENS - forced, 0))
        left = max(max_tokens - room - forced, 0)
        most = int(left / (self.policy.hard_stop or 1))
        return replace(self, budget=limit_budget(self.budget, most))

    @property
    def default_max_tokens(self) -> int:
        """Room for the thinking that the budget allows, and for an answer."""
        return default_max_tokens(self.budget, self.policy.hard_stop)


def read_thinking(body: dict, policy: BudgetPolicy) -> ThinkingRequest:
    """What a request's body asks for, within the server's policy.

    Args:
        body (dict): Of the request.
        policy (BudgetPolicy): The server's.

    Raises:
        RequestError: If a field has a wrong type or value, or two disagree.
    """
    asked = _asked_budgets(body)
    (first, budget), *others = asked.items() or [(None, policy.default)]
    for other, value in others:
        if value != budget:
            raise RequestError(
                f"{first} and {other} disagree: give one of them.", field=other
            )
    message = body.get("thinking_budget_message")
    if message is None:
        message = policy.thinking_budget_message
    elif not isinstance(message, str):
        raise RequestError(
            "thinking_budget_message must be a text.", "thinking_budget_message"
        )
    return ThinkingRequest(limit_budget(budget, policy.most), message, policy)


def _asked_budgets(body: dict) -> dict[str, int | AutoBudget | None]:
    asked = {}
    for field in FIELDS:
        parent, _, name = field.rpartition(".")
        place = body.get(parent) if parent else body
        value = place.get(name) if isinstance(place, dict) else None
        if value is not None:
            asked[field] = _read_budget(field, value)
    effort = body.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise RequestError(
                f"reasoning_effort must be {', '.join(EFFORTS)}; not {effort!r}.",
                "reasoning_effort",
            )
        asked["reasoning_effort"] = EFFORTS[effort]
    return asked


def _read_budget(field: str, value: object) -> int | AutoBudget | None:
    try:
        return check_budget(value)
    except ValueError as e:
        message = str(e).replace("thinking_budget", field, 1)
        if field not in message:
            message = f"{field}: {message}"
        raise RequestError(message, field) from None
