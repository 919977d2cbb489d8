"""Where in a reply its answer stands, and what it states.

Knows boxes and how people word an answer, what they take back, and what they leave
open; nothing of references or algebra.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from .notation import MULTIPLIER, plain, read_quantity, spelled
from .statements import (
    EITHER,
    LIST,
    NEGATED,
    NOT,
    ONE,
    RANGE,
    Statement,
    read,
)

_MARKS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# What comes earlier in a reply is not its answer, and longer words join nothing.
_MOST_CHARACTERS, _MOST_OF_WORDS, _MOST_OF_JOINT = 100_000, 5_000, 120
_MOST_VALUES = 40

_MONEY = r"(?:\\?[$€£¥₹])"
_FRACTION = r"\\frac\{[^{}]*\}\{[^{}]*\}"
_VALUE = re.compile(
    rf"""\$\$.+?\$\$|(?<![\\\d])\$(?![\s])[^$\n]{{1,300}}?(?<!\s)\$(?!\d)
    |\\\(.+?\\\)|\\\[.+?\\\]
    |(?<![\w.\\{{}}^_])(?:\b[A-Za-z]\s*(?:=|<|>|\\le\ |\\ge\ |\\ne\ )\s*)?
    (?:[(\[]\s*-?\d[^()\[\]\n]{{0,60}}?,[^()\[\]\n]{{0,60}}?[)\]]|\\\{{.*?\\\}}
    |(?:\\pm\s*|[-+]|[<>]\s*|(?:\\le|\\ge|\\ne)\s*)?{_MONEY}?-?(?:
        \d+\s+(?:and\s+)?\d+/\d+|\d*\.\d*\\(?:overline|bar|dot)\s*\{{?\d+\}}?|\d*\s*{_FRACTION}|\d*\\sqrt\{{[^{{}}]*\}}
        |(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?!\w))?
        (?:\\ldots|\\overline\{{?\d+\}}?|\(\d+\)|\s*/\s*\d+(?:\.\d+)?)?
        (?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{{?[-+]?\d+\}}?)?
        (?![abnxyz](?![A-Za-z])))
    (?:\s*(?:%|percent\b|\^\\circ|(?:{MULTIPLIER})\b))*\+?
    |\\(?:emptyset|pi|infty)(?![A-Za-z]))""",
    re.VERBOSE | re.DOTALL,
)
_ANCHOR = re.compile(
    r"\b(?:final\s+|correct\s+)?answers?\b[^.:=\n]{0,60}?"
    r"(?::|=|\b(?:is|are|be|lies?|equals)\b|(?=\bisn't\b|\bcan't\b|\bcannot\b))"
    r"[\s:*]*",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:so|thus|therefore|hence|then|finally)?[,\s]*(?:(?:the|its|my|our|this|it|that|"
    r"these|they)\b\s*)?(?:(?:final|correct|only)\s+)?(?:(?:answer|result|solution|"
    r"value|total|number|root)s?\s+)?(?:is|are|=|:|equals)\s+",
    re.IGNORECASE,
)
# Words about what the answer is, and those that stand before a day, a place or a time.
_SAID = re.compile(
    r"(?!.*\b(?:if|whether|unsure|unclear|doubt|guess|sure|know|say|not|never|cannot|\w+n't)\b)"
    r"[\w ,']{1,80}\b(?:is|was|are|were|be)\s+(?=\S)",
    re.I,
)
_PLACE = re.compile(r"(?:on|in|at)\s+(?:an?\s+|the\s+)?(?=[A-Z])")
_SENTENCE_END = re.compile(r"(?<=[.!])\s+(?=\S)|(?<=\?)\s+(?![Nn]o\b)(?=\S)|\n+")
_UNSURE = re.compile(
    r"(?:or|alternatively|maybe|perhaps|possibly|otherwise|another (?:possibility|"
    r"possible|answer|option|solution)|"
    r"(?:but\s+)?(?:it\s+)?(?:could|might|may)(?:\s+also)?\s+be)\b",
    re.IGNORECASE,
)
# What numbers the answers between which a reply does not decide.
_NUMBERED = re.compile(
    r"\b(?:option|possibility|candidate|alternative|scenario)\s+\w{1,5}\s*[:.)]", re.I
)
# What joins two values, between the end of one and the beginning of the next.
_UNITS = r"(?:(?!(?:or|and|to|is|so|then|but)\b)[A-Za-z][\w.^\\{}]*\s*){0,3}"
_JOINTS = (
    (RANGE, re.compile(rf"{_UNITS}(?:to|through|until|up to|–|--|-|~)", re.I)),
    (
        EITHER,
        re.compile(
            rf"{_UNITS}[\s,;.?(]*(?:(?:or|and/or|versus|vs\.?|/|\|)\b.{{0,40}}"
            rf"|(?:{_UNSURE.pattern}).{{0,30}})|/|\|",
            re.I | re.DOTALL,
        ),
    ),
    (LIST, re.compile(r"(?:,\s*(?:and\s*)?|and|;|&)(?:\s*[a-z]\s*=)?", re.I)),
)
_DENIED_BEFORE = re.compile(rf"{NEGATED}[\s*$]*$", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"[\s*$.]*(?:\?\s*no\b|(?:is|are|was|would be)\s+(?:clearly\s+)?"
    r"(?:wrong|incorrect|false|impossible|excluded|ruled out|"
    r"not\s+(?:the\s+|a\s+|an\s+)?(?:\w+\s+)?(?:answer|solution|correct|right|it|"
    r"possible|valid|option|choice|result)\b)"
    r"|(?:isn't|can't be|cannot be|doesn't work|does not work))",
    re.IGNORECASE,
)
# A box behind one of these words puts an earlier one right, or follows from it.
_GOES_ON = re.compile(
    r"\b(?:so|thus|therefore|hence|finally|final|wait|rather|instead|actually|correct|"
    r"corrected|correction|mistake|sorry|recheck|total|altogether|step|gives|result|"
    r"implies|no)\b|\\implies|\\Rightarrow|=>|\n\s*\n|=\s*$",
    re.IGNORECASE,
)


class OpenBox(Exception):
    """A box that is never closed."""


@dataclass(frozen=True)
class Claim:
    """What a reply gives as its answer.

    Attributes:
        statement: What it states.
        extracted: The words that it stands in.
        boxes: What earlier boxes hold that are not taken for the answer, that of the
            statement included; for references that list several.
    """

    statement: Statement
    extracted: str
    boxes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """A piece of a reply: a box, or a value in a sentence.

    Attributes:
        start, end: Where it is.
        text: What is in it.
    """

    start: int
    end: int
    text: str


def find_claim(text: str) -> Claim | None:
    """The answer of a reply; None if nothing in it looks like one.

    Raises:
        OpenBox: If a box is never closed.
    """
    text = text[-_MOST_CHARACTERS:].strip()
    if boxes := find_boxes(text):
        return _boxed(text, boxes)
    text = text[-_MOST_OF_WORDS:].rpartition("####")[2].strip() or text
    if _is_phrase(text):
        return Claim(read(text), plain(text))
    return _worded(spelled(text[-_MOST_OF_WORDS:]))


def find_boxes(text: str) -> list[Box]:
    """The boxes of a text that are not in another one.

    Raises:
        OpenBox: If one is never closed.
    """
    boxes: list[Box] = []
    opened: list[re.Match[str]] = []
    for mark in _MARKS.finditer(text):
        if mark[0].endswith("{") and mark[0] != r"\{":
            opened.append(mark)
        elif mark[0] == "}" and opened and len((begin := opened.pop())[0]) > 1:
            # Of a box in a box the inner one counts.
            if not boxes or boxes[-1].end <= begin.start():
                inside = text[begin.end() : mark.start()]
                boxes.append(Box(begin.start(), mark.end(), inside))
    if any(len(mark[0]) > 1 for mark in opened):
        raise OpenBox
    return boxes


def _boxed(text: str, boxes: list[Box]) -> Claim:
    boxes = boxes[-_MOST_VALUES:]
    kept = [box for box in boxes if not is_denied(text, box)]
    contents = tuple(dict.fromkeys(plain(box.text) for box in kept))
    if not kept:
        return Claim(_denied(boxes), plain(boxes[-1].text))
    chain, kind = _chain(text, kept, len(kept) - 1, _boxes_joined)
    if len(chain) == 1:
        return Claim(read(chain[0].text), plain(chain[0].text), contents)
    labels = [_label_before(text, box) for box in chain]
    claim = _joined(kind, [box.text for box in chain], labels)
    return replace(claim, boxes=contents)


def _label_before(text: str, box: Box) -> str | None:
    match = re.search(r"\b([A-Za-z])\s*=[\s$*]*$", text[: box.start])
    return match and match[1]


def _boxes_joined(gap: str, before: str) -> str | None:
    gap = gap.strip(" $*")
    if kind := _joint(gap, before):
        return kind
    if re.search(r"\b(?:or|alternatively|maybe|perhaps|possibly)\b", gap, re.I):
        return EITHER
    is_long = len(gap) > 40 or len(_SENTENCE_END.split(gap)) > 2
    return None if is_long or _GOES_ON.search(gap) else LIST


def _worded(text: str) -> Claim | None:
    text = _NUMBERED.sub("or", text)
    sentences = [s.strip() for s in _SENTENCE_END.split(text) if s.strip()]
    denied: list[Box] = []
    anchored = [i for i, s in enumerate(sentences) if _ANCHOR.search(s)]
    last = len(sentences) - 1
    for place in [*anchored[-1:], *range(last, -1, -1)]:
        if denied and place < last and place not in anchored:
            break
        begin, is_anchored = place, place in anchored[-1:]
        while place > 0 and _UNSURE.match(sentences[begin]) and begin > 0:
            begin -= 1
        end = place + 1
        while end < len(sentences) and _UNSURE.match(sentences[end]):
            end += 1
        claim_text = " ".join(sentences[begin:end])
        if is_anchored and (match := list(_ANCHOR.finditer(claim_text))):
            start = match[-1].end()
            before, claim_text = claim_text[:start], claim_text[start:]
            if _DENIED_BEFORE.search(before.rstrip(": *")):
                claim_text = f"not {claim_text}"
            if _is_phrase(claim_text):
                statement = read(claim_text)
                if statement.kind != NOT:
                    return Claim(statement, plain(claim_text))
        if claim := _in_sentence(claim_text, is_anchored, denied):
            return claim
    if denied:
        return Claim(_denied(denied), plain(denied[-1].text))
    return _of_words(sentences)


def _in_sentence(text: str, is_first: bool, denied: list[Box]) -> Claim | None:
    """The first value of a sentence, or its last, with those that are joined to it."""
    concluded = re.split(r"[,;]\s*(?:so|therefore|thus|hence)\b", text)[-1]
    text = concluded if _VALUE.search(concluded) else text
    values = [Box(*m.span(), m[0]) for m in _VALUE.finditer(text)]
    values = values[:_MOST_VALUES] if is_first else values[-_MOST_VALUES:]
    kept = [value for value in values if not is_denied(text, value)]
    denied += [value for value in values if value not in kept]
    if not kept:
        return None
    place = len(kept) - 1
    if is_first:
        place = 0
        while place + 1 < len(kept):
            gap = text[kept[place].end : kept[place + 1].start].strip(" *$")
            if not (_joint(gap, "") or re.fullmatch(r"=|[-+*/]|\\(?:cdot|times)", gap)):
                break
            place += 1
    chain, kind = _chain(text, kept, place, _joint)
    if len(chain) > 1:
        return _joined(kind, [_with_unit(text, value) for value in chain])
    words = plain(_with_bound(text, chain[0]))
    if read(words).kind == ONE:
        with_unit = plain(_with_unit(text, chain[0]))
        words = with_unit if read_quantity(with_unit) else plain(chain[0].text)
    return Claim(read(words), words)


def _with_bound(text: str, value: Box) -> str:
    """A value with the words around it that make a bound of it."""
    bound = re.search(
        r"(?:a (?:minimum|maximum) of|(?:(?<=number )|(?<=numbers ))(?:above|below)|"
        r"(?:(?<= is )|(?<='s )|(?<= are )|(?<= be ))(?:over|above|under|below)|"
        r"(?:more|greater|larger|higher|less|fewer|smaller|lower) than"
        r"(?: or equal to)?|at least|at most|up to|no (?:more|less|fewer) than)"
        r"[\s*$]*$",
        text[: value.start],
        re.IGNORECASE,
    )
    after = re.match(
        r" at (?:most|least)\b| (?:up|down)wards?\b"
        r"|,? or (?:more|greater|above|higher|less|fewer|below|lower)\b",
        text[value.end :],
        re.IGNORECASE,
    )
    core = plain(value.text)
    return f"{bound[0] if bound else ''}{core}{after[0] if after else ''}"


def _with_unit(text: str, value: Box) -> str:
    unit = re.match(r"\s+(?!or\b|and\b|to\b|in\b)[A-Za-z]{2,}", text[value.end :])
    return value.text + (unit[0] if unit else "")


def _chain(
    text: str,
    values: list[Box],
    place: int,
    joined: Callable[[str, str], str | None],
) -> tuple[list[Box], str]:
    """A value with those before it that are joined to it, and how they are joined."""
    chain, kinds = [values[place]], list[str]()
    for value in reversed(values[:place]):
        gap = text[value.end : chain[0].start].strip(" *$")
        before = text[max(value.start - 20, 0) : value.start]
        kind = joined(gap, before)
        if kind is None or (kind == RANGE and kinds):
            break
        chain.insert(0, value)
        kinds.append(kind)
    if RANGE in kinds:
        return chain, RANGE
    return chain, EITHER if EITHER in kinds else LIST


def _joint(gap: str, before: str) -> str | None:
    if re.fullmatch("and", gap, re.I) and re.search(r"between[\s*$]*$", before, re.I):
        return RANGE
    if len(gap) > _MOST_OF_JOINT:
        return None
    for kind, pattern in _JOINTS:
        if pattern.fullmatch(gap):
            return kind
    return None


def _joined(
    kind: str, texts: list[str], labels: list[str | None] | None = None
) -> Claim:
    parts: list[str] = []
    for text in texts:
        said = read(text)
        parts += said.parts if said.kind in (ONE, LIST) else [plain(text)]
    names = tuple(dict.fromkeys(name for name in labels or [] if name))
    names = names if len(names) == len(parts) else ()
    words = {RANGE: " to ", EITHER: " or "}.get(kind, ",")
    extracted = words.join(plain(text) for text in texts)
    return Claim(Statement(kind, tuple(parts), "", names), extracted)


def is_denied(text: str, value: Box) -> bool:
    """Whether a reply says of a value in it that it is not the answer."""
    # What an earlier sentence denies does not matter.
    before = _SENTENCE_END.split(text[max(value.start - 200, 0) : value.start])[-1]
    return bool(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(text[value.end :]))


def _denied(values: list[Box]) -> Statement:
    return Statement(NOT, tuple(plain(value.text) for value in values))


# Words that formulas are joined and hedged by.
_PHRASE_WORDS = frozenset(
    "or and to from between either not is it isn't about approximately maybe at least "
    "most more less fewer greater than up over under above below no both one of".split()
)


def _is_phrase(text: str) -> bool:
    """Whether a text is a formula, or some that are joined by a few words."""
    if "\n" in text.strip() or len(text) > _MOST_OF_JOINT * 2:
        return False
    bare = re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?", "", spelled(text))
    words = re.findall(r"[A-Za-z][A-Za-z']+", bare)
    has_value = re.search(r"\w", bare) or "\\" in text
    is_sentence = re.search(r"[.!?]\s+\S", bare)
    return bool(
        has_value
        and not is_sentence
        and all(word.lower() in _PHRASE_WORDS for word in words)
    )


def _of_words(sentences: list[str]) -> Claim | None:
    """An answer that is a few words, such as "The answer is Paris."."""
    if not sentences:
        return None
    anchored = [s for s in sentences if _ANCHOR.search(s)]
    text = (anchored or sentences)[-1]
    if anchored:
        text = text[list(_ANCHOR.finditer(text))[-1].end() :]
    elif match := _LEAD.match(text) or _SAID.match(text):
        text = text[match.end() :]
    text = _PLACE.sub("", plain(text)).rstrip("!?")
    if match := re.match(r"(yes|no|true|false)\s*[,;]", text, re.I):
        text = match[1]
    return Claim(read(text), text) if text else None
