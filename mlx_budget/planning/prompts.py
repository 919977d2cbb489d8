"""What the model is told: to plan, to rate a plan, and to think it through.

Knows plans; nothing of models.
"""

from collections.abc import Sequence

from .plans import MOST_PARTS, Part, Plan

_PLAN = """\
Here is a question that somebody else will answer. Do not answer it. Break it into 2 \
to {most} smaller questions that, answered one after another, lead to its answer. If \
it is so easy that one step does it, give that one. Put a hint of a few words to each.

Question: {question}

Reply with JSON alone, in this form:
{{"parts": [{{"question": "...", "hint": "..."}}]}}"""

_RATE = """\
Here is a question and a plan for answering it. Say how hard the question is, from 1 \
(very easy) to 5 (very hard), and share 100 credits among the {count} parts of the \
plan, more for those that need more thought. The credits must add up to 100.

Question: {question}

{parts}

Reply with JSON alone, in this form:
{{"difficulty": 3, "credits": [{example}]}}"""

_WORDS = """\
{question}

Think it through in these parts, and keep to the length of each:
{parts}"""


def planning_prompt(question: str) -> str:
    """Asks for the parts of a question."""
    return _PLAN.format(question=question, most=MOST_PARTS)


def rating_prompt(question: str, parts: Sequence[Part]) -> str:
    """Asks for the difficulty of a question and the credits of its parts."""
    listed = "\n".join(f"{i}. {_told(part)}" for i, part in enumerate(parts, 1))
    count = len(parts)
    equal = [100 // count + (i < 100 % count) for i in range(count)]
    example = ", ".join(map(str, equal))
    return _RATE.format(question=question, parts=listed, count=count, example=example)


def in_words(question: str, plan: Plan, shares: Sequence[int]) -> str:
    """A question with its plan, and the length of each part in words.

    The published code asks for as many words as the share has tokens, and so do we.
    """
    listed = "\n".join(
        f"{i}. {_told(part)} Use at most {share} words."
        for i, (part, share) in enumerate(zip(plan.parts, shares, strict=True), 1)
    )
    return _WORDS.format(question=question, parts=listed)


def hint_of(plan: Plan, index: int) -> str:
    """The line that is put into thinking where a part begins."""
    return f"Part {index + 1} of {len(plan.parts)}: {_told(plan.parts[index])}\n"


def _told(part: Part) -> str:
    return f"{part.question} ({part.hint})" if part.hint else part.question
