"""A question with its reference answer, and a task of many.

Knows what a task is; nothing of where it comes from or who answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..planning.plans import Plan
    from .grading import Grade

CHOICES_INSTRUCTION = "Answer with the letter of the right choice."


@dataclass(frozen=True)
class Problem:
    """One question and what is right.

    Attributes:
        id: Its name, which no other problem of the task has.
        question: What the model is asked, its choices with it.
        answer: The reference answer; a letter if there are choices.
        choices: Whether it is graded by the letter.
        plan: For the strategies that plan; None if the model is to make one.
    """

    id: str
    question: str
    answer: str
    choices: bool
    plan: "Plan | None" = None


@dataclass(frozen=True)
class Task:
    """Problems that are evaluated together.

    Attributes:
        name: The task's name, or that of the file without its suffix.
        problems: At least one.
        instruction: What is put behind every question, "" for nothing.
        grader: Grades an answer (None if there is none) to a problem its own way; where
            it is None, or gives None, the answer is compared with the reference.
    """

    name: str
    problems: tuple[Problem, ...]
    instruction: str
    grader: "Callable[[Problem, str | None], Grade | None] | None" = None
