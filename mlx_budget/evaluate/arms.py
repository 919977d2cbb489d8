"""One strategy at one budget, and budgets as they are asked for.

Knows the table of strategies; nothing of questions or grading.
"""

import re
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..engine.budgets import EFFORTS, MAX_BUDGET, Budget, Effort, budget_of_level
from ..engine.fields import keywords_of
from ..engine.settings import AutoBudget, ThinkingBudget
from .strategies import ANYTIME_ANSWER_TOKENS, STRATEGIES, Budgets, answer_share

if TYPE_CHECKING:
    from ..method.predictor import Predictor

# Those that stand for a length: "none" is the strategy no-thinking, "max" is full.
LEVELS = tuple(level for level, share in EFFORTS.items() if share)
_LARGEST_SHARE = 100  # as of an automatic budget
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class BudgetRequest:
    """A budget as it was asked for.

    Attributes:
        label: How it was written: "25%" or "60".
        tokens: The budget in tokens, or None if it is a share.
        share: Of the mean thinking length without a budget, or None.
        effort: That of a level, or None.
    """

    label: str
    tokens: int | None = None
    share: float | None = None
    effort: Effort | None = None

    def __str__(self) -> str:
        return self.label

    def resolve(self, mean_tokens: float) -> int:
        """The budget in tokens, where thinking takes so many without a budget."""
        if self.tokens is not None:
            return self.tokens
        return max(1, round((self.share or 0) * mean_tokens))


def parse_budgets(text: str) -> tuple[BudgetRequest, ...]:
    """Reads a list of budgets such as "60,25%,low"; one named twice is one.

    Raises:
        ValueError: Naming the one that cannot be read.
    """
    budgets: dict[str, BudgetRequest] = {}
    for label in (part.strip() for part in text.split(",")):
        if label.isdecimal() and len(label) < 20 and int(label) > 0:
            tokens = int(label)
            if tokens > MAX_BUDGET:
                raise ValueError(
                    f"A budget must be at most {MAX_BUDGET:,} tokens, not {tokens:,}."
                )
            budgets.setdefault(str(tokens), BudgetRequest(str(tokens), tokens))
        elif (found := _SHARE.fullmatch(label)) and (share := float(found[1])) > 0:
            if share > 100 * _LARGEST_SHARE:
                raise ValueError(
                    f"A share must be at most {100 * _LARGEST_SHARE:,} % of the mean "
                    f"without a budget, not {label}."
                )
            label = f"{share:.12g}%"  # 50% and 50.0% alike
            budgets.setdefault(label, BudgetRequest(label, share=share / 100))
        elif isinstance(effort := _level(label), Effort):
            budgets.setdefault(str(effort), BudgetRequest(str(effort), effort=effort))
        else:
            raise ValueError(
                f"A budget must be a number of tokens above 0, a level "
                f"({', '.join(LEVELS)}) or a share of the mean without a budget, such "
                f"as 500 or 63%; not {label!r}."
            )
    return tuple(budgets.values())


def _level(label: str) -> Budget:
    level = label.lower()
    return budget_of_level(level) if level in LEVELS else None


@dataclass(frozen=True)
class Arm:
    """One strategy at one budget.

    Attributes:
        strategy: One of `STRATEGIES`.
        label: The budget as it was asked for, or None.
        budget: The budget in tokens, a share of the predicted length, or None.
    """

    strategy: str
    label: str | None = None
    budget: int | AutoBudget | None = None

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return self.strategy if self.label is None else f"{self.strategy}@{self.label}"

    @property
    def way(self) -> str:
        """How its replies are made, see `Strategy`."""
        return STRATEGIES[self.strategy].way

    @property
    def tokens(self) -> int:
        """The budget in tokens; 0 if it has none, or a share of what is predicted."""
        return self.budget if isinstance(self.budget, int) else 0

    def question(self, question: str) -> str:
        """The question as it is asked."""
        prompt = STRATEGIES[self.strategy].prompt
        return prompt.format(question=question, budget=self.budget)

    def max_answer_tokens(self, most: int | None) -> int | None:
        """Most tokens behind the closing marker, where ``most`` are allowed to all."""
        if self.way == "anytime":
            return min(most or ANYTIME_ANSWER_TOKENS, ANYTIME_ANSWER_TOKENS)
        if self.strategy != "elastic" or not isinstance(self.budget, int):
            return most
        share = answer_share(self.budget)
        return share if most is None else min(most, share)

    def check_room(self, thinking: ThinkingBudget, max_tokens: int) -> None:
        """Raises a ValueError if replies of so many tokens cannot think enough."""
        budget = STRATEGIES[self.strategy].thinking(Budgets(self.budget, thinking))
        try:
            budget.check_room(max_tokens)
        except ValueError as e:
            raise ValueError(f"The strategy {self.name}: {e}") from None

    def generation(
        self, predictor: "Predictor | bool | None", thinking: ThinkingBudget
    ) -> dict[str, Any]:
        """The options of `stream_batch_generate` that make the strategy.

        Args:
            predictor (Predictor, optional): That guides.
            thinking (ThinkingBudget): The markers; how guidance holds its budget; what
                a forced close puts before the marker, budget forcing aside.
        """
        strategy = STRATEGIES[self.strategy]
        budget = strategy.thinking(Budgets(self.budget, thinking))
        options = {"predictor": False, **keywords_of(budget)}
        if strategy.is_guided:
            options["predictor"] = predictor
        elif self.strategy == "prior":
            options["predictor"] = None
        if strategy.sampler:
            # Imported here, so that strategies can be listed without waiting for MLX.
            module, name = strategy.sampler.split(".")
            rival = import_module(f".rivals.{module}", __package__)
            sampler = getattr(rival, name)
            has_setting = bool(strategy.setting)
            options["make_sampler"] = (
                partial(sampler, strategy.setting) if has_setting else sampler
            )
        return options
