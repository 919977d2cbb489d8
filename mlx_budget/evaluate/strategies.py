"""What is compared: ways of spending a thinking budget, as options of one generation.

Every strategy runs through `stream_batch_generate` with the same sampling; they differ
in what is set here alone. Knows nothing of questions or grading.
"""

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine.budgets import ABOUT, AT_MOST
from ..engine.fields import keywords_of
from ..engine.prompts import BUDGET_PROMPT
from ..engine.settings import AutoBudget, ThinkingBudget

if TYPE_CHECKING:
    from ..method.predictor import Predictor

# What budget forcing puts where it cuts, as the paper's baseline does.
FORCED_ANSWER = "\n**Final Answer**\n"
STRATEGIES = {
    "full": "no budget",
    "no-thinking": "a budget of 0: the answer at once",
    "guidance": "budget guidance, with the hard stop unless there is to be none",
    "guidance-no-hard-stop": "budget guidance alone, as in the paper",
    "about": "budget guidance that uses the budget up (--budget-mode about)",
    "at-least": "the budget as a floor that is steered to, and nothing above it",
    "budget-forcing": "cut at the budget, then **Final Answer**",
    "truncate": "cut at the budget, then the closing marker alone",
    "prompt": "the budget stated in the prompt, and nothing else",
    "wait": '"Wait" in place of a closing marker that comes before the budget',
    "prior": "budget guidance without a predictor: a prior guides",
    "auto": "budget guidance, with a share of the length predicted for the question",
}
WITHOUT_BUDGET = ("full", "no-thinking")
_GUIDED = (
    "guidance",
    "guidance-no-hard-stop",
    "about",
    "at-least",
    "prior",
    "auto",
)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class BudgetRequest:
    """A budget as it was asked for.

    Attributes:
        label: How it was written: "25%" or "60".
        tokens: The budget in tokens, or None if it is a share.
        share: Of the mean thinking length without a budget, or None.
    """

    label: str
    tokens: int | None = None
    share: float | None = None

    def __str__(self) -> str:
        return self.label

    def resolve(self, mean_tokens: float) -> int:
        """The budget in tokens, where thinking takes so many without a budget."""
        if self.tokens is not None:
            return self.tokens
        return max(1, round((self.share or 0) * mean_tokens))


def parse_budgets(text: str) -> tuple[BudgetRequest, ...]:
    """Reads a list of budgets such as "60,25%,63%"; one named twice is one.

    Raises:
        ValueError: Naming the one that cannot be read.
    """
    budgets: dict[str, BudgetRequest] = {}
    for label in (part.strip() for part in text.split(",")):
        if label.isdecimal() and int(label) > 0:
            tokens = int(label)
            budgets.setdefault(str(tokens), BudgetRequest(str(tokens), tokens))
        elif (found := _SHARE.fullmatch(label)) and (share := float(found[1])) > 0:
            label = f"{share:.12g}%"  # 50% and 50.0% alike
            budgets.setdefault(label, BudgetRequest(label, share=share / 100))
        else:
            raise ValueError(
                f"A budget must be a number of tokens above 0 or a share of the mean "
                f"without a budget, such as 500 or 63%; not {label!r}."
            )
    return tuple(budgets.values())


def parse_strategies(text: str) -> tuple[str, ...]:
    """Reads a list of strategies; "all" for all.

    Raises:
        ValueError: Naming the one that is not known.
    """
    if text == "all":
        return tuple(STRATEGIES)
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in STRATEGIES:
            raise ValueError(
                f"There is no strategy {name!r}: choose from {', '.join(STRATEGIES)}."
            )
    return tuple(name for name in STRATEGIES if name in names)


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

    def question(self, question: str) -> str:
        """The question as it is asked."""
        if self.strategy != "prompt":
            return question
        return BUDGET_PROMPT.format(question=question, budget=self.budget)

    def generation(
        self, predictor: "Predictor | bool | None", thinking: ThinkingBudget
    ) -> dict[str, Any]:
        """The options of `stream_batch_generate` that make the strategy.

        Args:
            predictor (Predictor, optional): That guides.
            thinking (ThinkingBudget): The markers; how guidance holds its budget; what
                a forced close puts before the marker, budget forcing aside.
        """
        options: dict[str, Any] = {"predictor": False}
        plain = ThinkingBudget(
            start=thinking.start,
            end=thinking.end,
            answer_anyway=thinking.answer_anyway,
        )
        if self.strategy in _GUIDED:
            options["predictor"] = None if self.strategy == "prior" else predictor
            thinking = self._guided(thinking)
        elif self.strategy in ("budget-forcing", "truncate"):
            is_forcing = self.strategy == "budget-forcing"
            message = FORCED_ANSWER if is_forcing else thinking.message
            thinking = replace(
                plain, tokens=self.budget, hard_stop=1.0, message=message
            )
        elif self.strategy == "no-thinking":
            thinking = replace(plain, tokens=0)
        else:
            thinking = plain
        if self.strategy == "wait" and isinstance(self.budget, int):
            # Imported here, so that strategies can be listed without waiting for MLX.
            from .wait import make_wait_sampler

            options["make_sampler"] = partial(make_wait_sampler, minimum=self.budget)
        return {**options, **keywords_of(thinking)}

    def _guided(self, thinking: ThinkingBudget) -> ThinkingBudget:
        if self.strategy == "at-least" and isinstance(self.budget, int):
            return replace(thinking, least=self.budget)
        mode = ABOUT if self.strategy == "about" else AT_MOST
        thinking = replace(thinking, tokens=self.budget, mode=mode)
        if self.strategy == "guidance-no-hard-stop":
            return replace(thinking, hard_stop=None)
        return thinking


def check_guided(strategy: str, predictor: "Predictor | bool | None") -> None:
    """Checks that what a strategy is guided by is there.

    Raises:
        ValueError: If a predictor is needed and there is none, or there shall be none.
    """
    if strategy not in _GUIDED or strategy == "prior":
        return
    knows = predictor is not None and not isinstance(predictor, bool)
    if knows or (predictor is None and strategy != "auto"):
        return
    raise ValueError(
        f"The strategy {strategy} needs a predictor, and there is none: name one with "
        "--predictor, or leave the strategy out."
    )
