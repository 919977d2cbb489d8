"""The letter of a choice that an answer settles on.

Knows how people name one of several options; nothing of questions or of mathematics.
"""

import re

from .claims import Box, OpenBox, find_boxes, is_denied
from .statements import NEGATED

_STYLED_LETTER = re.compile(r"\\(?:text|math)(?:bf|rm|it)?\{\s*(\(?[A-Za-z]\)?)\s*\}")
_BOXED_CHOICE = re.compile(r"\(?([A-Za-z])(?:[).:]*$|[).:]\s*.+)", re.DOTALL)
# A capital that settles the answer: not "A dog", "I think", "C-section" or "A or B".
_LETTER = (
    r"(?:\(([A-Za-z])\)|([A-Z])(?![\w'’-])"
    r"(?!(?<=[AI])\s+(?!(?:because|since|as|and|for|which|or|but)\b)[a-z])"
    r"|([a-z])(?=[).*\s]*$))"
)
# From the surest to the least sure; of the first kind that occurs the last one counts.
_MENTIONS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        # "not A but C"
        rf"\bnot\b[^.\n]{{0,20}}?\bbut\s+(?:is\s+|rather\s+)?{_LETTER}",
        # "The answer is (C).", "**Answer:** C", "the correct option is C"
        r"(?i:\banswer|\b(?:correct|right|best)\s+(?:choice|option))\b[^.:\n]{0,40}?"
        rf"(?:\bis\b|\bisn['’]t\b|:)[\s:*]*(?:(?i:option|choice|letter|not|either)"
        rf"\s+)*[\s*]*{_LETTER}",
        r"\b([A-Z])(?:\)|\*\*)?\s+is\s+(?:right|correct|true|the\s+answer)\b",
        # A line with nothing else, or a letter in bold or in parentheses
        r"^[\s*#>]*(?:[Oo]ption\s+|[Cc]hoice\s+)?\(?([A-Za-z])[).:]*[\s*]*$"
        r"|^[\s*#>]*\(?([A-Z])\)?,?\s+(?:but |and )?not\b"
        r"|(?<!\w)\(([A-Z])\)|\*\*\(?([A-Z])[).:]*\*\*",
        # "So it must be C." at the very end
        r"\b(?:is|be|so|choose|pick|select|with)\s+([A-Z])[.!]?\s*\Z",
    )
)
_OPTION_LINE = re.compile(r"^[\s*]*([A-Z])[).:]", re.MULTILINE)
_ANOTHER = (
    r"(?:,?\s*(?:or|and|and/or)\s+(?:maybe\s+|possibly\s+)?|\s*[/,&]\s*)"
    r"(?:\*\*)?\(?(?-i:[A-Z])(?![\w'’])"
)
_SEVERAL_AFTER = re.compile(rf"\)?(?:\*\*)?{_ANOTHER}", re.IGNORECASE)
_SEVERAL_BEFORE = re.compile(
    r"(?<!\w)\(?(?-i:[A-Z])\)?(?:\*\*)?(?:,?\s*\b(?:or|and|and/or)\s+"
    r"(?:maybe\s+|possibly\s+)?|\s*[/&,]\s*)(?:\*\*)?\(?$",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(rf"{NEGATED}[\s*(]*$", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"\)?(?:\*\*)?\s+(?:is|are)\s+(?:wrong|incorrect|false|not\b)|\)?\s+isn['’]t\b"
)


_ONLY_DENIED = "the answer only says which letter it is not"


class NoLetter(Exception):
    """Says why an answer settles on no letter."""


def letter_of(text: str) -> str:
    """The letter that an answer settles on, a capital.

    Raises:
        NoLetter: If it names none, several, or only says which it is not.
        OpenBox: If a box is never closed.
    """
    found = find_boxes(text)
    kept = [box for box in found if not is_denied(text, box)]
    if found and not kept:
        raise NoLetter(_ONLY_DENIED)
    boxes = [_plain_letters(box.text) for box in kept]
    letters = {m[1].upper() for b in boxes if (m := _BOXED_CHOICE.fullmatch(b))}
    if boxes and (match := _BOXED_CHOICE.fullmatch(boxes[-1])):
        if len(letters) > 1 and _are_joined(text, *kept[-2:]):
            raise NoLetter("the answer names several letters")
        return match[1].upper()
    text = _plain_letters(text)
    if boxes and re.fullmatch(rf"\(?[A-Z]\)?(?:{_ANOTHER}\)?)+", boxes[-1], re.I):
        raise NoLetter("the answer names several letters")
    names_denied = False
    for kind in _MENTIONS:
        for mention in reversed(list(kind.finditer(text))):
            number = next(i for i, letter in enumerate(mention.groups(), 1) if letter)
            start, end = mention.span(number)
            before, after = text[:start].rpartition("\n")[2], text[end:]
            if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
                names_denied = True
                continue
            if _SEVERAL_AFTER.match(after) or _SEVERAL_BEFORE.search(before):
                raise NoLetter("the answer names several letters")
            return mention[number].upper()
    # "C. Paris" is an answer, and a list of all the options is none.
    options = set(_OPTION_LINE.findall(text))
    if len(options) == 1:
        return options.pop()
    if names_denied:
        raise NoLetter(_ONLY_DENIED)
    raise NoLetter("no letter of a choice in the answer")


def _are_joined(text: str, before: Box, last: Box) -> bool:
    gap = text[before.end : last.start].strip(" $*")
    return bool(re.fullmatch(r"(?:,|;|/|or|and|,\s*(?:or|and))?", gap, re.I))


def _plain_letters(text: str) -> str:
    text = _STYLED_LETTER.sub(r"\1", text)
    text = re.sub(r"\\(?:text|math)(?:bf|rm|it)?\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[ ,;]", " ", text)
    text = re.sub(r"\$|\\[()\[\]]|\\(?:boxed|fbox)\s*\{", "", text)
    return re.sub(r"[ \t]+", " ", text).strip().rstrip("}")


__all__ = ["NoLetter", "OpenBox", "letter_of"]
