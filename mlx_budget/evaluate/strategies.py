"""What is compared: the table of ways to spend a thinking budget.

Every strategy runs with the same sampling and the same accounting; they differ in their
rows of `STRATEGIES` alone. A new one is a row here, and if options of the engine are
not enough, a sampler in `rivals`. Knows nothing of questions or grading.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..engine import m1
from ..engine.budgets import ABOUT, AT_MOST
from ..engine.errors import NoPredictorError
from ..engine.prompts import BUDGET_PROMPT
from ..engine.settings import AutoBudget, ThinkingBudget
from ..engine.tags import EASY, HARD

if TYPE_CHECKING:
    from ..method.predictor import Predictor

# What budget forcing puts where it cuts, as the paper's baseline does.
FORCED_ANSWER = "\n**Final Answer**\n"
# What AnytimeReasoner puts in where it cuts, before the closing marker, and what asks
# for the answer behind it; and most tokens of that.
ANYTIME_CUT, ANYTIME_ANSWER = "...\n\n...\n\n", "\n\n**Final Answer**\n"
ANYTIME_ANSWER_TOKENS = 128
TALE_PROMPT = (
    "{question}\n\nLet's think step by step and use less than {budget} tokens."
)
DRAFT_PROMPT = (
    "{question}\n\nThink step by step, but only keep a minimum draft for each thinking "
    "step, with 5 words at most."
)
# How often m1 waits.
WAITS = (1, 2, 4, 6, 8)
# Replies that `majority` counts the answers of.
VOTES = 3
# Share of the budget that `elastic` keeps for the answer, and where `s1` has its floor.
_ANSWER_SHARE, _FLOOR_SHARE = 0.2, 0.9


@dataclass(frozen=True)
class Budgets:
    """The budgets from which a strategy makes that of its replies.

    Attributes:
        tokens: Of the arm; None without one.
        asked: The markers; how guidance holds its budget; the message of a forced
            close. All as the user asked for them.
    """

    tokens: int | AutoBudget | None
    asked: ThinkingBudget

    @property
    def free(self) -> ThinkingBudget:
        """No budget, with what was asked for besides."""
        return self.asked.free

    @property
    def number(self) -> int:
        """The budget in tokens, where it is given in advance."""
        return self.tokens if isinstance(self.tokens, int) else 0

    @property
    def forced_answer(self) -> str:
        """What budget forcing puts where it cuts: for m1 its own cut."""
        return m1.CUT if self.asked.end == m1.END else FORCED_ANSWER

    def cut(self, tokens: int, *messages: str | None) -> ThinkingBudget:
        """Thinking that is cut at a number of tokens, wherever that is.

        Args:
            tokens (int): How many.
            messages: What is put in there; `forced_answer` if none is given.
        """
        message = messages[0] if messages else self.forced_answer
        return replace(self.free, tokens=tokens, hard_stop=1.0, message=message)

    def guided(self, **changes: Any) -> ThinkingBudget:
        """What was asked for, with this budget."""
        return replace(self.asked, **{"tokens": self.tokens, **changes})

    def held(self) -> ThinkingBudget:
        """The hard stop that was asked for, and no mode, tolerance or floor."""
        asked = self.asked
        budget = replace(self.free, tokens=self.tokens, hard_stop=asked.hard_stop)
        return replace(budget, message=asked.message)


@dataclass(frozen=True)
class Strategy:
    """One way of spending a budget.

    Attributes:
        does: What it does, in a line.
        thinking: Makes the budget of its replies.
        source: Where it comes from; empty for what is the project's own.
        has_budget: Whether it runs at budgets.
        is_guided: Whether a predictor guides it.
        has_own_levels: Whether a level is a budget of each question's own there, where
            the predictor knows lengths; elsewhere it is the mean of these.
        needs_hard_stop: Whether it is nothing without the hard stop.
        prompt: The question as it is asked.
        sampler: Of `rivals`, "module.Class"; empty for the engine's own.
        way: "replies" if it makes one reply to each question; else the module of
            `rivals` that makes something else, "exits" or "votes", or "plans" or
            "anytime".
        setting: Of that module, or the first argument of the sampler.
    """

    does: str
    thinking: Callable[[Budgets], ThinkingBudget]
    source: str = ""
    has_budget: bool = True
    is_guided: bool = False
    has_own_levels: bool = False
    needs_hard_stop: bool = False
    prompt: str = "{question}"
    sampler: str = ""
    way: str = "replies"
    setting: str = ""


def _waiting(times: int) -> Strategy:
    which = "closing" if times == 1 else f"{times} closings"
    return Strategy(
        f'"Wait" in place of the first {which} before the budget, then a cut at it',
        lambda b: b.cut(b.number),
        "m1, arXiv 2504.00869",
        sampler="lasting.LastingTimes",
        setting=str(times),
    )


STRATEGIES = {
    "full": Strategy("no budget", lambda b: b.free, has_budget=False),
    "no-thinking": Strategy(
        "a budget of 0: the answer at once",
        lambda b: replace(b.free, tokens=0),
        has_budget=False,
    ),
    "guidance": Strategy(
        "budget guidance, with the hard stop unless there is to be none",
        lambda b: b.guided(mode=AT_MOST),
        "arXiv 2506.13752",
        is_guided=True,
        has_own_levels=True,
    ),
    "guidance-no-hard-stop": Strategy(
        "budget guidance alone, as in the paper",
        lambda b: b.guided(mode=AT_MOST, hard_stop=None),
        "arXiv 2506.13752",
        is_guided=True,
        has_own_levels=True,
    ),
    "about": Strategy(
        "budget guidance that uses the budget up (--budget-mode about)",
        lambda b: b.guided(mode=ABOUT),
        is_guided=True,
        has_own_levels=True,
    ),
    "at-least": Strategy(
        "the budget as a floor that is steered to, and nothing above it",
        lambda b: b.guided(tokens=None, least=b.number),
        is_guided=True,
    ),
    "hard-stop": Strategy(
        "the hard stop without guidance",
        lambda b: b.held(),
        needs_hard_stop=True,
    ),
    "budget-forcing": Strategy(
        "cut at the budget, then **Final Answer**, or what m1 was taught in its place",
        lambda b: b.cut(b.number),
        "the baseline of arXiv 2506.13752",
    ),
    "truncate": Strategy(
        "cut at the budget, then the closing marker alone",
        lambda b: b.cut(b.number, b.asked.message),
    ),
    "elastic": Strategy(
        "budget for thinking and answer together, cut at 80 % and 20 % of it",
        lambda b: b.cut(max(1, b.number - answer_share(b.number)), b.asked.message),
        "Elastic Reasoning, arXiv 2505.05315",
    ),
    "soft-close": Strategy(
        "the closing marker ever likelier over the last 30 %, then a cut",
        lambda b: b.cut(b.number, b.asked.message),
        "oMLX, ThinkingBudgetProcessor",
        sampler="soft.SoftClose",
    ),
    "top-k-close": Strategy(
        "past the budget closed once the marker is among the 3 likeliest",
        lambda b: b.held(),
        "ds4, --think-budget-soft-rank",
        needs_hard_stop=True,
        sampler="soft.TopKClose",
    ),
    "s1": Strategy(
        '"Wait" for early closing markers up to 90 % of the budget, then a cut at it',
        lambda b: replace(b.cut(b.number), least=int(_FLOOR_SHARE * b.number)),
        "s1, arXiv 2501.19393",
        sampler="lasting.Lasting",
    ),
    "wait": Strategy(
        '"Wait" in place of a closing marker before the budget, which is a minimum',
        lambda b: replace(b.free, least=b.number),
        "s1, arXiv 2501.19393",
        sampler="lasting.Lasting",
    ),
    **{f"wait-{n}": _waiting(n) for n in WAITS},
    "anytime": Strategy(
        "the answer that the full reply gives when it is cut at the budget",
        lambda b: b.free,
        "AnytimeReasoner, arXiv 2505.13438",
        way="anytime",
    ),
    "easy": Strategy(
        "replies that begin with [Easy], which AdaCtrl's models alone know",
        lambda b: replace(b.free, prefix=EASY),
        "AdaCtrl, arXiv 2505.18822",
        has_budget=False,
    ),
    "hard": Strategy(
        "replies that begin with [Hard], which AdaCtrl's models alone know",
        lambda b: replace(b.free, prefix=HARD),
        "AdaCtrl, arXiv 2505.18822",
        has_budget=False,
    ),
    "alpha-one": Strategy(
        '"Wait" put in by chance before the budget; behind it slow words close',
        lambda b: replace(b.free, tokens=b.number, hard_stop=None),
        "AlphaOne, arXiv 2505.24863",
        sampler="alpha_one.AlphaOne",
    ),
    "no-wait": Strategy(
        "words of reflection, such as Wait, are never drawn in thinking",
        lambda b: b.free,
        "NoWait, arXiv 2506.08343",
        has_budget=False,
        sampler="words.NoWait",
    ),
    "deer": Strategy(
        "closed where a trial answer is sure enough, cut at the budget",
        lambda b: b.cut(b.number),
        "DEER, arXiv 2504.15895",
        way="exits",
        setting="confidence",
    ),
    "convergence": Strategy(
        "closed where the trial answer stays the same, cut at the budget",
        lambda b: b.cut(b.number),
        "Dynasor, arXiv 2412.20993",
        way="exits",
        setting="agreement",
    ),
    "majority": Strategy(
        f"the answer of most of {VOTES} replies, each cut at its share of the budget",
        lambda b: b.cut(max(1, b.number // VOTES)),
        "self-consistency, arXiv 2203.11171",
        way="votes",
    ),
    "prompt": Strategy(
        "the budget stated in the prompt, and nothing else",
        lambda b: b.free,
        prompt=BUDGET_PROMPT,
    ),
    "tale": Strategy(
        "the budget stated in TALE's words, and nothing else",
        lambda b: b.free,
        "TALE, arXiv 2412.18547",
        prompt=TALE_PROMPT,
    ),
    "remaining-budget": Strategy(
        "stated in the prompt, notes of what is left in thinking, cut at the budget",
        lambda b: b.cut(b.number),
        "Seed-OSS",
        prompt=BUDGET_PROMPT,
        sampler="notes.RemainingBudget",
    ),
    "chain-of-draft": Strategy(
        "a prompt for drafts of 5 words a step",
        lambda b: b.free,
        "Chain of Draft, arXiv 2502.18600",
        has_budget=False,
        prompt=DRAFT_PROMPT,
    ),
    "prior": Strategy(
        "budget guidance without a predictor: a prior guides",
        lambda b: b.guided(mode=AT_MOST),
    ),
    "plan-words": Strategy(
        "a plan with a length for each part in words, which nothing keeps",
        lambda b: b.free,
        "Plan-and-Budget, arXiv 2505.16122",
        way="plans",
        setting="words",
    ),
    "plan-guided": Strategy(
        "a plan whose parts are steered to their shares of the budget",
        lambda b: b.guided(mode=AT_MOST),
        is_guided=True,
        way="plans",
        setting="guided",
    ),
    "plan-rollover": Strategy(
        "the same, and what a part leaves over goes to the next",
        lambda b: b.guided(mode=AT_MOST),
        "the idea of Rollover Budget Forcing",
        is_guided=True,
        way="plans",
        setting="rollover",
    ),
    "auto": Strategy(
        "budget guidance, with a share of the length predicted for the question",
        lambda b: b.guided(mode=AT_MOST),
        is_guided=True,
        has_own_levels=True,
    ),
}
WITHOUT_BUDGET = tuple(n for n, s in STRATEGIES.items() if not s.has_budget)
# What is found afterwards in the replies without a budget.
NEEDS_FULL = tuple(n for n, s in STRATEGIES.items() if s.way in ("exits", "anytime"))


def answer_share(budget: int) -> int:
    """Tokens of a budget that are kept for the answer, where it has a share."""
    return max(1, round(_ANSWER_SHARE * budget))


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


def check_guided(strategy: str, predictor: "Predictor | bool | None") -> None:
    """Checks that what a strategy is guided by is there.

    Raises:
        ValueError: If a predictor is needed and there is none, or there shall be none.
    """
    if not STRATEGIES[strategy].is_guided:
        return
    from ..engine.enforcing import knows_lengths

    guides = predictor is None or not isinstance(predictor, bool)
    if knows_lengths(predictor) if strategy == "auto" else guides:
        return
    raise NoPredictorError(
        f"The strategy {strategy} needs a predictor, and there is none: name one with "
        "--predictor, or leave the strategy out."
    )
