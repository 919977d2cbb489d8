"""Rows of public multiple-choice datasets, in the form of one's own files.

Each becomes a question, its choices and the letter of the right one. Knows the columns
of these datasets; nothing of files or models.
"""

import hashlib
import string
from typing import Any

from ..files.records import Record

_LETTERS = string.ascii_uppercase


def read_medmcqa(row: Record) -> Record:
    """A row of MedMCQA: four choices, and the number of the right one from 0."""
    choices = [row.get(f"op{letter}") for letter in "abcd"]
    return _choice(row.get("id"), row.get("question"), choices, row.get("cop"))


def read_medqa(row: Record) -> Record:
    """A row of MedQA: choices by letter, and the letter of the right one."""
    options = row.get("options")
    options = options if isinstance(options, dict) else {}
    letters = sorted(options)
    answer = row.get("answer_idx")
    right = letters.index(answer) if answer in letters else None
    choices = [options[letter] for letter in letters]
    return _choice(None, row.get("question"), choices, right)


def read_gpqa(row: Record) -> Record:
    """A row of GPQA: the right answer and three wrong ones.

    Their order follows from the record's name, so that it is the same in every run.
    """
    names = ["Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
    name = row.get("Record ID")

    def place(field: str) -> bytes:
        return hashlib.sha256(f"{name} {field}".encode()).digest()

    order = sorted(names, key=place)
    choices = [row.get(field) for field in order]
    return _choice(name, row.get("Question"), choices, order.index(names[0]))


def _choice(
    name: object, question: object, choices: list[Any], right: object
) -> Record:
    is_there = isinstance(right, int) and 0 <= right < len(choices)
    return {
        "id": name,
        "question": question,
        "choices": choices,
        "answer": _LETTERS[right] if is_there and isinstance(right, int) else None,
    }
