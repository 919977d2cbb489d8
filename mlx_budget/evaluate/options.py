"""What an evaluation is told: one frozen dataclass.

Knows the options and their limits; nothing of how a run uses them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.fields import check_numbers, keywords_of, setting
from ..engine.settings import (
    PREFILL_STEP_SIZE,
    UNBOUNDED_TOKENS,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from .arms import BudgetRequest, parse_budgets
from .strategies import STRATEGIES, WAITS, WITHOUT_BUDGET

DEFAULT_STRATEGIES = ("full", "guidance", "budget-forcing")
DEFAULT_BUDGETS = "25%,50%,63%,100%"
_DEFAULT_BUDGETS = parse_budgets(DEFAULT_BUDGETS)
# Of AnytimeReasoner's measure.
ANYTIME_BUDGETS = parse_budgets("2000,4000,6000,8000")
# Strategies that mean nothing if a reply ends before its budget.
_CUTTING = (
    *("anytime", "budget-forcing", "truncate", "s1"),
    *(f"wait-{n}" for n in WAITS),
)
# Options that decide which replies are asked for, or how fast they come, but not what
# they are.
_FREE = (
    "strategies",
    "budgets",
    "anytime",
    "batch_size",
    "prefill_step_size",
    "prompt_cache_bytes",
    "thinking_budget",
)


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `evaluate`.

    Attributes:
        strategies: Names of `STRATEGIES`; "full" is added where a budget is a share.
        budgets: For every strategy that takes one.
        anytime: Whether to measure anytime answers, the strategy of this name: alone
            unless strategies are named, and at `ANYTIME_BUDGETS` unless budgets are.
        num_samples: Replies to each question.
        batch_size: Most replies to generate at a time.
        max_tokens: Most tokens of a reply, thinking included.
        max_answer_tokens: Most tokens of a reply behind its closing marker, in all arms
            alike; None for no limit of their own.
        sampling: How tokens are drawn. A reply's draws depend on the seed, the question
            and the number of the sample, and on nothing else.
        thinking: The markers; how guidance holds its budgets, by a hard stop or none;
            what its hard stop and "truncate" put before the closing marker.
        prompt: How a question becomes a prompt.
        prefill_step_size: Prompt tokens to process at a time.
        prompt_cache_bytes: Most memory for the KV caches of questions, which are read
            once and not by each arm and sample again; 0 keeps none.

    Raises:
        ValueError: Naming the option that is not allowed.
    """

    GROUP: ClassVar[str] = "Questions"

    strategies: tuple[str, ...] = setting(
        DEFAULT_STRATEGIES,
        f"Comma-separated, or all: {', '.join(STRATEGIES)}.",
        group="Thinking",
    )
    budgets: tuple[BudgetRequest, ...] = setting(
        _DEFAULT_BUDGETS,
        "Comma-separated: tokens, shares of the mean without a budget, or levels such "
        "as low, which are what they are in a reply.",
        group="Thinking",
    )
    anytime: bool = setting(
        False,
        "Measure as AnytimeReasoner does: one full reply to each question, cut at each "
        "budget, 2000,4000,6000,8000 by default, and an answer of 128 tokens at most "
        "at each; no other strategy unless --strategies names some.",
        group="Thinking",
    )
    num_samples: int = setting(
        1, "Replies to each question, for each strategy and budget.", least=1
    )
    batch_size: int = setting(
        8, "Most replies to generate at a time.", least=1, group="Memory and speed"
    )
    max_tokens: int = setting(
        UNBOUNDED_TOKENS,
        "Most tokens of a reply, thinking included.",
        flags=("--max-tokens", "-m"),
        least=1,
        group="Replies",
    )
    max_answer_tokens: int | None = setting(
        None,
        "Most tokens of a reply behind its closing marker, the same in all arms.",
        least=1,
        shown="no limit of their own",
        group="Replies",
    )
    sampling: Sampling = Sampling(temp=0.6, seed=0)
    thinking: ThinkingBudget = ThinkingBudget()
    prompt: PromptOptions = PromptOptions()
    prefill_step_size: int = setting(
        PREFILL_STEP_SIZE,
        "Prompt tokens to process at a time.",
        least=1,
        group="Memory and speed",
    )
    prompt_cache_bytes: int = setting(
        1_000_000_000,
        "Most memory for the KV caches of questions, such as 4GB, so that each is read "
        "once for all strategies, budgets and samples; 0 keeps none.",
        least=0,
        shown="1GB",
        group="Memory and speed",
    )

    def __post_init__(self) -> None:
        if self.anytime:
            self._take_anytime()
        check_numbers(self)
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise ValueError(
                f"strategies must be some of {', '.join(STRATEGIES)}, not "
                f"{', '.join(unknown) or 'none'}."
            )
        if self.thinking.tokens is not None:
            raise ValueError(
                "An evaluation takes budgets for its strategies, not a thinking_budget."
            )
        if self.thinking.least or self.thinking.mode != ThinkingBudget().mode:
            raise ValueError(
                "An evaluation has the strategies about and at-least in place of "
                "budget_mode and min_thinking_tokens: choose those."
            )
        twins = {"guidance", "guidance-no-hard-stop"}
        if self.thinking.hard_stop is None and twins <= set(self.strategies):
            raise ValueError(
                "Without a hard stop the strategy guidance is guidance-no-hard-stop: "
                "leave the hard stop on, or choose guidance-no-hard-stop alone."
            )
        needs = [n for n in self.strategies if STRATEGIES[n].needs_hard_stop]
        if self.thinking.hard_stop is None and needs:
            raise ValueError(
                f"The strategy {needs[0]} needs a hard stop: leave that on, or the "
                "strategy out."
            )
        largest = max((b.tokens or 0 for b in self.budgets), default=0)
        if set(_CUTTING).intersection(self.strategies) and largest >= self.max_tokens:
            raise ValueError(
                f"max_tokens is {self.max_tokens:,}, and thinking is to be cut at "
                f"{largest:,}, behind which there would be no answer: raise "
                "--max-tokens above that, or lower --budgets."
            )
        if self.sampling.seed is None:
            raise ValueError(
                "seed must be a number, not None: a run that is gone on with draws by "
                "it as before."
            )
        if self.sampling.temp == 0 and self.num_samples > 1:
            raise ValueError(
                f"At temp 0 all {self.num_samples} samples of a question would be the "
                "same: set a temperature above 0, or take one sample of each."
            )
        with_budget = set(self.strategies) - set(WITHOUT_BUDGET)
        if with_budget and not self.budgets:
            raise ValueError(
                f"The strategies {', '.join(sorted(with_budget))} need budgets."
            )
        if "auto" in self.strategies and not any(
            b.share or b.effort for b in self.budgets
        ):
            raise ValueError(
                "The strategy auto takes budgets that are shares, such as 63%, and "
                "there is none: add one or a level such as low, or leave the strategy "
                "out."
            )

    def _take_anytime(self) -> None:
        names = ("full",) if self.strategies is DEFAULT_STRATEGIES else self.strategies
        if "anytime" not in names:
            names = (*names, "anytime")
        object.__setattr__(self, "strategies", names)
        if self.budgets is _DEFAULT_BUDGETS:
            object.__setattr__(self, "budgets", ANYTIME_BUDGETS)

    def settings(self) -> dict[str, Any]:
        """What all records of a folder have in common."""
        return {n: v for n, v in keywords_of(self).items() if n not in _FREE}
