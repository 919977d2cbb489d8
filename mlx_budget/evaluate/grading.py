"""Whether an answer is right, and by which rule.

Knows answers and references as texts; nothing of models, tasks or budgets.
"""

import re
from dataclasses import dataclass

from .choices import NoLetter, letter_of
from .claims import Claim, OpenBox, find_boxes, find_claim
from .comparison import UNPARSED, compare_statements, is_same_text
from .mathematics import CannotCompare, check_available
from .notation import plain
from .statements import LIST, SET, TUPLE, Statement, read

__all__ = ["Grade", "answer_of", "check_available", "grade"]

# The rules that records name, beside those of a comparison.
_NO_ANSWER, _LETTER, _TEXT, _MATHEMATICS = "no answer", "letter", "text", "mathematics"
_MOST_OF_DRESS = 50  # characters around a formula that only dress it
# Answers that stand at the beginning of a sentence: "Yes, since 3 > 2."
_VERDICTS = ("yes", "no", "true", "false")
# A closing marker that opens a box.
_OPENS_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*$")
_VERDICT = re.compile(rf"[\s*]*({'|'.join(_VERDICTS)})[\s*]*[,.;:!]", re.IGNORECASE)


@dataclass(frozen=True)
class Grade:
    """What became of one answer.

    Attributes:
        correct: Whether it is right.
        extracted: What was taken for the answer, None if nothing was.
        problem: Why it could not be graded as usual, None if it was.
        rule: By what it was decided, such as "number" or "range"; docs/evaluation.md
            has a table of them.
    """

    correct: bool
    extracted: str | None
    problem: str | None
    rule: str = _NO_ANSWER


def answer_of(reply: str, marker: str, is_thinking: bool) -> str | None:
    """The part of a reply that is its answer.

    Args:
        reply (str): All that the model wrote.
        marker (str): What closes its thinking.
        is_thinking (bool): Whether the reply ended inside its thinking.

    Returns:
        str or None: What follows the first marker; the whole reply if there is none,
        for the model did not think; None if thinking was never closed.
    """
    if is_thinking:
        return None
    _, found, answer = reply.partition(marker)
    return opened_by(marker) + answer if found else reply


def opened_by(marker: str) -> str:
    """The box that a closing marker opens, which belongs to the answer, or nothing."""
    match = _OPENS_BOX.search(marker)
    return match[0] if match else ""


def grade(answer_text: str | None, reference: str, choices: bool = False) -> Grade:
    """Compares an answer with the reference; whatever goes wrong is a `problem`.

    Args:
        answer_text (str, optional): What follows the thinking, None if it was never
            closed. Its boxes count, or without one what it says in words.
        reference (str): A number, LaTeX, a few words, or the letter of a choice.
        choices (bool): Whether to compare letters. Formulas are compared for
            `mathematics.TIMEOUT` seconds at most, in any thread.

    Raises:
        ValueError: If math-verify is needed and not installed.
    """
    if answer_text is None:
        return Grade(False, None, "no answer: thinking was never closed")
    if not answer_text.strip():
        return Grade(False, None, "no answer: nothing follows the thinking")
    try:
        if choices:
            right = _letter(reference)
            letter = letter_of(answer_text)
            return Grade(letter == right, letter, None, _LETTER)
        return _grade_statement(answer_text, reference)
    except OpenBox:
        return Grade(False, None, "the answer has a box that is never closed")
    except (CannotCompare, NoLetter) as e:
        return Grade(False, None, str(e), _LETTER if choices else _NO_ANSWER)
    except (ArithmeticError, RecursionError) as e:
        return Grade(False, None, f"it cannot be compared ({type(e).__name__})")


def _letter(reference: str) -> str:
    if not re.fullmatch("[A-Z]", reference.strip()):
        raise NoLetter(f"the reference answer {reference!r} is not a letter")
    return reference.strip()


def _grade_statement(answer_text: str, reference: str) -> Grade:
    try:
        boxes = find_boxes(reference)
    except OpenBox:
        problem = "the reference answer has a box that is never closed"
        return Grade(False, None, problem)
    right = read(boxes[-1].text if boxes else reference)
    if len(answer_text) < 2 * len(reference) + _MOST_OF_DRESS:
        if is_same_text(plain(reference), plain(answer_text)):
            return Grade(True, plain(answer_text), None, _TEXT)
    if right.parts[0].lower() in _VERDICTS and (match := _VERDICT.match(answer_text)):
        said = match[1]
        return Grade(said.lower() == right.parts[0].lower(), said, None, _TEXT)
    if (claim := find_claim(answer_text)) is None:
        return Grade(False, None, UNPARSED)
    try:
        said = _with_all_boxes(claim, right)
        verdict = compare_statements(right, said)
    except CannotCompare as e:
        problem = f"the answer cannot be compared with the reference ({e})"
        return Grade(False, claim.extracted, problem, _MATHEMATICS)
    # Words that are no answer to a question for a number are not one taken.
    extracted = None if verdict.problem and verdict.rule == _TEXT else claim.extracted
    return Grade(verdict.correct, extracted, verdict.problem, verdict.rule)


def _with_all_boxes(claim: Claim, right: Statement) -> Statement:
    """What a reply states; all its boxes, where as many values are asked for."""
    is_several = right.kind in (LIST, SET, TUPLE)
    if is_several and len(claim.statement.parts) == 1 < len(claim.boxes):
        if len(claim.boxes) == len(right.parts):
            return Statement(LIST, claim.boxes)
    return claim.statement
