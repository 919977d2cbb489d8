"""Whether two statements say the same, and the rule that decides it.

Knows values, lists, sets, tuples and ranges; nothing of replies or where in them an
answer stands. Algebra is math-verify's.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from .mathematics import CannotCompare, compare
from .notation import Quantity, in_radians, read_quantity
from .statements import (
    BOUND,
    EITHER,
    LIST,
    NOT,
    ONE,
    RANGE,
    SET,
    TUPLE,
    Statement,
    read,
)

# The rules, as records name them; docs/evaluation.md says what each one means.
TEXT, NUMBER, MATHEMATICS = "text", "number", "mathematics"
MATRIX = "matrix"
SEVERAL, NEGATION, BRACKETS = "several", "negation", "brackets"

UNPARSED = "nothing that math-verify can parse in the answer"

_NAME = r"[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?|[A-Za-z][A-Za-z ]+"
_EQUATION = re.compile(r"(?P<left>[^<>=]+?)\s*=\s*(?P<right>[^<>=]+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_TRAILING_UNIT = re.compile(
    r"(?<=[\d})i])\s+[A-Za-z]{2,}(?:[ /][A-Za-z]+)*(?:\s*\^\s*\{?\d\}?)?$"
)
_MAY_BE_SET = re.compile(r"<|>|\\(?:cup|cap|setminus|le|ge|begin|mathbb)(?![A-Za-z])")
_MOST_PARTS = 20
_DIGITS = 6  # significant digits of a decimal that may stand for a fraction
# Greater numbers are not compared in algebra: some have more digits than Python writes.
_LARGEST = 10**300
_MANY = (LIST, EITHER, SET)


class Verdict(NamedTuple):
    """What a comparison comes to.

    Attributes:
        correct: Whether both say the same.
        rule: What decided it.
        problem: What could not be read, None if all could.
    """

    correct: bool
    rule: str
    problem: str | None = None


def compare_statements(right: Statement, answer: Statement) -> Verdict:
    """Compares what an answer states with what is right.

    Raises:
        CannotCompare: If math-verify fails, or takes too long.
    """
    if answer.kind == NOT or right.kind == NOT:
        is_same = answer.kind == right.kind and _all_in(right.parts, answer.parts)
        return Verdict(is_same, NEGATION)
    if RANGE in (answer.kind, right.kind):
        return Verdict(_are_same_ends(right, answer), RANGE)
    if TUPLE in (answer.kind, right.kind) or BOUND in (answer.kind, right.kind):
        return _compare_tuple(right, answer)
    if answer.kind in _MANY or right.kind in _MANY:
        return _compare_many(right, answer)
    return compare_values(right.parts[0], answer.parts[0])


def _are_same_ends(right: Statement, answer: Statement) -> bool:
    """Whether both are the same range, of which one may be written [3,5] or 3:5."""
    both = []
    for one in (right, answer):
        parts = one.parts
        if one.kind == ONE and (ratio := re.fullmatch(r"(.+?)\s*:\s*(.+)", parts[0])):
            parts = ratio.groups()
        elif one.kind != RANGE and (one.kind != TUPLE or one.brackets != "[]"):
            return False
        both.append(parts)
    return _in_order(*both)


def _compare_tuple(right: Statement, answer: Statement) -> Verdict:
    kinds = {right.kind, answer.kind}
    for one, other in ((right, answer), (answer, right)):
        if one.kind == SET and len(one.parts) == 1:
            pair = (read(one.parts[0]), other)
            return compare_statements(*(pair if one is right else pair[::-1]))
    if kinds <= {TUPLE, BOUND}:
        is_same = right.brackets == answer.brackets
        return Verdict(is_same and _in_order(right.parts, answer.parts), TUPLE)
    if kinds == {TUPLE, LIST}:
        bracketed = right if right.kind == TUPLE else answer
        is_point = bracketed.brackets in ("()", "[]")
        return Verdict(is_point and _in_order(right.parts, answer.parts), TUPLE)
    if ONE in kinds:
        both = [_entries(s) or s.parts for s in (right, answer)]
        if len(both[0]) == len(both[1]) > 1 and "()" in (
            right.brackets,
            answer.brackets,
        ):
            return Verdict(_in_order(*both), TUPLE)
        formulas = (_formula(right), _formula(answer))
        # A number is no interval; a union of intervals may be one.
        if not any(_MAY_BE_SET.search(formula) for formula in formulas):
            return Verdict(False, BOUND if BOUND in kinds else BRACKETS)
        return compare_values(*formulas)
    return Verdict(False, BRACKETS)


def _entries(statement: Statement) -> tuple[str, ...] | None:
    """The entries of a matrix that is one row or one column."""
    rows = _rows(statement.parts[0]) if statement.kind == ONE else None
    if rows is None or min(len(rows), len(rows[0])) > 1:
        return None
    return tuple(entry for row in rows for entry in row)


def _rows(text: str) -> list[list[str]] | None:
    """The entries of a matrix; of a determinant there are none, it is a number."""
    matrix = re.fullmatch(r"\\begin\{[pbB]?matrix\}(.*)\\end\{[pbB]?matrix\}", text)
    if matrix is None:
        return None
    rows = [row for row in re.split(r"\\\\", matrix[1]) if row.strip()]
    return [[entry.strip() for entry in row.split("&")] for row in rows] or None


def _formula(statement: Statement) -> str:
    if statement.kind in (TUPLE, BOUND):
        opening, closing = statement.brackets[0], statement.brackets[1]
        return f"{opening}{','.join(statement.parts)}{closing}"
    return statement.parts[0]


def _compare_many(right: Statement, answer: Statement) -> Verdict:
    many = next(s for s in (answer, right) if s.kind in _MANY)
    if len(right.parts) > _MOST_PARTS or len(answer.parts) > _MOST_PARTS:
        return compare_values(",".join(right.parts), ",".join(answer.parts))
    if right.kind == ONE:
        # Several values are right if they are one value, written in several ways.
        first = answer.parts[0]
        are_one = all(_is_same(first, part) for part in answer.parts[1:])
        is_right = any(_is_same(right.parts[0], part) for part in answer.parts)
        rule = SET if answer.kind == SET else SEVERAL
        return Verdict(are_one and is_right, rule)
    if right.names and answer.names:
        given = dict(zip(answer.names, answer.parts, strict=True))
        if set(given) == set(right.names):
            named = [given[name] for name in right.names]
            return Verdict(_in_order(right.parts, named), LIST)
        return Verdict(_in_order(right.parts, answer.parts), LIST)
    is_same = _all_in(right.parts, answer.parts) and _all_in(answer.parts, right.parts)
    return Verdict(is_same, SET if many.kind == SET else LIST)


def _in_order(right: Sequence[str], answer: Sequence[str]) -> bool:
    if len(right) != len(answer):
        return False
    return all(_is_same(a, b) for a, b in zip(right, answer, strict=True))


def _all_in(parts: Sequence[str], others: Sequence[str]) -> bool:
    return all(any(_is_same(part, other) for other in others) for part in parts)


def _is_same(right: str, answer: str) -> bool:
    a, b = read(right), read(answer)
    if a.kind == b.kind == ONE:
        return compare_values(a.parts[0], b.parts[0]).correct
    return compare_statements(a, b).correct


def compare_values(right: str, answer: str) -> Verdict:
    """Compares two formulas that are one value each, in plain spelling."""
    if is_same_text(right, answer):
        return Verdict(True, TEXT)
    right, answer = _without_names(right, answer)
    if is_same_text(right, answer):
        return Verdict(True, TEXT)
    tables = [_rows(text) for text in (right, answer)]
    if tables[0] and tables[1]:
        is_same = len(tables[0]) == len(tables[1])
        rows = zip(*tables, strict=False)
        return Verdict(is_same and all(_in_order(a, b) for a, b in rows), MATRIX)
    numbers = read_quantity(right), read_quantity(answer)
    if numbers[0] and numbers[1]:
        return Verdict(_are_equal(numbers[0], numbers[1]), NUMBER)
    are_words = [_is_words(right), _is_words(answer)]
    if all(are_words):
        return Verdict(False, TEXT)
    if any(are_words) and any(numbers):
        return Verdict(False, TEXT, UNPARSED if are_words[1] else None)
    said = compare(_for_algebra(right, numbers[0]), _for_algebra(answer, numbers[1]))
    problem: str | None = None
    if not said.correct and not said.reads_reference:
        problem = f"the reference answer {right!r} cannot be parsed"
    elif not said.correct and not said.reads_answer:
        problem = UNPARSED
    return Verdict(said.correct, MATHEMATICS, problem)


def is_same_text(right: str, answer: str) -> bool:
    """Whether two formulas in plain spelling differ in spaces and capitals at most."""
    # "2 1/2" is not "21/2".
    pair = [re.sub(r"(?<=\d) +(?=\d)", "_", text) for text in (right, answer)]
    pair = [re.sub(r"[\s#]+", "", text) for text in pair]
    if any(_is_words(text) for text in (right, answer)):
        pair = [re.sub(r"^(?:an?|the) ", "", t.casefold()) for t in (right, answer)]
    return pair[0] == pair[1] and bool(pair[0])


def _is_words(text: str) -> bool:
    return len(text) > 2 and bool(_WORDS.fullmatch(text))


def _without_names(right: str, answer: str) -> tuple[str, str]:
    """Both without the "x =" that only one of them has, or both have alike."""
    right, answer = _name_first(right), _name_first(answer)
    sides = [_EQUATION.fullmatch(text) for text in (right, answer)]
    names = [s["left"] if s and _is_name(s["left"]) else None for s in sides]
    if all(names) and names[0] != names[1] and not all(len(n or "") > 8 for n in names):
        return right, answer
    found = [
        s["right"] if s and name else text
        for s, name, text in zip(sides, names, (right, answer), strict=True)
    ]
    return found[0].strip(), found[1].strip()


def _name_first(text: str) -> str:
    """An equation with its name on the left, if "5 = x" has it on the right."""
    sides = _EQUATION.fullmatch(text)
    if sides and re.fullmatch("[A-Za-z]", sides["right"].strip()):
        if read_quantity(sides["left"]):
            return f"{sides['right'].strip()} = {sides['left']}"
    return text


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(rf"{_NAME}|\\[a-z]+|[^A-Za-z]*", text.strip()))


def _are_equal(right: Quantity, answer: Quantity) -> bool:
    if right.unit and answer.unit and right.unit != answer.unit:
        return False
    values = [right.value, answer.value]
    if right.unit and answer.unit:
        values = [right.value * right.factor, answer.value * answer.factor]
    if {right.sign, answer.sign} == {"%", ""}:
        # Whoever is asked for a percentage may leave out the sign.
        share = values[0 if right.sign else 1] / 100
        return values[0] == values[1] or share == values[1 if right.sign else 0]
    if right.sign != answer.sign and "%" in (right.sign, answer.sign):
        return False
    if values[0] == values[1]:
        return True
    # A long decimal is what it is a rounding of.
    decimals = [n for n in (right, answer) if n.digits]
    if len(decimals) != 1 or decimals[0].digits < _DIGITS:
        return False
    return abs(right.value - answer.value) <= decimals[0].step


def _for_algebra(text: str, number: Quantity | None) -> str:
    if number is not None and number.sign != "°":
        value = number.value / 100 if number.sign == "%" else number.value
        if max(abs(value.numerator), value.denominator) > _LARGEST:
            raise CannotCompare("it has a number of too many digits")
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return in_radians(_TRAILING_UNIT.sub("", text).replace("#", ""))
