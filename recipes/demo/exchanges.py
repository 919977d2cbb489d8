"""A question and all that a reply to it may be made of.

Sums are thought about and answered. Whoever is stopped before there is a result says
that it guesses. To all else there is one answer, which says what the demo can do.
Knows the world and the thinking; nothing of chat formats or tokens.
"""

import random
from dataclasses import dataclass

from .others import draw_other
from .problems import Problem, draw_trained
from .reasoning import (
    FINAL,
    HABITS,
    Habits,
    Thinking,
    end_of_first_result,
    write_thinking,
)

OTHER_ANSWER = "I can only add and subtract single digits."
_OTHER_THINKING = Thinking(f"It is no sum of single digits.\n{FINAL}\n", ())
# How often something else than a sum is asked.
_OTHERS = 0.06
# A sum of so few numbers is never guessed.
_AT_ONCE = 2
# How often an earlier answer of a chat is a guess.
_GUESSED = 0.2


@dataclass(frozen=True)
class Exchange:
    """A question, the thinking about it, and its answers.

    Attributes:
        question: What is asked.
        thinking: What is thought.
        known: Characters of the thinking behind which the answer is known.
        answer: Said once the result is known.
        guess: Said when thinking is cut before that.
    """

    question: str
    thinking: Thinking
    known: int
    answer: str
    guess: str


def answer_to(problem: Problem) -> str:
    """The answer to a sum that was worked out."""
    return f"The answer is {problem.answer}."


def about_sum(rng: random.Random, problem: Problem, habits: Habits) -> Exchange:
    """An exchange about a sum.

    Args:
        rng (random.Random): Where chance comes from.
        problem (Problem): The sum.
        habits (Habits): How to think about it.
    """
    thinking, answer = write_thinking(rng, problem, habits), answer_to(problem)
    is_easy = len(problem.chain) <= _AT_ONCE
    return Exchange(
        problem.question,
        thinking,
        0 if is_easy else end_of_first_result(thinking.text),
        answer,
        answer if is_easy else f"My guess is {problem.answer}.",
    )


def about_other(question: str) -> Exchange:
    """An exchange about something else."""
    return Exchange(question, _OTHER_THINKING, 0, OTHER_ANSWER, OTHER_ANSWER)


def draw_exchange(rng: random.Random, habits: Habits = HABITS) -> Exchange:
    """An exchange of the kind that is trained on."""
    if rng.random() < _OTHERS:
        return about_other(draw_other(rng))
    return about_sum(rng, draw_trained(rng), habits)


def draw_earlier(rng: random.Random, share: float) -> list[tuple[str, str]]:
    """Questions and answers before another: in a share of chats, 1 to 3."""
    if not share or rng.random() >= share:
        return []
    exchanges = [draw_exchange(rng) for _ in range(rng.randint(1, 3))]
    return [
        (e.question, e.guess if rng.random() < _GUESSED else e.answer)
        for e in exchanges
    ]
