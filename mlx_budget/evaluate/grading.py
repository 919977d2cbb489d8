"""Whether an answer is right, by math-verify or by the letter of a choice.

Knows answers and references as texts; nothing of models, tasks or budgets.
"""

import re
import threading
from dataclasses import dataclass

from ..files.hub import quiet

_TIMEOUT = 5  # seconds, math-verify's own default

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Boxes with this between them are one answer: "$\boxed{1}$ and $\boxed{2}$".
_MATHS_MARK = r"(?:[\s$*]|\\[()\[\]])*"
_BETWEEN_BOXES = re.compile(rf"{_MATHS_MARK}(?:,\s*(?:and|or)?|;|and|or){_MATHS_MARK}")
_SPELLINGS = str.maketrans({"−": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
_BOLD_MARK = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)")
_CURRENCY = re.compile(r"\\?[$€£¥]")
_STYLED_NUMBER = re.compile(r"\\(?:text|math)(?:bf|rm|it)?\{\s*(-?[\d.,]+)\s*\}")
_GROUP = r"(?:\\[,!; ]|\{,\}|,| )"
_GROUPED_NUMBER = re.compile(rf"-?\d{{1,3}}(?:{_GROUP}\d{{3}})+(?:\.\d+)?")
# A word of one letter may be a variable, and the words named change the value.
_NUMBER_WITH_UNIT = re.compile(
    r"(-?[\d.,]*\d)\s+(?!(?:pi|percent|percentage|pct|dozen|hundred|thousand|million"
    r"|billion)\b)[A-Za-z]{2,}[A-Za-z ]*"
)
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?")

_STYLED_LETTER = re.compile(r"\\(?:text|math)(?:bf|rm|it)?\{\s*(\(?[A-Za-z]\)?)\s*\}")
_BOXED_CHOICE = re.compile(r"\(?([A-Za-z])(?:[).:]*$|[).:]\s*.+)", re.DOTALL)
# A capital that settles the answer: not "A dog", "I think", "C-section" or "A or B".
_LETTER = (
    r"(?:\(([A-Za-z])\)|([A-Z])(?![\w'’-])"
    r"(?!(?<=[AI])\s+(?!(?:because|since|as|and|for|which)\b)[a-z])"
    r"(?!\s*(?:or|and|/)\s*[A-Z]\b)"
    r"|([a-z])(?=[).*\s]*$))"
)
# From the surest to the least sure; of the first kind that occurs the last one counts.
_MENTIONS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        # "The answer is (C).", "**Answer:** C", "the correct option is C"
        r"(?i:\banswer|\b(?:correct|right|best)\s+(?:choice|option))\b[^.:\n]{0,40}?"
        rf"(?:\bis\b|:)[\s:*]*(?:(?i:option|choice|letter)\s+)?[\s*]*{_LETTER}",
        # A line with nothing else, or a letter in bold or in parentheses
        r"^[\s*#>]*\(?([A-Za-z])[).:]*[\s*]*$"
        r"|(?<!\w)\(([A-Z])\)|\*\*\(?([A-Z])[).:]*\*\*",
        # "So it must be C." at the very end
        r"\b(?:is|be|choose|pick|select|with)\s+([A-Z])[.!]?\s*\Z",
    )
)
_OPTION_LINE = re.compile(r"^[\s*]*([A-Z])[).:]", re.MULTILINE)


@dataclass(frozen=True)
class Grade:
    """What became of one answer.

    Attributes:
        correct: Whether it is right.
        extracted: What was taken for the answer, None if nothing was.
        problem: Why it could not be graded as usual, None if it was.
    """

    correct: bool
    extracted: str | None
    problem: str | None


class _CannotGrade(Exception):
    """Says why, as the problem of a grade."""


def check_available() -> None:
    """Raises a ValueError if math-verify is not installed."""
    try:
        with quiet("math_verify"):
            import math_verify  # noqa: F401
    except ImportError:
        raise ValueError(
            'Grading needs math-verify: `pip install "mlx-budget[eval]"`.'
        ) from None


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
    return answer if found else reply


def grade(answer_text: str | None, reference: str, choices: bool = False) -> Grade:
    """Compares an answer with the reference; whatever goes wrong is a `problem`.

    Args:
        answer_text (str, optional): What follows the thinking, None if it was never
            closed. Its last box counts, or without one what math-verify finds.
        reference (str): A number, LaTeX, or the letter of a choice.
        choices (bool): Whether to compare letters. Formulas are compared for 5 seconds
            at most, but outside the main thread nothing ends it.

    Raises:
        ValueError: If math-verify is needed and not installed.
    """
    if answer_text is None:
        return Grade(False, None, "no answer: thinking was never closed")
    if not answer_text.strip():
        return Grade(False, None, "no answer: nothing follows the thinking")
    try:
        box = _last_box(answer_text)
        if choices:
            letter, right = _choice(answer_text, box), _letter(reference)
            return Grade(letter == right, letter, None)
    except _CannotGrade as e:
        return Grade(False, None, str(e))
    check_available()
    with quiet("math_verify"):
        return _grade_maths(answer_text.translate(_SPELLINGS), box, reference)


def _grade_maths(text: str, box: str | None, reference: str) -> Grade:
    if box is None and (_is_only_a_formula(text) or _is_same(text, reference)):
        box = text
    extracted = None if box is None else _tidy(box)
    try:
        right = _parse_reference(reference)
        if extracted is None:
            answer = _parse(_BOLD_MARK.sub("", text.replace("\\$", "")), "answer")
            # Behind the value comes the text that it was read from.
            extracted = str(answer[-1]) if answer else None
        else:
            answer = _parse(f"\\boxed{{{extracted}}}", "answer")
        correct = _verify(right, answer)
        if not correct and not _has_value(right):
            raise _CannotGrade(f"the reference answer {reference!r} cannot be parsed")
        if not correct and not _has_value(answer):
            raise _CannotGrade("nothing that math-verify can parse in the answer")
    except _CannotGrade as e:
        return Grade(False, extracted, str(e))
    return Grade(correct, extracted, None)


def _parse_reference(reference: str) -> list:
    box = _last_box(reference, "reference answer")
    tidy = _tidy(reference if box is None else box)
    return _parse(f"\\boxed{{{tidy}}}", "reference answer")


def _last_box(text: str, what: str = "answer") -> str | None:
    boxes: list[tuple[int, int, str]] = []  # start, end, what is inside
    for match in _BOX.finditer(text):
        end = _closing_brace(text, match.end())
        if end is None:
            raise _CannotGrade(f"the {what} has a box that is never closed")
        boxes.append((match.start(), end + 1, text[match.end() : end]))
    if not boxes:
        return None
    start, _, content = boxes.pop()
    contents = [content]
    while boxes and _BETWEEN_BOXES.fullmatch(text[boxes[-1][1] : start]):
        start, _, content = boxes.pop()
        contents.insert(0, content)
    return ",".join(contents)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.start()
    return None


def _is_only_a_formula(text: str) -> bool:
    text = _BOLD_MARK.sub("", text).strip()
    rest, commands = _COMMAND.subn("", text)
    has_words = re.search("[A-Za-z]{2}|[\n#]", rest)
    return not has_words and bool(commands or re.search(r"\w", rest))


def _is_same(text: str, reference: str) -> bool:
    return _tidy(text).casefold() == _tidy(reference).casefold()


def _tidy(formula: str) -> str:
    text = _BOLD_MARK.sub("", formula.translate(_SPELLINGS))
    text = _STYLED_NUMBER.sub(r"\1", _CURRENCY.sub("", text)).strip().rstrip(". ")
    if match := _NUMBER_WITH_UNIT.fullmatch(text):
        text = match[1]
    if _GROUPED_NUMBER.fullmatch(text):
        text = re.sub(_GROUP, "", text)
    return text


def _timeout() -> int | None:
    # It is an alarm signal, and those exist in the main thread alone.
    is_main = threading.current_thread() is threading.main_thread()
    return _TIMEOUT if is_main else None


def _parse(text: str, what: str) -> list:
    from math_verify import parse
    from math_verify.errors import TimeoutException  # no Exception to Python

    try:
        return parse(text, parsing_timeout=_timeout(), raise_on_error=True)
    except (Exception, TimeoutException) as e:
        raise _CannotGrade(f"the {what} cannot be parsed ({_reason(e)})") from None


def _verify(right: list, answer: list) -> bool:
    from math_verify import verify
    from math_verify.errors import TimeoutException

    try:
        return verify(right, answer, timeout_seconds=_timeout(), raise_on_error=True)
    except (Exception, TimeoutException) as e:
        raise _CannotGrade(
            f"the answer cannot be compared with the reference ({_reason(e)})"
        ) from None


def _reason(error: BaseException) -> str:
    return f"math-verify: {type(error).__name__}"


def _has_value(found: list) -> bool:
    return any(not isinstance(value, str) for value in found)


def _letter(reference: str) -> str:
    if not re.fullmatch("[A-Z]", reference.strip()):
        raise _CannotGrade(f"the reference answer {reference!r} is not a letter")
    return reference.strip()


def _choice(text: str, box: str | None) -> str:
    if box is not None and (match := _BOXED_CHOICE.fullmatch(_plain_letters(box))):
        return match[1].upper()
    text = _plain_letters(text)
    for kind in _MENTIONS:
        if mentions := list(kind.finditer(text)):
            return next(filter(None, mentions[-1].groups())).upper()
    # "C. Paris" is an answer, and a list of all the options is none.
    letters = set(_OPTION_LINE.findall(text))
    if len(letters) == 1:
        return letters.pop()
    raise _CannotGrade("no letter of a choice in the answer")


def _plain_letters(text: str) -> str:
    text = _STYLED_LETTER.sub(r"\1", text)
    return re.sub(r"\$|\\[()\[\]]", "", text).strip()
