"""A plan: the parts of a question, how hard it is, and what each part is worth.

Plans come from models, so whatever is wrong with one is named and mended, never an
error. Knows JSON; nothing of models or tokens.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from ..engine.context import check_unicode

MOST_PARTS = 5
# The difficulty of a question that nobody has rated, in the middle of 1 to 5.
UNRATED = 3
WHOLE = 100  # what the credits of a plan add up to
# Problems of a plan that leave nothing but the question itself.
UNREAD = frozenset({"not JSON", "no parts"})
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)

PLAN_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "parts": {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_PARTS,
            "items": {
                "type": "object",
                "properties": {
                    "question": {"type": "string", "minLength": 1, "maxLength": 300},
                    "hint": {"type": "string", "maxLength": 200},
                },
                "required": ["question", "hint"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["parts"],
    "additionalProperties": False,
}


def rating_schema(parts: int) -> dict[str, Any]:
    """The JSON schema of a rating of so many parts."""
    whole = {"type": "integer", "minimum": 0, "maximum": WHOLE}
    return {
        "type": "object",
        "properties": {
            "difficulty": {"type": "integer", "minimum": 1, "maximum": 5},
            "credits": {
                "type": "array",
                "minItems": parts,
                "maxItems": parts,
                "items": whole,
            },
        },
        "required": ["difficulty", "credits"],
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Part:
    """A sub-question of a plan.

    Attributes:
        question: What is to be found.
        hint: How, in a few words; it may be empty.
        credits: What it is worth, of 100 for the whole plan.
    """

    question: str
    hint: str = ""
    credits: float = WHOLE


@dataclass(frozen=True)
class Plan:
    """How a question is to be thought through.

    Attributes:
        parts: 1 to 5 sub-questions, in order.
        difficulty: Of the question, 1 (easy) to 5.
        problems: What was wrong with what the model wrote, and was mended.
        tokens: What planning took, in generated tokens.
    """

    parts: tuple[Part, ...]
    difficulty: int = UNRATED
    problems: tuple[str, ...] = ()
    tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON has it; `plan_from` reads it."""
        return {
            "difficulty": self.difficulty,
            "parts": [dict(vars(part)) for part in self.parts],
            "problems": list(self.problems),
            "tokens": self.tokens,
        }


def read_parts(text: str | None, question: str) -> tuple[list[Part], list[str]]:
    """The parts of a plan that a model wrote, and what is wrong with it.

    Args:
        text (str, optional): What it wrote; None if it wrote nothing.
        question (str): The question, which is the only part if there is no other.
    """
    whole = [Part(_one_line(question))]
    found = _json_in(text)
    if found is None:
        return whole, ["not JSON"]
    listed = found.get("parts") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        return whole, ["no parts"]
    parts = [part for item in listed if (part := _part_of(item)) is not None]
    problems = [] if len(parts) == len(listed) else ["a part that is none"]
    if not parts:
        return whole, ["no parts"]
    if len(parts) > MOST_PARTS:
        problems.append("too many parts")
        # What comes last is often the answer: the last part holds all of the rest.
        rest = " ".join(part.question for part in parts[MOST_PARTS - 1 :])
        parts = [*parts[: MOST_PARTS - 1], Part(rest)]
    return parts, problems


def rate(parts: list[Part], problems: list[str], text: str | None) -> Plan:
    """A plan of parts and of the rating that a model wrote of them.

    Args:
        parts (list[Part]): Of `read_parts`.
        problems (list[str]): What was wrong with them.
        text (str, optional): What it wrote.
    """
    problems, found = [*problems], _json_in(text)
    if not isinstance(found, dict):
        problems.append("rating is not JSON")
        found = None
    is_read = found is not None
    difficulty: Any = found.get("difficulty") if found else None
    credits = found.get("credits") if found else None
    if not _is_difficulty(difficulty):
        if is_read:
            problems.append("no difficulty of 1 to 5")
        difficulty = UNRATED
    shares = [float(WHOLE)] if len(parts) == 1 else _shares_of(credits, len(parts))
    if shares is None:
        if is_read:
            problems.append("no credits for each part")
        shares = [WHOLE / len(parts)] * len(parts)
    elif not math.isclose(total := sum(shares), WHOLE):
        problems.append("credits that do not sum to 100")
        shares = [WHOLE * share / total for share in shares]
    rated = (
        Part(part.question, part.hint, share)
        for part, share in zip(parts, shares, strict=True)
    )
    return Plan(tuple(rated), difficulty, tuple(problems))


def plan_from(value: Any) -> Plan:
    """A plan that a user gives, as JSON has it.

    Args:
        value: An object with ``parts``, each with ``question``, and perhaps ``hint``
            and ``credits``; ``difficulty`` for the whole.

    Raises:
        ValueError: Naming what is wrong: nobody's plan is mended but a model's.
    """
    listed = value.get("parts") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_PARTS:
        raise ValueError(
            f'A plan must be a JSON object with "parts", a list of 1 to {MOST_PARTS} '
            'objects with "question".'
        )
    parts, credits = [], []
    for number, item in enumerate(listed, 1):
        if (part := _part_of(item)) is None:
            raise ValueError(f'Part {number} of the plan needs a "question", a text.')
        for text in item.values() if isinstance(item, dict) else (item,):
            if isinstance(text, str):
                check_unicode(text, f"Part {number} of the plan")
        parts.append(part)
        credits.append(item.get("credits") if isinstance(item, dict) else None)
    difficulty = value.get("difficulty", UNRATED)
    if not _is_difficulty(difficulty):
        raise ValueError(
            f"The difficulty of a plan must be 1 to 5, not {difficulty!r}."
        )
    if all(credit is None for credit in credits):
        credits = [1] * len(parts)
    shares = _shares_of(credits, len(parts))
    if shares is None:
        raise ValueError(
            "The credits of a plan must be numbers of 0 or more, not all 0 and not "
            "beyond those that a computer adds up, one for each part or for none."
        )
    whole = sum(shares)
    rated = (
        Part(part.question, part.hint, WHOLE * share / whole)
        for part, share in zip(parts, shares, strict=True)
    )
    return Plan(tuple(rated), difficulty)


def _part_of(item: Any) -> Part | None:
    if isinstance(item, str):
        item = {"question": item}
    if not isinstance(item, dict):
        return None
    question, hint = item.get("question"), item.get("hint", "")
    if not isinstance(question, str) or not question.strip():
        return None
    hint = hint if isinstance(hint, str) else ""
    return Part(_one_line(question), _one_line(hint))


def _one_line(text: str) -> str:
    # JSON can name half of a character, which no tokenizer takes.
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _shares_of(credits: Any, parts: int) -> list[float] | None:
    """Credits as numbers, if each part has one and they are worth something."""
    if not isinstance(credits, list) or len(credits) != parts:
        return None
    shares = []
    for share in credits:
        if not isinstance(share, int | float) or isinstance(share, bool) or share < 0:
            return None
        try:
            shares.append(float(share))
        except OverflowError:
            return None
    whole = sum(shares)
    return shares if whole > 0 and math.isfinite(whole) else None


def _is_difficulty(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and 1 <= value <= 5


def _json_in(text: str | None) -> Any:
    """The JSON that a text is, or has in a fence; None if it has none."""
    fenced = _FENCED.findall(text or "")
    for candidate in (text, fenced[0] if len(fenced) == 1 else None):
        try:
            return json.loads(candidate or "")
        except (ValueError, RecursionError):
            continue
    return None
