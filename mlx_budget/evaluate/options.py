"""What an evaluation is told: one frozen dataclass.

Knows the options and their limits; nothing of how a run uses them.
"""

from dataclasses import dataclass

from ..engine.settings import (
    DEFAULT_HARD_STOP,
    UNBOUNDED_TOKENS,
    check_hard_stop,
    check_temperature,
)
from .strategies import STRATEGIES, WITHOUT_BUDGET, BudgetRequest, parse_budgets

DEFAULT_STRATEGIES = ("full", "guidance", "budget-forcing")
DEFAULT_BUDGETS = "25%,50%,63%,100%"


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `evaluate`.

    Attributes:
        strategies: Names of `STRATEGIES`; "full" is added where a budget is a share.
        budgets: For every strategy that takes one.
        num_samples: Replies to each question.
        seed: Of the sampling. A reply's draws depend on it, the question and the number
            of the sample, and on nothing else.
        batch_size: Most replies to generate at a time.
        max_tokens: Most tokens of a reply, thinking included.
        temp, top_p, min_p, top_k: As in ``mlx_lm.sample_utils.make_sampler``.
        hard_stop: Of guidance, a factor of the budget.
        thinking_budget_message: What guidance's hard stop and "truncate" put before
            the closing marker.
        system_prompt: Put before the question.
        chat_template_config: More arguments for the chat template.
        ignore_chat_template: Whether to ask the questions as they are.
        thinking_start: Opening marker, in place of the tokenizer's.
        thinking_end: Closing marker, in place of the tokenizer's.
        prefill_step_size: Prompt tokens to process at a time.
    """

    strategies: tuple[str, ...] = DEFAULT_STRATEGIES
    budgets: tuple[BudgetRequest, ...] = parse_budgets(DEFAULT_BUDGETS)
    num_samples: int = 1
    seed: int = 0
    batch_size: int = 8
    max_tokens: int = UNBOUNDED_TOKENS
    temp: float = 0.6
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    hard_stop: float = DEFAULT_HARD_STOP
    thinking_budget_message: str | None = None
    system_prompt: str | None = None
    chat_template_config: dict | None = None
    ignore_chat_template: bool = False
    thinking_start: str | None = None
    thinking_end: str | None = None
    prefill_step_size: int = 2048

    def __post_init__(self):
        for name in ("num_samples", "batch_size", "max_tokens", "prefill_step_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be 1 or more, not {getattr(self, name)}."
                )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}.")
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ValueError(
                f"strategies must be some of {', '.join(STRATEGIES)}, not "
                f"{', '.join(unknown) or 'none'}."
            )
        check_temperature(self.temp)
        check_hard_stop(self.hard_stop)
        if self.hard_stop is None:
            raise ValueError(
                "The strategy guidance has a hard stop: leave it on, and choose "
                "guidance-no-hard-stop for guidance alone."
            )
        if self.temp == 0 and self.num_samples > 1:
            raise ValueError(
                f"At temp 0 all {self.num_samples} samples of a question would be the "
                "same: set a temperature above 0, or take one sample of each."
            )
        with_budget = set(self.strategies) - set(WITHOUT_BUDGET)
        if with_budget and not self.budgets:
            raise ValueError(
                f"The strategies {', '.join(sorted(with_budget))} need budgets."
            )

        if "auto" in self.strategies and not any(b.share for b in self.budgets):
            raise ValueError(
                "The strategy auto takes budgets that are shares, such as 63%, and "
                "there is none: add one, or leave the strategy out."
            )

    @property
    def sampling(self) -> dict:
        """How the next token is drawn, the same for every strategy."""
        return {
            name: getattr(self, name) for name in ("temp", "top_p", "min_p", "top_k")
        }

    def settings(self) -> dict:
        """What all records of a folder have in common."""
        shared = (
            "num_samples",
            "seed",
            "max_tokens",
            "hard_stop",
            "thinking_budget_message",
            "system_prompt",
            "chat_template_config",
            "ignore_chat_template",
            "thinking_start",
            "thinking_end",
        )
        return {**self.sampling, **{name: getattr(self, name) for name in shared}}
