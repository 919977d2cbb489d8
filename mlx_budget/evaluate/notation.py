"""One formula in plain spelling, and the numbers that have a notation of their own.

Knows how LaTeX, units and numbers are written; nothing of questions, of what makes an
answer right, or of algebra.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−﹣－", "-"),
        **dict.fromkeys("\u00a0\u202f\u2009\u2007\t\n\r", " "),
        **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "∪": r"\cup "},
        **{"∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "×": r"\times ", "÷": "/"},
        **{"·": r"\cdot ", "⋅": r"\cdot ", "°": r"^\circ ", "º": r"^\circ "},
        **{"π": r"\pi ", "ℝ": r"\mathbb{R}", "…": r"\ldots ", "¬": r"\text{ not }"},
        **{"√": r"\sqrt ", "’": "'", "—": "–", "⟨": r"\langle ", "⟩": r"\rangle "},
        **{"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
        **{"⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "∩": r"\cap "},
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_WORDS = r"\\(?:text|math|operatorname|mbox|textrm)(?:bf|rm|it|sf|tt)?\*?"

# What is written in several ways, each with the one that is kept.
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"(?<!\w)\*\*|\*\*(?!\w)", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:neq|ne|not\s*=)(?![A-Za-z])", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset"),
        (r"\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:lor|vee)(?![A-Za-z])", r"\\text{ or }"),
        (r"\\(?:land|wedge)(?![A-Za-z])", r"\\text{ and }"),
        (r"\\sim(?![A-Za-z])", "~"),
        (r"\\l?neg(?![A-Za-z])|\\lnot(?![A-Za-z])", r"\\text{ not }"),
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree(?![A-Za-z])", r"^\\circ"),
        (r"\\(?:dots|cdots|ldots)(?![A-Za-z])|(?<=\d)\.\.\.+", r"\\ldots"),
        (r"\\sqrt (\d+|[a-z])", r"\\sqrt{\1}"),
        (r"(?<=\d)(?:,?\\[,!; :]|\{,\}|~)(?=\d{3}(?!\d))", ""),
        (r"\{:\}", ":"),
        (r"(?<!\\)\\(?:[,;:! ]|(?:quad|qquad)(?![A-Za-z]))", " "),
        (r"(?<=\S)~(?=[A-Za-z\\])", " "),
        (r"\\%", "%"),
        (r"\bwithin (-?[\d.]+) of (-?[\d.]*\d)", r"\2 \\pm \1"),
        (r"\^\s*(-\d+)", r"^{\1}"),
    )
)
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|answers)|(?:the )?empty set",
    re.I,
)
_ALL_NUMBERS = re.compile(r"(?:all|any) (?:real )?numbers?|all reals", re.I)
# Parts in words, each with the number that it is.
_PARTS = (
    (re.compile(r"(?:an?|one)[ -]half", re.I), r"\frac{1}{2}"),
    (re.compile(r"(?:an?|one)[ -](?:quarter|fourth)", re.I), r"\frac{1}{4}"),
    (re.compile(r"three[ -](?:quarters|fourths)", re.I), r"\frac{3}{4}"),
    (re.compile(r"(?:an?|one)[ -]third", re.I), r"\frac{1}{3}"),
    (re.compile(r"two[ -]thirds", re.I), r"\frac{2}{3}"),
)
_NUMBER_NAMES = {
    name: str(number)
    for names, step in (
        (
            "zero one two three four five six seven eight nine ten eleven twelve "
            "thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
            1,
        ),
        ("zero ten twenty thirty forty fifty sixty seventy eighty ninety", 10),
    )
    for number, name in zip(range(0, 200, step), names.split(), strict=False)
}

_MULTIPLIERS = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
MULTIPLIER = "|".join(_MULTIPLIERS)
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
_CODES = {"USD": "dollar", "EUR": "euro", "GBP": "pound", "JPY": "yen"}
_MONEY = rf"(?:\\?[{''.join(_CURRENCIES)}]|(?:{'|'.join(_CODES)})\b)"

_DECIMAL = r"(?:\d{1,3}(?:[, ]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_POWER = r"(?:\^\s*(?:\{\s*[-+]?\d{1,4}\s*\}|[-+]?\d{1,4}))"
_FRACTION = rf"\\frac\s*\{{\s*-?{_DECIMAL}\s*\}}\s*\{{\s*{_DECIMAL}\s*\}}"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?P<money>{_MONEY}?)\s*(?P<sign2>-?)\s*(?:
    (?P<whole>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot)\s*\{{?\s*(?P<bar>\d+)\s*\}}?
        |\((?P<round>\d+)\)|(?P<dots>\\ldots))
    |(?P<mixed>\d+)(?:\s*\\frac\{{(?P<over>\d+)\}}\{{(?P<under>\d+)\}}
        |\s+(?:and\s+)?(?P<over2>\d+)/(?P<under2>\d+))
    |(?P<fraction>{_FRACTION})
    |(?P<over3>{_DECIMAL})\s*/\s*(?P<under3>{_DECIMAL})
    |(?P<decimal>{_DECIMAL})
        (?:[eE](?P<e>[-+]?\d{{1,4}})(?![A-Za-z\d])
        |\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?P<power>{_POWER}))?
    )(?P<rest>(?:\s*(?P<per>%|percent\b|per\ cent\b|pct\b))?
    (?:\s*(?P<multiplier>(?:{MULTIPLIER})\b\s*)*)
    (?P<unit>(?:(?<![a-z])|(?<=\s)|[/^\\]).*|))""",
    re.VERBOSE | re.DOTALL,
)
# Words behind a number that say something else of it than its unit.
_NO_UNIT = frozenset(
    "pi or and to not but than more less fewer greater percent percentage is are at up "
    "if mod sin cos tan log ln sqrt exp times plus minus over exactly upwards "
    "downwards".split()
)
# Of all letters these are units rather than variables, behind a space.
_LETTER_UNITS = ("m", "g", "s", "h", "L")
_LONGEST = 400  # characters of a number with its unit
_MOST_WORDS = 6  # of a unit: "red apples in the basket"
# Names of what is measured in the same unit, with how many of it each one is.
_MEASURES: dict[str, dict[str, Fraction]] = {
    "length": {
        "mm millimeter millimetre": Fraction(1, 1000),
        "cm centimeter centimetre": Fraction(1, 100),
        "m meter metre": Fraction(1),
        "km kilometer kilometre": Fraction(1000),
        "in inch inche": Fraction(254, 10000),
        "ft foot feet": Fraction(3048, 10000),
        "yd yard": Fraction(9144, 10000),
        "mi mile": Fraction(1609344, 1000),
    },
    "time": {
        "s sec second": Fraction(1),
        "min minute": Fraction(60),
        "h hr hour": Fraction(3600),
        "day": Fraction(86400),
        "week": Fraction(604800),
    },
    "money": {"cent ¢": Fraction(1, 100), "dollar": Fraction(1)},
    "euros": {"euro": Fraction(1)},
    "mass": {
        "mg milligram": Fraction(1, 1000),
        "g gram": Fraction(1),
        "kg kilogram": Fraction(1000),
    },
    "volume": {
        "ml milliliter millilitre": Fraction(1, 1000),
        "l liter litre": Fraction(1),
    },
    "temperature": {"^\\circ c celsius": Fraction(1)},
    "fahrenheit": {"^\\circ f fahrenheit": Fraction(1)},
}
_FACTORS = {
    name: (kind, Fraction(factor))
    for kind, names in _MEASURES.items()
    for spelled, factor in names.items()
    for name in re.split(r" (?!c$|f$)", spelled)
}


@dataclass(frozen=True)
class Quantity:
    """A number with what stands behind it.

    Attributes:
        value: The number, multiplied by "million" or "dozen", not by a percent sign.
        sign: "%", a degree sign "°", or nothing.
        unit: What is measured, "" if it is not said or not known here.
        factor: How many basic units the unit is.
        digits: Significant digits of a decimal, 0 of what is written exactly.
        step: One unit of its last digit.
    """

    value: Fraction
    sign: str = ""
    unit: str = ""
    factor: Fraction = Fraction(1)
    digits: int = 0
    step: Fraction = Fraction(0)


def spelled(text: str) -> str:
    """A text with one spelling for every sign that has several."""
    text = re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text
    )
    text = text.translate(_CHARACTERS)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text


def plain(formula: str) -> str:
    """A formula in one spelling, without what only dresses it.

    Words in \\text are bare; "#" stands behind one that follows a number and may be
    taken for a variable.
    """
    text = _bare_words(_undelimited(spelled(formula)))
    text = re.sub(r"\s+", " ", text).strip().rstrip(".:; ").lstrip(": ")
    if _NO_SOLUTION.fullmatch(text):
        return r"\emptyset"
    if _ALL_NUMBERS.fullmatch(text) or text == r"\mathbb{R}":
        return r"(-\infty,\infty)"
    for words, part in _PARTS:
        if words.fullmatch(text):
            return part
    text = re.sub(rf"^half an? (?={MULTIPLIER})", "0.5 ", text, flags=re.I)
    text = re.sub(rf"^an? (?=(?:{MULTIPLIER})\b)", "1 ", text, flags=re.I)
    name, _, rest = text.partition(" ")
    if name.lower() in _NUMBER_NAMES and not re.match(r"of\b|or\b|and\b", rest):
        return f"{_NUMBER_NAMES[name.lower()]} {rest}".strip()
    return {"infinity": r"\infty", "pi": r"\pi"}.get(text.lower(), text)


def _undelimited(text: str) -> str:
    text = text.strip().rstrip(". ")
    if match := re.fullmatch(r"(\${1,2})([^$]+)\1|\\[(\[](.*)\\[)\]]", text, re.DOTALL):
        return match[2] or match[3]
    # Marks of mathematics around parts of it; a single one is a currency.
    text = re.sub(r"(?<!\\)\$([^$\d][^$]*|\d[^$]*?[^$\s])\$(?!\d)", r" \1 ", text)
    return re.sub(r"\\[()\[\]]", " ", text)


def _bare_words(text: str) -> str:
    def bare(match: re.Match[str]) -> str:
        word, before = match[1], text[: match.start()].rstrip()
        is_unit = re.fullmatch(r"\s*[A-Za-z]\s*", word) and before[-1:].isdigit()
        return f" {word.strip()}# " if is_unit else f" {word} "

    for _ in range(3):  # \textbf{\text{...}}
        shorter = re.sub(rf"{_WORDS}\s*\{{([^{{}}]*)\}}", bare, text)
        if shorter == text:
            break
        text = shorter
    return text


def read_quantity(text: str) -> Quantity | None:
    """Reads a number in plain spelling, with its unit; None if it is none.

    Mixed numbers, fractions, repeating decimals, scientific notation, grouped digits,
    percent, degrees, currencies, and words such as million.
    """
    match = _NUMBER.fullmatch(text.strip()) if len(text) < _LONGEST else None
    if match is None:
        return None
    found = match.groupdict()
    value = _value(found)
    if value is None:
        return None
    unit_text = found["unit"].strip()
    if unit_text and not _is_unit(unit_text):
        return None
    for word in (found["rest"] or "").split():
        value *= _MULTIPLIERS.get(word, 1)
    if "-" in (found["sign"] or "") + (found["sign2"] or ""):
        value = -value
    sign = "%" if found["per"] else ""
    money = (found["money"] or "").lstrip("\\")
    unit_text = unit_text.replace("#", "").lower().rstrip(".").strip()
    if unit_text in ("^\\circ", "degree", "degrees") and not sign:
        return Quantity(value, "°")
    unit, factor = _unit(_CURRENCIES.get(money) or _CODES.get(money) or unit_text)
    decimal = (found["decimal"] or "").partition(".")
    digits = len((decimal[0] + decimal[2]).lstrip("0")) if decimal[2] else 0
    step = Fraction(1, 10 ** len(decimal[2]))
    return Quantity(value, sign, unit, factor, digits, step)


def _is_unit(text: str) -> bool:
    """Whether what stands behind a number is its unit; a letter may be a variable."""
    text = re.sub(r"\\frac\{(.+?)\}\{(.+)\}", r"\1/\2", text)
    if re.fullmatch(r"\^\\circ ?[CFK]?\.?", text):
        return True
    words = re.findall(r"/|[^\s/]+", re.sub(r"\s*\^\s*\{?[23]\}?", "", text))
    for before, word in zip(["", *words], words, strict=False):
        is_letter = re.fullmatch("[A-Za-z]#?", word) and word not in _LETTER_UNITS
        if is_letter and not (word.endswith("#") or before == "/" or len(words) > 2):
            return False
        if word != "/" and not re.fullmatch(r"[A-Za-z¢][A-Za-z'-]*#?\.?", word):
            return False
        if word in _NO_UNIT:
            return False
    return 0 < len(words) <= _MOST_WORDS


def _value(found: dict[str, str | None]) -> Fraction | None:
    if found["whole"] is not None:
        return _repeating(found)
    try:
        for over, under in (("over", "under"), ("over2", "under2")):
            if found[over] is not None:
                part = Fraction(int(found[over] or 0), int(found[under] or 0))
                return int(found["mixed"] or 0) + part if part < 1 else None
        if found["fraction"]:
            over, under = re.findall(rf"-?{_DECIMAL}", found["fraction"])
            return _decimal(over) / _decimal(under)
        if found["over3"]:
            return _decimal(found["over3"]) / _decimal(found["under3"] or "")
    except ZeroDivisionError:
        return None
    value = _decimal(found["decimal"] or "")
    exponent = found["e"] or re.sub(r"[\^{}\s]", "", found["power"] or "0")
    return value * Fraction(10) ** int(exponent)


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub("[, ]", "", text).rstrip(".") or "0")


def _repeating(found: dict[str, str | None]) -> Fraction | None:
    whole, fixed = found["whole"] or "0", found["fixed"] or ""
    again = found["bar"] or found["round"]
    if again is None:
        match = re.fullmatch(r"(\d*?)(\d+?)\2+", fixed)
        if not match or (match[1] and len(fixed) - len(match[1]) < 3):
            return None
        fixed, again = match[1], match[2]
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return value + Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed))


def _unit(text: str) -> tuple[str, Fraction]:
    """What a unit measures, and how many basic units it is."""
    kinds, factor = [], Fraction(1)
    text = re.sub(r"\\frac\{(.+?)\}\{(.+)\}", r"\1/\2", text)
    for place, part in enumerate(re.split(r"/| per ", text)):
        part, power = part.strip(), 1
        if match := re.fullmatch(r"(square|cubic) (.+)", part):
            part, power = match[2], 2 if match[1] == "square" else 3
        elif match := re.fullmatch(r"(.+?)\s*\^\s*\{?([23])\}?", part):
            part, power = match[1], int(match[2])
        name = part if part in _FACTORS else part.removesuffix("s")
        if name not in _FACTORS:
            return "", Fraction(1)
        kind, one = _FACTORS[name]
        kinds.append(f"{kind}{power}")
        factor = factor / one**power if place else factor * one**power
    return "/".join(kinds), factor


def in_radians(text: str) -> str:
    """A formula with its degrees written as parts of pi."""
    return re.sub(r"(\d+(?:\.\d+)?)\s*\^\\circ", r"(\\frac{\1 \\pi}{180})", text)
