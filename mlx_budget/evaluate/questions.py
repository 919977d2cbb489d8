"""The questions of a task: as a model is asked them, and how its answers are graded.

Knows prompts and grading; nothing of strategies or of how replies are made.
"""

from dataclasses import dataclass

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.context import context_length
from ..engine.fields import keywords_of
from ..engine.prompts import encode_chat
from ..engine.settings import PromptOptions, seed_of
from ..engine.thinking import ThinkingMarkers
from . import grading
from .outcomes import Outcome
from .problems import Problem
from .tasks import Task


@dataclass(frozen=True)
class Questions:
    """A task that a model is asked.

    Attributes:
        task: The questions.
        model, tokenizer: As `mlx_budget.load` returns them.
        prompt: How a question becomes a prompt.
        markers: Of the model's thinking.
        seed: What the draws of all replies depend on.
    """

    task: Task
    model: nn.Module
    tokenizer: TokenizerWrapper
    prompt: PromptOptions
    markers: ThinkingMarkers
    seed: int

    def check(self) -> None:
        """Raises a ValueError if a question cannot be asked."""
        for problem in self.task.problems:
            self.encode(problem)

    def encode(self, problem: Problem, question: str | None = None) -> list[int]:
        """The prompt of a problem, as token ids.

        Args:
            problem (Problem): One of the task's.
            question (str, optional): What to ask in place of its own question.

        Raises:
            ValueError: If it is too long, or the template cannot take it.
        """
        try:
            return self.encode_text(question or problem.question)
        except ValueError as e:
            raise ValueError(f"Problem {problem.id} cannot be asked: {e}") from e

    def encode_text(self, question: str) -> list[int]:
        """The prompt of a question, with the task's instruction behind it."""
        instruction = self.task.instruction
        text = f"{question}\n\n{instruction}" if instruction else question
        most = context_length(self.model, self.tokenizer)
        prompt = keywords_of(self.prompt)
        return encode_chat(self.tokenizer, text, most_tokens=most, **prompt)

    def seed_of(self, problem: Problem, sample: int) -> int:
        """What the draws of a reply depend on."""
        return seed_of(self.seed, problem.id, sample)

    def grade(self, problem: Problem, outcome: Outcome) -> grading.Grade:
        """Grades the answer that came of a problem."""
        answer = outcome.answer
        if answer is not None and outcome.closed_by is not None:
            answer = grading.opened_by(self.markers.end) + answer
        own = self.task.grader and self.task.grader(problem, answer)
        return own or grading.grade(answer, problem.answer, problem.choices)
