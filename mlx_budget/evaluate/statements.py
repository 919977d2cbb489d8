"""What a formula or a few words state: one value, several, a set, a range, a negation.

Knows how alternatives, lists, brackets and bounds are written; nothing of which of them
is right, or of where in a reply the answer stands.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .notation import plain, read_quantity

ONE, LIST, EITHER, SET, TUPLE = "one", "list", "either", "set", "tuple"
RANGE, NOT, BOUND = "range", "not", "bound"

_MOST_CHARACTERS = 1_000  # of what is taken apart
_RELATION = r"(?:<|>|(?:\\le|\\ge|\\ne)(?![A-Za-z]))"
_TERM = r"[^<>=,;]+?"
_SYMBOL = r"[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?"

NEGATION = (
    r"(?:not|\w+n't|cannot|never|neither|nor|hardly|scarcely|besides|excluding|"
    r"without(?! (?:a )?doubt)|"
    r"(?:any|every|all)\w*(?: \w+)? but|other than|except(?: for)?|far from|no longer|"
    r"no way|rather than|instead of|wrong|incorrect|(?<!no )(?<!without )doubt|"
    r"unlikely|unequal|"
    r"differ(?:s|ent) from)"
)
# What may stand between "not" and the value that it denies.
NEGATED = (
    rf"\b{NEGATION}(?:\s+(?:be|equal|equals|to|is|it|its|it's|the|a|an|i|think|believe|"
    r"say|that|this|true|final|correct|right|answer|exactly|just|simply|really|quite|"
    r"always|necessarily|actually|option|choice|by|as|of|value|number|sure|case|exceed|only|"
    r"[a-z]\s*=)"
    r"(?!\w))*"
)
_NOT = re.compile(
    rf"(?:(?:it|that|answer|[a-z])\s+(?:is|does)?\s*)?{NEGATED}\s+(.+)", re.I
)
_HEDGE = re.compile(
    r"(?:(?:is|are|so|thus|hence|i think|it is|it's|about|around|approximately|"
    r"roughly|maybe|probably|possibly|perhaps|exactly|nearly|almost|either|both|"
    r"one of|any of|some number|somewhere|(?:lies |is )?in the range(?: of)?|"
    r"(?:the |its )?(?:final |correct )?(?:answer|result|solution|value)s? "
    r"(?:is|are))\b|\\approx|=|~)\s*",
    re.I,
)
_CHOICE_TAG = re.compile(r"\(?[A-J]\)\s+(?=\S)")
_OR_SO = re.compile(r",?\s+(?:or so|approximately|in total|in all|altogether)$", re.I)
_ASIDE = re.compile(r"\s*\(((?:or|not|and not|maybe|possibly)\b[^()]*)\)$", re.I)
_ENDS = re.compile(
    r"(?P<word>between|from)?\s*(?P<low>.+?)\s*(?:"
    r"(?P<to>\bto\b|\bthrough\b|\bup to\b|–|--|~|\.\.)|(?P<and>\band\b)|(?P<dash>-))"
    r"\s*(?P<high>.+)",
    re.I,
)
_COUNT = re.compile(r"\\?[$€£]?\s*\d[\d.,]*")
_LOWER = r"(?:more|greater|larger|higher|bigger) than|over|above|exceeding"
_UPPER = r"(?:less|fewer|smaller|lower) than|under|below"
_BOUNDS = tuple(
    (re.compile(pattern, re.I), before, after)
    for pattern, before, after in (
        (rf"(?:{_LOWER}) or equal to (.+)|(?:at least|no less than|no fewer than|"
         r"not less than|a minimum of) (.+)|\\ge\s*(.+)|(.+?),? or "
         r"(?:more|greater|above|higher|over|larger)|(.+?)(?<=\d)\+|(.+?) and "
         r"(?:up|above)|(.+?) at least|(?:from )?(.+?) upwards?", "[", r",\infty)"),
        (rf"(?:{_LOWER}) (.+)|>\s*(.+)", "(", r",\infty)"),
        (rf"(?:{_UPPER}) or equal to (.+)|(?:at most|no more than|not more than|up to|"
         r"a maximum of) (.+)|\\le\s*(.+)|(.+?),? or (?:less|fewer|below|lower|under|"
         r"smaller)|(.+?) at most|(?:from )?(.+?) downwards?", r"(-\infty,", "]"),
        (rf"(?:{_UPPER}) (.+)|<\s*(.+)", r"(-\infty,", ")"),
    )
)  # fmt: skip
_OPENING = {"(": "(", "[": "[", r"\{": "{", r"\langle": "("}
_CLOSING = {")": ")", "]": "]", r"\}": "}", r"\rangle": ")"}
_BRACKET = re.compile(r"\\\{|\\\}|\\langle|\\rangle|\\begin|\\end|[()\[\]{}]")
_SEPARATOR = re.compile(
    r",\s*(?:and|or)\b|,|;|&|\bor\b|\band/or\b|\band\b|\bversus\b|\bvs\b|/(?=[A-Z]\b)",
    re.I,
)
_LABEL = re.compile(
    rf"(?P<name>{_SYMBOL}|\([a-z](?:,\s*[a-z])+\)|[A-Za-z ]{{2,}})\s*=\s*"
)


@dataclass(frozen=True)
class Statement:
    """What is stated.

    Attributes:
        kind: `ONE` value; a `LIST` of some; `EITHER` of several; a `SET`; a `TUPLE`,
            point or interval; a `RANGE` between two; what it is `NOT`; a `BOUND`, which
            is an interval too.
        parts: The formulas, in plain spelling.
        brackets: Of a tuple or bound, the opening and closing one.
        names: Of the variables that the parts are values of, if they differ.
    """

    kind: str
    parts: tuple[str, ...]
    brackets: str = ""
    names: tuple[str, ...] = ()


def read(formula: str) -> Statement:
    """Reads what a formula, or an answer of a few words, states."""
    text = plain(formula)
    return Statement(ONE, (text,)) if len(text) > _MOST_CHARACTERS else _read(text)


def _read(text: str) -> Statement:
    while (match := _HEDGE.match(text)) and match.end() < len(text):
        text = text[match.end() :]
    text = _OR_SO.sub("", _CHOICE_TAG.sub("", text))
    text = re.sub(rf"^{_SYMBOL}\s*\\in\b\s*", "", text)
    text = _ASIDE.sub(r", \1", text)
    text = plain(text)
    if read_quantity(text):
        return Statement(ONE, (text,))
    if match := _NOT.fullmatch(text):
        return Statement(NOT, (match[1],))
    if match := re.fullmatch(r"\\ne\s*(.+)", text):
        return Statement(NOT, (match[1],))
    return (
        _read_bound(text)
        or _read_range(text)
        or _read_relations(text)
        or _read_brackets(text)
        or _read_several(text)
        or _read_plus_minus(text)
        or Statement(ONE, (text,))
    )


def _read_bound(text: str) -> Statement | None:
    for pattern, before, after in _BOUNDS:
        if match := pattern.fullmatch(text):
            value = next(filter(None, match.groups()))
            if read_quantity(value) is None and not value.startswith("\\"):
                return None
            return _interval(BOUND, f"{before}{value}{after}")
    return None


def _read_range(text: str) -> Statement | None:
    match = _ENDS.fullmatch(text)
    if match is None:
        return None
    low, high = match["low"].strip(), match["high"].strip()
    numbers = read_quantity(low), read_quantity(high)
    if None in numbers:
        return None
    if match["and"] and (match["word"] or "").lower() != "between":
        return None
    if match["dash"]:
        # "3 - 5" is a difference, "3-5" goes from 3 to 5.
        is_tight = text == f"{low}-{high}" and _COUNT.match(low) and _COUNT.match(high)
        if not is_tight or numbers[0].value >= numbers[1].value:  # type: ignore[union-attr]
            return None
    return Statement(RANGE, (low, high))


def _read_relations(text: str) -> Statement | None:
    """Inequalities as the interval of their one variable."""
    pieces = re.split(r"(\s\bor\b\s|\s\band\b\s|,\s)", text)
    intervals = [_as_interval(piece.strip()) for piece in pieces[::2]]
    if not all(intervals):
        return None
    ends = [_interval(TUPLE, interval or "") for interval in intervals]
    if len(ends) == 2 and not re.search(r"\bor\b", pieces[1]) and all(ends):
        both = _intersection(*ends)  # type: ignore[arg-type]
        if both:
            return both
    joined = intervals[0] or ""
    for joint, interval in zip(pieces[1::2], intervals[1:], strict=True):
        sign = r"\cup" if joint.strip() == "or" else r"\cap"
        joined += f" {sign} {interval}"
    if len(intervals) == 1:
        return _interval(TUPLE, joined) or Statement(ONE, (joined,))
    return Statement(ONE, (joined,))


def _intersection(one: Statement, other: Statement) -> Statement | None:
    """What lies above one bound and below another."""
    for above, below in ((one, other), (other, one)):
        if above.parts[1] == r"\infty" and below.parts[0] == r"-\infty":
            brackets = above.brackets[0] + below.brackets[1]
            return Statement(TUPLE, (above.parts[0], below.parts[1]), brackets)
    return None


def _as_interval(text: str) -> str | None:
    if match := re.fullmatch(rf"\\\{{\s*{_SYMBOL}.*?(?:\||:|\\mid)(.+)\\\}}", text):
        text = match[1].strip()
    ends = re.fullmatch(
        rf"({_TERM})\s*({_RELATION})\s*{_SYMBOL}\s*({_RELATION})\s*({_TERM})", text
    )
    if ends:
        low, first, second, high = (part.strip() for part in ends.groups())
        if {first, second} <= {">", r"\ge"}:
            low, high, first, second = high, low, second, first
        elif not {first, second} <= {"<", r"\le"}:
            return None
        closed = (r"\le", r"\ge")
        before, after = (
            "[" if first in closed else "(",
            "]" if second in closed else ")",
        )
        return f"{before}{low},{high}{after}"
    one = re.fullmatch(rf"({_SYMBOL})\s*({_RELATION})\s*({_TERM})", text)
    if one and not re.fullmatch(_SYMBOL, one[3].strip()):
        sign, value = one[2], one[3].strip()
    elif one := re.fullmatch(rf"({_TERM})\s*({_RELATION})\s*({_SYMBOL})", text):
        turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
        sign, value = turned.get(one[2], one[2]), one[1].strip()
    else:
        return None
    return {
        "<": rf"(-\infty,{value})",
        r"\le": rf"(-\infty,{value}]",
        ">": rf"({value},\infty)",
        r"\ge": rf"[{value},\infty)",
        r"\ne": rf"(-\infty,{value})\cup({value},\infty)",
    }[sign]


def _interval(kind: str, text: str) -> Statement | None:
    inner = _inside(text)
    return inner and Statement(kind, tuple(_split(inner[1])), inner[0])


def _read_brackets(text: str) -> Statement | None:
    if (match := _LABEL.match(text)) and _inside(text[match.end() :]):
        text = text[match.end() :]
    found = _inside(text)
    if found is None:
        return None
    brackets, inner = found
    parts = tuple(_split(inner))
    if len(parts) == 1 and "," in inner and not re.search(r"[(\[{]", inner):
        parts = tuple(part.strip() for part in inner.split(","))
    if brackets == "{}":
        return Statement(SET, parts)
    if len(parts) == 1:
        return _read(parts[0]) if brackets == "()" else None
    if brackets == "[]" and all(part.startswith("[") for part in parts):
        rows = r" \\ ".join(" & ".join(_split(part[1:-1])) for part in parts)
        return Statement(ONE, (rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}",))
    return Statement(TUPLE, parts, brackets)


def _inside(text: str) -> tuple[str, str] | None:
    """The brackets around all of a text, and what is in them."""
    marks = list(_depths(text))
    if len(marks) < 2 or marks[0][0].start() or marks[-1][0].end() != len(text):
        return None
    if any(depth == 0 for _, depth in marks[:-1]):
        return None
    first, last = marks[0][0], marks[-1][0]
    if first[0] not in _OPENING or last[0] not in _CLOSING:
        return None
    brackets = _OPENING[first[0]] + _CLOSING[last[0]]
    return brackets, text[first.end() : last.start()].strip()


def _depths(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """The brackets of a text, each with how many are open behind it."""
    depth = 0
    for match in _BRACKET.finditer(text):
        is_opening = match[0] in (*_OPENING, "{", r"\begin")
        depth += 1 if is_opening else -1
        yield match, depth


def _split(text: str, joints: list[str] | None = None) -> list[str]:
    """The parts of a text between separators outside of all brackets."""
    brackets = [(match.start(), depth) for match, depth in _depths(text)]
    parts, start = [], 0
    for match in _SEPARATOR.finditer(text):
        depth = next((d for at, d in reversed(brackets) if at < match.start()), 0)
        is_group = re.match(r",\d{3}(?!\d)", text[match.start() :])
        if depth or (is_group and text[match.start() - 1 : match.start()].isdigit()):
            continue
        if joints is not None:
            joints.append(match[0].lower())
        parts.append(text[start : match.start()].strip())
        start = match.end()
    return [*parts, text[start:].strip()]


def _read_several(text: str) -> Statement | None:
    joints: list[str] = []
    parts = [part for part in _split(text, joints) if part]
    # "8, not 7" is 8.
    kept = [part for part in parts if not _NOT.fullmatch(part)]
    if kept and len(kept) < len(parts):
        return _read(", ".join(kept))
    if len(parts) < 2:
        return None
    names = [match["name"] if (match := _LABEL.match(p)) else None for p in parts]
    if any(names):
        parts = [re.sub(rf"^(?:{_LABEL.pattern})", "", part) for part in parts]
    parts = [p for part in parts for p in (_read_plus_minus(part) or _one(part)).parts]
    is_either = any(re.search(r"or|vs|versus|/", joint) for joint in joints)
    different = tuple(dict.fromkeys(name for name in names if name))
    kind = EITHER if is_either else LIST
    if len(different) != len(parts):
        return Statement(kind, tuple(parts))
    return Statement(kind, tuple(parts), "", different)


def _one(text: str) -> Statement:
    while (match := _HEDGE.match(text)) and match.end() < len(text):
        text = text[match.end() :]
    return Statement(ONE, (text,))


def _read_plus_minus(text: str) -> Statement | None:
    text = text.replace(r"\mp", r"\pm")
    if text.count(r"\pm") != 1:
        return None
    bare = re.sub(rf"^{_SYMBOL}\s*=\s*", "", text)
    values = (re.sub(r"\\pm\s*", sign, bare) for sign in ("+", "-"))
    return Statement(LIST, tuple(re.sub(r"^\+", "", v.strip()) for v in values))
