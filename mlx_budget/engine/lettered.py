"""The choices that a question of a data file brings, and how they stand below it.

Knows a row's field; nothing of what is asked or which choice is right.
"""

import json
import string
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .messages import brief

LETTERS = string.ascii_uppercase


def read_choices(record: Mapping[str, Any]) -> list[str] | bool:
    """The choices of a row.

    Args:
        record (Mapping): The row; `choices` in it is a list of texts, or whether the
            question has them already, each also as JSON in the cell of a table.

    Returns:
        list or bool: Their texts; True if the question has them already, False if there
        are none.

    Raises:
        ValueError: In a few words that go on with a row's name, if they cannot be read.
    """
    choices = _unpacked(record.get("choices"))
    if choices is None or isinstance(choices, bool):
        return bool(choices)
    if not isinstance(choices, list):
        raise ValueError(
            f"has {brief(choices)} for choices: give a list of texts, or true if the "
            "question has them already."
        )
    texts = all(isinstance(choice, str) and choice.strip() for choice in choices)
    if not texts or not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(
            f"has {brief(choices)} for choices: give 2 to {len(LETTERS)} texts that "
            "are not empty."
        )
    return choices


def with_choices(question: str, choices: list[str] | bool) -> str:
    """A question with its choices below it, a letter before each."""
    if isinstance(choices, bool):
        return question
    pairs = zip(LETTERS, choices, strict=False)
    options = [f"{letter}. {choice.strip()}" for letter, choice in pairs]
    return "\n".join([question, "", *options])


def _unpacked(choices: object) -> object:
    """What is in the cell of a table, or what was given."""
    if not isinstance(choices, str):
        return choices
    with suppress(ValueError, RecursionError):
        if choices.lstrip().startswith("["):
            return json.loads(choices)
    return {"true": True, "false": False}.get(choices.strip().lower(), choices)
