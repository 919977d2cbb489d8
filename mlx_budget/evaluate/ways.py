"""The ways in which the replies of an arm are made.

Most strategies make one reply to each question; some ask several times, end thinking
by what they find on the way, or follow a plan. Each of these is imported when a run
needs it. Knows the strategies' ways; nothing of records' files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..engine import m1
from ..engine.fields import keywords_of, take
from ..engine.known_prompts import KnownPrompts
from ..engine.settings import ThinkingBudget
from ..files.records import Record
from ..method.predictor import Predictor
from .arms import Arm
from .options import EvaluateOptions
from .outcomes import Maker, Outcome, Request
from .plans import Plans, answer_by_plans
from .problems import Problem
from .questions import Questions
from .strategies import NEEDS_FULL, STRATEGIES, VOTES

Outcomes = Iterator[tuple[int, Outcome]]


@dataclass(frozen=True)
class Ask:
    """A question that an arm asks.

    Attributes:
        problem: The question.
        sample: Number of the reply among those to it, from 0.
        request: What is given to the model.
    """

    problem: Problem
    sample: int
    request: Request


class Ways:
    """Makes the replies of any arm."""

    def __init__(
        self,
        questions: Questions,
        predictor: Predictor | bool | None,
        options: EvaluateOptions,
        plans: Plans,
        settled: Callable[[Ask, int], Record | None],
        known: KnownPrompts,
    ):
        """Makes the replies to the questions of a task.

        Args:
            questions (Questions): The task, and the model that is asked.
            predictor (Predictor, optional): Of the model.
            options (EvaluateOptions): Of the run.
            plans (Plans): Those that the arms follow.
            settled (Callable): What was answered to a question where thinking had ended
                before a budget, in tokens.
            known (KnownPrompts): Questions that have been read.
        """
        self._questions = questions
        self._thinking = options.thinking
        if (end := questions.markers.end) == m1.END:
            # Its own cut is known by its marker.
            self._thinking = replace(self._thinking, end=end)
        self._predictor = predictor
        self._options = options
        self._plans = plans
        self._settled = settled
        self._maker = Maker(
            questions.model,
            questions.tokenizer,
            markers=questions.markers,
            batch_size=options.batch_size,
            options={
                "max_tokens": options.max_tokens,
                "prefill_step_size": options.prefill_step_size,
                **keywords_of(options.sampling),
            },
            known=known,
        )

    def outcomes(self, arm: Arm, asks: Sequence[Ask]) -> Outcomes:
        """What an arm makes of questions, as it comes, each with its place."""
        keywords = {
            **arm.generation(self._predictor, self._thinking),
            "max_answer_tokens": arm.max_answer_tokens(self._options.max_answer_tokens),
        }
        ways = {
            "votes": self._by_votes,
            "exits": self._by_exits,
            "plans": self._by_plans,
            "anytime": self._at_any_time,
        }
        yield from ways.get(arm.way, self._once)(arm, asks, keywords)

    def _once(self, arm: Arm, asks: Sequence[Ask], keywords: Record) -> Outcomes:
        is_needed = not set(NEEDS_FULL).isdisjoint(self._options.strategies)
        keeps = arm.strategy == "full" and is_needed
        requests = [ask.request for ask in asks]
        yield from self._maker.outcomes(requests, keeps_tokens=keeps, **keywords)

    def _by_votes(self, arm: Arm, asks: Sequence[Ask], keywords: Record) -> Outcomes:
        from .rivals.votes import vote

        def read(which: int, outcome: Outcome) -> str | None:
            return self._questions.grade(asks[which].problem, outcome).extracted

        requests = [ask.request for ask in asks]
        yield from vote(self._maker, requests, VOTES, read, **keywords)

    def _by_exits(self, arm: Arm, asks: Sequence[Ask], keywords: Record) -> Outcomes:
        from .rivals.exits import leave_early

        thinking = take(ThinkingBudget, dict(keywords))
        rule = STRATEGIES[arm.strategy].setting
        boxes = "\\boxed" in self._questions.task.instruction
        # Thinking is closed in the prompt, and nothing holds the answer.
        free = Arm("full").generation(False, self._options.thinking)
        free["max_answer_tokens"] = keywords["max_answer_tokens"]
        free["reply_prefix"] = None  # the full reply has it
        requests = [ask.request for ask in asks]
        yield from leave_early(self._maker, requests, thinking, rule, boxes, **free)

    def _by_plans(self, arm: Arm, asks: Sequence[Ask], keywords: Record) -> Outcomes:
        size = self._options.batch_size
        for start in range(
            0, len(asks), size
        ):  # so that a run that is stopped loses few
            some = asks[start : start + size]
            requests = [ask.request for ask in some]
            samples = [(ask.problem, ask.sample) for ask in some]
            seeds = [request.seed for request in requests]
            found = answer_by_plans(
                self._maker,
                requests,
                self._plans.of(self._maker, samples, seeds),
                [ask.problem.question for ask in some],
                arm.tokens,
                STRATEGIES[arm.strategy].setting,
                self._questions.encode_text,
                **keywords,
            )
            for index, outcome in found:
                yield start + index, outcome

    def _at_any_time(self, arm: Arm, asks: Sequence[Ask], keywords: Record) -> Outcomes:
        from .anytime import answer_at

        keywords["reply_prefix"] = None
        earlier = [self._settled(ask, arm.tokens) for ask in asks]
        requests = [ask.request for ask in asks]
        yield from answer_at(self._maker, requests, arm.tokens, earlier, **keywords)
