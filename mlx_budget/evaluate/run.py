"""Asks a model many questions under each strategy and budget, and grades the answers.

Every finished reply is a record on a line of a file, so that a run can be stopped at
any moment and gone on with. Knows generation and grading; nothing of what the records
add up to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.budgets import Effort
from ..engine.enforcing import knows_lengths
from ..engine.estimate import estimate
from ..engine.fields import take_all
from ..engine.known_prompts import KnownPrompts
from ..engine.memory import wired
from ..engine.settings import AutoBudget
from ..engine.tags import tag_of
from ..engine.template import let_think
from ..engine.thinking import ThinkingMarkers, find_markers
from ..files.atomic import full_disk_in_one_line
from ..files.outputs import taken_back
from ..files.records import Record, RecordFile, has_records, open_records
from ..files.texts import write_json
from ..method.predictor import Predictor
from . import grading
from .arms import LEVELS, Arm, BudgetRequest
from .folder import (
    RECORDS_FILE,
    SETTINGS_FILE,
    check_output,
    check_record,
    fingerprint,
    settings_of,
)
from .lengths import LENGTHS_FILE, open_lengths
from .options import EvaluateOptions
from .outcomes import Outcome, Request
from .plans import Plans
from .questions import Questions
from .strategies import (
    NEEDS_FULL,
    STRATEGIES,
    WITHOUT_BUDGET,
    check_guided,
)
from .tasks import Problem, Task
from .ways import Ask, Ways

if TYPE_CHECKING:
    from ..models.fetching import Ahead


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        arm: Strategy and budget that are being run, or "predicted lengths".
        done: Its replies so far, those of earlier runs included.
        total: Replies that it will have.
        correct: Those of ``done`` whose answer is right.
        made: Replies of all arms that this run has made.
    """

    arm: str
    done: int
    total: int
    correct: int
    made: int = 0


def evaluate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None,
    task: Task,
    output: str | Path,
    *,
    model_name: str = "",
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> list[Record]:
    """Runs every strategy at every budget over a task's questions.

    ``output`` gets `RECORDS_FILE`, a JSON object for each reply, and `SETTINGS_FILE`.
    A run on an existing folder goes on with it: what is there is not generated again,
    and more strategies, budgets, questions and samples can be added; a budget that is a
    share stays what it first came to. A reply's draws depend on the seed,
    its question and the number of its sample alone, so that a run that was stopped
    comes to the same replies, to the rounding of batched arithmetic, and strategies are
    compared on common random numbers.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them.
        task (Task): From `load_task`.
        output (str or Path): The folder.
        model_name (str): What tells the model from others.
        progress (Callable): Called at the start of each arm and after each reply.
        options: The fields of `EvaluateOptions`, and of the values that it holds.

    Returns:
        list[dict]: The records of the folder, in a fixed order.

    Raises:
        ValueError: In one line, if an option cannot be used, a strategy needs what the
            model does not have, or the folder is of another run or in use.
    """
    asked = take_all(EvaluateOptions, options)
    grading.check_available()
    markers = find_markers(tokenizer, asked.thinking.start, asked.thinking.end)
    for strategy in asked.strategies:
        check_guided(strategy, predictor)
    output = Path(output)
    known = {"predictor": fingerprint(predictor)}
    check_output(output, task, asked, model_name, known)
    advice = "and run the same again: it goes on where it ended"
    file, settings = output / RECORDS_FILE, output / SETTINGS_FILE
    lengths = output / LENGTHS_FILE
    with (
        full_disk_in_one_line(file, advice),
        taken_back(
            file,
            settings,
            lengths,
            is_worth_keeping=lambda: has_records(file) or has_records(lengths),
        ),
        open_records(file) as records,
        wired(),
    ):
        check_output(output, task, asked, model_name, known)
        # What is gone on with may have grown.
        write_json(settings, {**settings_of(task, asked, model_name), **known})
        questions = _questions(model, tokenizer, task, asked, markers)
        run = _Run(questions, predictor, asked, progress)
        run.take_up(records)
        run.expect_lengths(lengths, [model_name, known["predictor"]])
        needs_full = any(b.share for b in asked.budgets) or any(
            strategy in ("full", *NEEDS_FULL) for strategy in asked.strategies
        )
        if needs_full:
            run.answer(Arm("full"), records)
        arms = list(run.arms())
        for arm in arms:
            # What a share comes to is known now, and not before.
            arm.check_room(asked.thinking, asked.max_tokens)
        for arm in arms:
            run.answer(arm, records)
        return run.records()


def check_ahead(ahead: "Ahead", task: Task, options: EvaluateOptions) -> None:
    """Checks what an evaluation needs of a model that is not downloaded yet.

    Raises:
        ValueError: As `evaluate`.
    """
    tokenizer, predictor = ahead.tokenizer, ahead.predictor
    markers = find_markers(tokenizer, options.thinking.start, options.thinking.end)
    for strategy in options.strategies:
        check_guided(strategy, predictor)
    _questions(ahead.model, tokenizer, task, options, markers).check()


def _questions(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    task: Task,
    options: EvaluateOptions,
    markers: ThinkingMarkers,
) -> Questions:
    prompt = let_think(tokenizer, options.thinking, options.prompt)
    seed = options.sampling.seed or 0
    return Questions(task, model, tokenizer, prompt, markers, seed)


class _Run:
    def __init__(
        self,
        questions: Questions,
        predictor: Predictor | bool | None,
        options: EvaluateOptions,
        progress: Callable[[Progress], None],
    ):
        self._questions = questions
        self._predictor = predictor
        self._knows_lengths = knows_lengths(predictor)
        self._options = options
        self._progress = progress
        self._records: dict[str, Record] = {}
        self._expected: dict[str, float] = {}
        self._resolved: dict[str, int] = {}
        self._plans = Plans(options.thinking, options.sampling, options.prompt)
        self._known = KnownPrompts(options.prompt_cache_bytes)
        known = self._plans, self._settled, self._known
        self._ways = Ways(questions, predictor, options, *known)
        self._made = 0

    def take_up(self, file: RecordFile) -> None:
        """Reads the records that are there."""
        for record in file.read(check_record):
            self._records.setdefault(record["id"], record)
            self._plans.take_up(record)
            if record["predicted_tokens"] is not None:
                self._expected[record["problem"]] = record["predicted_tokens"]
            strategy, label = record["strategy"], record["budget"]
            is_own = label in LEVELS and STRATEGIES[strategy].has_own_levels
            if strategy != "auto" and not is_own and record.get("thinking_budget"):
                self._resolved.setdefault(label, record["thinking_budget"])

    def expect_lengths(self, file: Path, whose: Sequence[str | None]) -> None:
        """The median length that the predictor expects of each question, in tokens."""
        if not self._knows_lengths:
            return
        thinking = self._options.thinking
        # All of them first: one that cannot be asked leaves nothing behind.
        prompts = {p.id: self._questions.encode(p) for p in self._problems}
        what, total = "predicted lengths", len(prompts)
        with open_lengths(file, [*whose, thinking.start, thinking.end]) as lengths:
            for done, (problem, prompt) in enumerate(prompts.items()):
                if problem in self._expected:
                    continue
                if (length := lengths.get(prompt)) is None:
                    self._progress(Progress(what, done, total, 0))
                    length = estimate(
                        self._questions.model,
                        self._questions.tokenizer,
                        self._predictor,
                        prompt,
                        thinking_start=thinking.start,
                        thinking_end=thinking.end,
                        prefill_step_size=self._options.prefill_step_size,
                        known_prompts=self._known,
                    ).median
                    lengths.add(prompt, length)
                self._expected[problem] = length

    def arms(self) -> Iterator[Arm]:
        """What is to be run, but for the strategy without a budget."""
        mean = self._mean_length()
        for strategy in self._options.strategies:
            if strategy in WITHOUT_BUDGET:
                if strategy != "full":
                    yield Arm(strategy)
            elif strategy == "auto":
                yield from self._auto_arms()
            else:
                for budget in self._options.budgets:
                    tokens = self._budget(strategy, budget, mean)
                    yield Arm(strategy, budget.label, tokens)

    def _budget(
        self, strategy: str, budget: BudgetRequest, mean: float
    ) -> int | Effort:
        """The budget of an arm, a level as a reply has it.

        A share, or what a level is on average, stays what it first came to, however the
        task grows.
        """
        effort, former = budget.effort, self._resolved.get(budget.label)
        if effort is None:
            return former or budget.resolve(mean)
        if not self._knows_lengths:
            return effort.in_tokens
        if STRATEGIES[strategy].has_own_levels:
            return effort
        return former or self._mean_budget(effort)

    def _mean_budget(self, auto: AutoBudget) -> int:
        tokens = [auto.tokens(length) for length in self._expected.values()]
        return round(sum(tokens) / len(tokens))

    def _auto_arms(self) -> Iterator[Arm]:
        """Each automatic budget, and a fixed one of the same mean beside it."""
        asked = {budget.label for budget in self._options.budgets}
        for budget in self._options.budgets:
            if budget.share is None and budget.effort is None:
                continue
            auto = budget.effort or AutoBudget(budget.share or 1)
            yield Arm("auto", budget.label, auto)
            mean = self._mean_budget(auto)
            if str(mean) not in asked:
                asked.add(str(mean))
                yield Arm("guidance", str(mean), mean)

    def answer(self, arm: Arm, file: RecordFile) -> None:
        """Generates and grades what is missing of an arm."""
        wanted = {
            f"{arm.name}/{problem.id}-{sample}": (problem, sample)
            for sample in range(self._options.num_samples)
            for problem in self._problems
        }
        there = [self._records[name] for name in wanted if name in self._records]
        missing = [name for name in wanted if name not in self._records]
        _check_budget(arm, there)
        correct = sum(record["correct"] for record in there)
        done = len(there)
        self._show(arm, done, len(wanted), correct)
        if not missing:
            return
        asks = [self._ask(*wanted[name], arm) for name in missing]
        for index, outcome in self._ways.outcomes(arm, asks):
            name = missing[index]
            record = self._record(name, arm, asks[index], outcome)
            file.append(record)
            self._records[name] = record
            done += 1
            correct += record["correct"]
            self._made += 1
            self._show(arm, done, len(wanted), correct)

    @property
    def _problems(self) -> tuple[Problem, ...]:
        return self._questions.task.problems

    def _ask(self, problem: Problem, sample: int, arm: Arm) -> Ask:
        questions = self._questions
        full = self._records.get(f"full/{problem.id}-{sample}")
        prompt = questions.encode(problem, arm.question(problem.question))
        seed = questions.seed_of(problem, sample)
        return Ask(problem, sample, Request(prompt, seed, full))

    def _settled(self, ask: Ask, budget: int) -> Record | None:
        """What was answered where thinking had ended by itself before a budget."""
        least = budget - len(self._questions.markers.end_tokens)
        for label in (b.label for b in self._options.budgets):
            name = f"anytime@{label}/{ask.problem.id}-{ask.sample}"
            record = self._records.get(name)
            is_own = record is not None and record["closed_by"] == "model"
            if record and is_own and record["thinking_tokens"] <= least:
                return record
        return None

    def _show(self, arm: Arm, done: int, total: int, correct: int) -> None:
        self._progress(Progress(arm.name, done, total, correct, self._made))

    def records(self) -> list[Record]:
        """All records, in an order that does not depend on how they came."""
        return sorted(self._records.values(), key=lambda record: record["id"])

    def _record(self, name: str, arm: Arm, ask: Ask, outcome: Outcome) -> Record:
        problem = ask.problem
        grade = self._questions.grade(problem, outcome)
        # A strategy may split its budget, or hold it without the engine.
        budget = arm.tokens or outcome.budget
        return {
            "id": name,
            "strategy": arm.strategy,
            "budget": arm.label,
            "thinking_budget": budget,
            "problem": problem.id,
            "sample": ask.sample,
            "question": problem.question,
            "reference": problem.answer,
            "reply": outcome.text,
            **{f"{kind}_tokens": n for kind, n in vars(outcome.counts).items()},
            "total_tokens": outcome.counts.total,
            "prompt_tokens": outcome.prompt_tokens,
            "closed_by": outcome.closed_by,
            "finish_reason": outcome.finish_reason,
            "predicted_tokens": self._expected.get(problem.id),
            "correct": grade.correct,
            "extracted": grade.extracted,
            "grading_rule": grade.rule,
            "grading_problem": grade.problem,
            "seconds": outcome.seconds,
            **self._tag_of(arm, outcome.text),
            **outcome.notes,
        }

    def _tag_of(self, arm: Arm, reply: str) -> Record:
        """The tag that a reply begins with, and whether it was given that."""
        tag = tag_of(reply, self._questions.markers.start)
        given = arm.generation(False, self._options.thinking).get("reply_prefix")
        is_given = tag_of(given or "", self._questions.markers.start) is not None
        return {} if tag is None else {"tag": tag, "tag_given": is_given}

    def _mean_length(self) -> float:
        lengths = [
            record["thinking_tokens"]
            for record in self._records.values()
            if record["strategy"] == "full"
        ]
        return sum(lengths) / max(len(lengths), 1)


def _check_budget(arm: Arm, there: Sequence[Record]) -> None:
    """Checks that what is there of an arm had the same budget."""
    for record in there:
        budget = record["thinking_budget"]
        if isinstance(arm.budget, int) and budget != arm.budget:
            raise ValueError(
                f"The records of {arm.name} have a budget of {budget} tokens, and it "
                f"is {arm.budget} now: choose another --output."
            )
