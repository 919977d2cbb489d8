"""Tasks of the LM Evaluation Harness, as questions with a grader of their own.

Knows the harness's tasks, filters and metrics; nothing of models or budgets.
"""

import copy
import importlib.util
import io
import logging
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..installing import install_command
from .grading import Grade
from .problems import CHOICES_INSTRUCTION, Problem, Task

PREFIX = "lm-eval:"
_NAMES = ("filter", "metric", "include_path")
_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class HarnessRequest:
    """What is asked of the harness: `lm-eval:NAME,filter=...,metric=...`.

    Attributes:
        name: Of a task or a group, or the path of a task's YAML file.
        filter: Of the task's filters the one that reads answers, by default the first.
        metric: Of its metrics the one that says whether an answer is right, by default
            the first.
        include_path: A folder of more tasks.
    """

    name: str
    filter: str | None = None
    metric: str | None = None
    include_path: str | None = None


def parse_request(text: str) -> HarnessRequest:
    """Reads what follows `lm-eval:`.

    Raises:
        ValueError: If it names nothing, or something that is not known here.
    """
    name, *options = text.removeprefix(PREFIX).split(",")
    pairs = [option.partition("=") for option in options]
    unknown = [key for key, equals, _ in pairs if key not in _NAMES or not equals]
    if unknown or not name.strip():
        raise ValueError(
            f"A task of the harness is written {PREFIX}NAME, or {PREFIX}NAME,"
            f"{','.join(f'{key}=...' for key in _NAMES)}; not {text!r}."
        )
    return HarnessRequest(name.strip(), **{key: value for key, _, value in pairs})


def load_harness_task(
    text: str, limit: int | None = None, instruction: str | None = None
) -> Task:
    """The questions of a task of the harness, graded by it.

    Tasks that generate are asked as they are, with the few-shot examples that they
    bring. Of multiple choices the letters are asked for. An answer ends at the first
    of the task's stop sequences.

    Args:
        text (str): `lm-eval:NAME`, see `HarnessRequest`.
        limit (int, optional): How many questions to take, the first ones.
        instruction (str, optional): Put behind every question.

    Raises:
        ValueError: In one line, if the harness is not installed, or the task is not
            there or of a kind that asks for no reply.
    """
    check_installed()
    request = parse_request(text)
    found: dict[str, _Question] = {}
    with _silence(), _errors_in_one_line(request.name):
        for name, task in _tasks(request):
            _check_kind(name, task, request)
            left = None if limit is None else limit - len(found)
            if left is not None and left < 1:
                break
            task.build_all_requests(limit=left)
            for question in _questions(task, request):
                found[f"{name}/{question.number}"] = question
    problems = tuple(
        Problem(name, question.text, question.answer, question.is_choice)
        for name, question in found.items()
    )
    are_choices = all(problem.choices for problem in problems)
    default = CHOICES_INSTRUCTION if are_choices else ""

    def grade(problem: Problem, answer: str | None) -> Grade | None:
        return found[problem.id].grade(answer)

    title = PREFIX + request.name
    return Task(title, problems, default if instruction is None else instruction, grade)


def check_installed() -> None:
    """Raises a ValueError if the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "Tasks of the LM Evaluation Harness need it: "
            f"`{install_command('lm-eval')}`."
        )


@dataclass(frozen=True)
class _Question:
    """A document of a task; ``judge`` grades a reply to it, None for a choice."""

    number: int
    text: str
    answer: str
    is_choice: bool
    judge: Callable[[str], tuple[object, str, str]] | None = None

    def grade(self, answer: str | None) -> Grade | None:
        """The harness's verdict; None if the letter is to be compared."""
        if self.judge is None:
            return None
        if answer is None:
            return Grade(False, None, "no answer: thinking was never closed")
        try:
            with _silence():
                value, extracted, rule = self.judge(answer)
        except Exception as e:
            problem = f"the harness cannot grade it ({type(e).__name__}: {e})"
            return Grade(False, None, problem, "lm-eval")
        if isinstance(value, bool) or value in (0, 1):
            return Grade(bool(value), extracted, None, rule)
        problem = f"its metric gives {value!r}, which is neither right nor wrong"
        return Grade(False, extracted, problem, rule)


def _tasks(request: HarnessRequest) -> Iterator[tuple[str, Any]]:
    from lm_eval.tasks import TaskManager

    is_file = request.name.lower().endswith(_ENDINGS)
    if is_file and not Path(request.name).is_file():
        raise ValueError(f"There is no file {request.name}.")
    # Looking through all tasks takes seconds, and a file needs none of them.
    manager = TaskManager(
        include_path=request.include_path, include_defaults=not is_file
    )
    if not is_file and request.name not in manager.task_index:
        close = [name for name in manager.all_tasks if request.name in name][:5]
        hint = f"; close to it are {', '.join(close)}" if close else ""
        raise ValueError(
            f"The harness has no task {request.name!r}{hint}. `lm-eval ls tasks` lists "
            "them."
        )
    name = str(Path(request.name).resolve()) if is_file else request.name
    yield from manager.load(name)["tasks"].items()


def _check_kind(name: str, task: Any, request: HarnessRequest) -> None:
    kind = task.OUTPUT_TYPE
    if kind not in ("generate_until", "multiple_choice"):
        raise ValueError(
            f"The harness's task {name} compares likelihoods ({kind}), and an "
            "evaluation of thinking asks for replies: choose a task of the kind "
            "generate_until."
        )
    for mark, what in (("MULTIMODAL", "shows pictures"), ("UNSAFE_CODE", "runs code")):
        if getattr(task, mark, False):
            raise ValueError(
                f"The harness's task {name} {what}: that is not done here."
            )
    if kind == "multiple_choice":
        return
    filters = [ensemble.name for ensemble in task._filters]
    if request.filter is not None and request.filter not in filters:
        raise ValueError(
            f"The harness's task {name} has no filter {request.filter!r}; it has "
            f"{', '.join(filters)}."
        )


def _questions(task: Any, request: HarnessRequest) -> Iterator[_Question]:
    seen = set()
    for instance in task.instances:
        if instance.doc_id in seen:
            continue  # the other choices of the same question
        seen.add(instance.doc_id)
        doc, text = instance.doc, instance.args[0]
        if task.OUTPUT_TYPE == "multiple_choice":
            yield _choice(task, instance.doc_id, doc, text)
        else:
            target = task.doc_to_target(doc)
            judge = _judge(task, instance, request)
            yield _Question(instance.doc_id, text, str(target), False, judge)


def _choice(task: Any, number: int, doc: Mapping[str, Any], text: str) -> _Question:
    choices, right = list(map(str, task.doc_to_choice(doc))), task.doc_to_target(doc)
    right = choices.index(right) if isinstance(right, str) else right
    letters = string.ascii_uppercase[: len(choices)]
    if [choice.strip() for choice in choices] != list(letters):
        pairs = zip(letters, choices, strict=True)
        options = (f"{letter}. {choice.strip()}" for letter, choice in pairs)
        text = "\n".join([text.rstrip(), "", *options])
    return _Question(number, text, letters[right], True)


def _judge(
    task: Any, instance: Any, request: HarnessRequest
) -> Callable[[str], tuple[object, str, str]]:
    """What filters an answer and takes a metric of it, as the harness does."""
    ensemble = next(e for e in task._filters if request.filter in (None, e.name))

    def judge(answer: str) -> tuple[object, str, str]:
        asked = copy.copy(instance)
        asked.resps = [until_stop(answer, instance.args[1].get("until"))]
        asked.filtered_resps = {}
        ensemble.apply([asked])
        filtered = asked.filtered_resps[ensemble.name]
        metrics = task.process_results(asked.doc, [filtered])
        name = request.metric or next(iter(metrics))
        if name not in metrics:
            raise ValueError(f"there is no metric {name!r}, only {', '.join(metrics)}")
        extracted = filtered if isinstance(filtered, str) else repr(filtered)
        value = metrics[name]
        value = value.item() if hasattr(value, "item") else value
        return value, extracted, f"lm-eval: {ensemble.name} {name}"

    return judge


def until_stop(answer: str, stops: str | list[str] | None) -> str:
    """An answer up to the first stop sequence, without white space at its start."""
    answer = answer.lstrip()
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            answer = answer.partition(stop)[0]
    return answer


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps the harness's progress and notes off the terminal."""
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _errors_in_one_line(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as e:
        if "\n" in str(e):
            raise ValueError(_unread(name, e)) from None
        raise
    except Exception as e:
        raise ValueError(_unread(name, e)) from None


def _unread(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"The harness cannot read the task {name} ({type(error).__name__}: {reason})."
    )


__all__ = [
    "PREFIX",
    "HarnessRequest",
    "check_installed",
    "load_harness_task",
    "parse_request",
    "until_stop",
]
