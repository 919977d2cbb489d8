"""The strategies that plan: what planning makes of an arm's questions.

All arms of a folder follow one plan for each question and sample, and each of them is
charged for it. Knows outcomes and `mlx_budget.planning`; nothing of grading.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.settings import PromptOptions, Sampling, ThinkingBudget
from ..files.records import Record
from ..planning.planner import make_plans
from ..planning.plans import Plan, plan_from
from ..planning.prompts import in_words
from ..planning.run import finish
from ..planning.shares import split
from ..planning.stretches import InStretches, Stretch
from .outcomes import Counts, Maker, Outcome, Request
from .problems import Problem

# Settings of the strategies.
WORDS, GUIDED, ROLLOVER = "words", "guided", "rollover"
# A question and the number of its sample.
Key = tuple[str, int]


@dataclass
class Plans:
    """The plans of a folder.

    Attributes:
        thinking: Whose markers are the model's.
        sampling: How plans are drawn.
        template: How a question becomes a prompt.
        found: Plans that there are.
    """

    thinking: ThinkingBudget
    sampling: Sampling
    template: PromptOptions
    found: dict[Key, Plan] = field(default_factory=dict)

    def take_up(self, record: Record) -> None:
        """Takes the plan that a record of an earlier run keeps."""
        if (kept := record.get("plan")) is not None:
            plan = replace(
                plan_from(kept), problems=tuple(kept["problems"]), tokens=kept["tokens"]
            )
            self.found.setdefault((record["problem"], record["sample"]), plan)

    def of(
        self,
        maker: Maker,
        asks: Sequence[tuple[Problem, int]],
        seeds: Sequence[int],
    ) -> list[Plan]:
        """A plan for each question and sample; those that are missing are made now."""
        missing = []
        for (problem, sample), seed in zip(asks, seeds, strict=True):
            key = problem.id, sample
            if problem.plan is not None:
                self.found[key] = problem.plan
            elif key not in self.found:
                missing.append((key, problem.question, seed))
        made = make_plans(
            maker.model,
            maker.tokenizer,
            [question for _, question, _ in missing],
            thinking=self.thinking,
            sampling=self.sampling,
            template=self.template,
            seeds=[seed for _, _, seed in missing],
            batch_size=maker.batch_size,
        )
        for (key, _, _), plan in zip(missing, made, strict=True):
            self.found[key] = plan
        return [self.found[problem.id, sample] for problem, sample in asks]


def answer_by_plans(
    maker: Maker,
    requests: Sequence[Request],
    plans: Iterable[Plan],
    questions: Sequence[str],
    budget: int,
    setting: str,
    encode: Callable[[str], list[int]],
    **options: Any,
) -> Iterator[tuple[int, Outcome]]:
    """Answers questions by their plans; yields the outcomes as they finish.

    Args:
        maker (Maker): Makes the replies.
        requests (Sequence): The questions, as the other arms ask them.
        plans (Iterable): One for each.
        questions (Sequence[str]): Their texts.
        budget (int): Tokens of all parts of a plan together.
        setting (str): `WORDS`, `GUIDED` or `ROLLOVER`.
        encode (Callable): Makes the prompt of a question.
        options: Of `stream_batch_generate`.
    """
    plans = list(plans)
    shares = [split(budget, [p.credits for p in plan.parts]) for plan in plans]
    followed: list[list[Stretch]] = [[] for _ in plans]
    if setting == WORDS:
        told = zip(questions, plans, shares, strict=True)
        requests = [
            replace(request, prompt=encode(in_words(*each)))
            for request, each in zip(requests, told, strict=True)
        ]
    else:
        options["make_sampler"] = [
            InStretches(plan, share, setting == ROLLOVER, stretches)
            for plan, share, stretches in zip(plans, shares, followed, strict=True)
        ]
    for index, outcome in maker.outcomes(requests, **options):
        plan, stretches = plans[index], followed[index]
        finish(stretches, outcome.counts.thinking, outcome.closed_by)
        used = [
            {"share": s.share, "passed_on": s.passed_on, "used": s.used}
            | {"closed_by": s.closed_by}
            for s in stretches
        ]
        yield (
            index,
            replace(
                outcome,
                counts=outcome.counts + Counts(probe=plan.tokens),
                notes={"plan": plan.as_dict(), "shares": shares[index]}
                | ({"stretches": used} if used else {}),
            ),
        )
