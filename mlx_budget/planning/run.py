"""Plans a question and answers it by the plan: `mlx_budget.plan`.

Knows plans, shares and the engine; nothing of the command line.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.budgets import AutoBudget
from ..engine.enforcing import check_enforceable, for_predictor, knows_lengths
from ..engine.estimate import estimate
from ..engine.fields import keywords_of, take
from ..engine.generate import BudgetResponse, stream_generate
from ..engine.prompts import encode_chat
from ..engine.settings import PromptOptions, Sampling, ThinkingBudget
from ..engine.template import let_think
from ..method.predictor import Predictor
from .options import GUIDED, WORDS, PlanOptions, check_divisible
from .planner import make_plans
from .plans import Plan, plan_from
from .prompts import in_words
from .shares import split
from .stretches import InStretches, Stretch


@dataclass
class PlannedReply:
    """A question that was answered by a plan.

    Attributes:
        plan: The plan.
        budget: Tokens of all parts together.
        shares: Tokens of each part.
        stretches: What became of them; empty where shares are asked for in words.
        text: The reply, thinking and markers included.
        thinking, answer: Its two parts, without markers.
        response: The last of the engine, with all counts; None before there is one.
    """

    plan: Plan
    budget: int
    shares: list[int]
    stretches: list[Stretch] = field(default_factory=list)
    text: str = ""
    thinking: str = ""
    answer: str = ""
    response: BudgetResponse | None = None

    @property
    def tokens(self) -> int:
        """All tokens that were generated, those of planning among them."""
        reply = self.response.generation_tokens if self.response else 0
        return self.plan.tokens + reply

    def as_dict(self) -> dict[str, Any]:
        """What a program wants to know of it, as JSON has it."""
        last = self.response
        parts = []
        for i, part in enumerate(self.plan.parts):
            told: dict[str, Any] = {**vars(part), "share": self.shares[i]}
            if self.stretches:
                stretch = self.stretches[i]
                told |= {
                    "passed_on": stretch.passed_on,
                    "hint_tokens": len(stretch.hint),
                    "thinking_tokens": stretch.thinking,
                    "used": stretch.used,
                    "closed_by": stretch.closed_by,
                }
            parts.append(told)
        return {
            "budget": self.budget,
            "difficulty": self.plan.difficulty,
            "parts": parts,
            "problems": list(self.plan.problems),
            "planning_tokens": self.plan.tokens,
            "thinking": self.thinking,
            "answer": self.answer,
            "thinking_tokens": last.thinking_tokens if last else 0,
            "generation_tokens": last.generation_tokens if last else 0,
            "total_tokens": self.tokens,
            "closed_by": last.closed_by if last else None,
            "finish_reason": last.finish_reason if last else None,
        }


def plan(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    question: str,
    **options: Any,
) -> PlannedReply:
    """Plans a question, and answers it part by part, each within its share.

    Args:
        model, tokenizer, question, options: As in `stream_plan`.

    Returns:
        PlannedReply: With the answer, and what became of each part.
    """
    replies = stream_plan(model, tokenizer, question, **options)
    planned, _ = next(replies)
    for _ in replies:
        pass
    return planned


def stream_plan(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    question: str,
    *,
    predictor: Predictor | bool | None = None,
    plan: Plan | dict[str, Any] | None = None,
    **options: Any,
) -> Generator[tuple[PlannedReply, BudgetResponse | None], None, None]:
    """`plan`, piece by piece.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them.
        question (str): The question, without the chat template.
        plan (Plan or dict, optional): A plan that is there already, as `Plan.as_dict`
            gives it; by default the model makes one.
        options: The fields of `PlanOptions`; ``thinking_budget``, tokens of all parts
            together: a number, a level, "auto" for what the predictor expects of the
            question, or None for what ``levels`` have for its difficulty; the other
            options of `make_budget_sampler`, ``system_prompt``,
            ``chat_template_config`` and those of `stream_generate`.

    Yields:
        tuple[PlannedReply, BudgetResponse or None]: The same object, filled as the
        reply comes, with mlx-lm's response; at first with None, when the plan is there
        and no token of the reply.

    Raises:
        ValueError: If an option is not allowed or a budget cannot be honoured. What a
            model's plan lacks is no error.
    """
    rest = dict(options)
    asked = take(PlanOptions, rest)
    thinking, sampling = take(ThinkingBudget, rest), take(Sampling, rest)
    thinking = for_predictor(thinking, predictor)
    template = take(PromptOptions, rest)
    _check(thinking, predictor, asked.keep)
    if not question.strip():
        raise ValueError("The prompt is empty: give one with --prompt.")
    if plan is None:
        (plan,) = make_plans(
            model,
            tokenizer,
            [question],
            thinking=thinking,
            sampling=sampling,
            template=template,
        )
    elif not isinstance(plan, Plan):
        plan = plan_from(plan)
    template = let_think(tokenizer, thinking, template)

    def encode(text: str) -> list[int]:
        return encode_chat(tokenizer, text, **keywords_of(template))

    budget = budget_of(plan, thinking, asked.levels)
    if budget is None:
        budget = _expected(model, tokenizer, predictor, thinking, encode(question))
    shares = split(budget, [part.credits for part in plan.parts], asked.schedule)
    planned = PlannedReply(plan, budget, shares)
    yield planned, None
    if asked.keep == WORDS:
        # What is asked for in words is not kept.
        prompt, kept = encode(in_words(question, plan, shares)), thinking.free
        rest["predictor"] = False
    else:
        prompt, kept = encode(question), replace(thinking, tokens=budget)
        rest["predictor"] = predictor
        rest["make_sampler"] = InStretches(
            plan, shares, asked.rollover, planned.stretches
        )
    for response in stream_generate(
        model, tokenizer, prompt, **keywords_of(kept), **keywords_of(sampling), **rest
    ):
        planned.response = response
        planned.text += response.text
        yield planned, response
    last = planned.response
    if last is not None and last.reply is not None:
        thought, answer = last.reply.split()
        planned.thinking, planned.answer = thought.strip(), answer.strip()
        finish(planned.stretches, last.thinking_tokens, last.closed_by)


def finish(stretches: Sequence[Stretch], thinking: int, closed_by: str | None) -> None:
    """What became of the last stretch, which the sampler does not see to its end.

    Args:
        stretches (Sequence[Stretch]): Of a reply that has ended.
        thinking (int): Its tokens of thinking.
        closed_by (str, optional): What has ended its thinking.
    """
    begun = [s for s in stretches if s.has_begun]
    running = [s for s in begun if s.closed_by is None or s is begun[-1]]
    if running:
        last = running[0]
        others = sum(s.thinking for s in begun if s is not last)
        last.thinking, last.closed_by = thinking - others, closed_by


def budget_of(
    plan: Plan, thinking: ThinkingBudget, levels: Sequence[int]
) -> int | None:
    """The budget of a plan in tokens; None if the predictor is to say it."""
    if isinstance(thinking.tokens, AutoBudget):
        return None
    if thinking.tokens is None:
        return levels[plan.difficulty - 1]
    assert isinstance(thinking.tokens, int)  # as `_check` has seen to
    return thinking.tokens


def _expected(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None,
    thinking: ThinkingBudget,
    prompt: list[int],
) -> int:
    assert isinstance(predictor, Predictor) and isinstance(thinking.tokens, AutoBudget)
    length = estimate(
        model,
        tokenizer,
        predictor,
        prompt,
        thinking_start=thinking.start,
        thinking_end=thinking.end,
    ).median
    return thinking.tokens.tokens(length)


def _check(
    thinking: ThinkingBudget, predictor: Predictor | bool | None, keep: str
) -> None:
    """Raises a ValueError if a plan cannot be kept to such a budget."""
    check_divisible(thinking)
    if isinstance(thinking.tokens, AutoBudget) and not knows_lengths(predictor):
        check_enforceable(thinking, predictor)
    if keep == GUIDED:
        tokens = thinking.tokens if isinstance(thinking.tokens, int) else 1
        check_enforceable(replace(thinking, tokens=tokens), predictor)
