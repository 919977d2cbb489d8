"""Fields of settings: default, help text and limits in one place.

A settings class is a frozen dataclass whose fields are made by `setting`. Public
functions take the fields as flat keyword arguments, from which `take` makes the value;
the command line makes its options from the same fields. Knows dataclasses; nothing of
what a setting means.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, is_dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeVar, get_args

T = TypeVar("T")
_METADATA = "option"


@dataclass(frozen=True)
class Option:
    """What a field is to a user.

    Attributes:
        help: What it does, as the command line tells it; empty if it has no option
            there.
        keyword: Its name as a keyword argument of public functions.
        flags: Its spellings on the command line, the first one of which is shown.
        off: A switch on the command line that sets the field to None, if it has one.
        off_help: What that switch does.
        least, most: Limits of a number, both allowed.
        choices: The only values allowed, if they are few.
        shown: What help shows as the default where that is not the field's own
            value, such as "a tenth of all".
    """

    help: str = ""
    keyword: str = ""
    flags: tuple[str, ...] = ()
    off: str = ""
    off_help: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    shown: str = ""


def setting(default: Any = MISSING, help: str = "", **option: Any) -> Any:
    """A dataclass field with an `Option`, given by the names of its attributes."""
    metadata = {_METADATA: Option(help, **option)}
    return field(default=default, metadata=metadata)


def options_of(settings: Any) -> Iterator[tuple[dataclasses.Field, Option]]:
    """The fields of a settings class or value that are options, in order.

    Names that follow from the field's own are filled in. Fields that hold other
    settings are no options themselves.
    """
    for f in dataclasses.fields(settings):
        if isinstance(option := f.metadata.get(_METADATA), Option):
            keyword = option.keyword or f.name
            flags = option.flags or (f"--{keyword.replace('_', '-')}",)
            yield f, replace(option, keyword=keyword, flags=flags)


def take(cls: type[T], keywords: dict[str, Any], base: T | None = None) -> T:
    """Makes a settings value of the keyword arguments that belong to it.

    Args:
        cls (type): The settings class. Where a field of it holds other settings, their
            keywords are taken too.
        keywords (dict): Keyword arguments; those that were taken are removed.
        base (optional): Value of the fields that are not among them, in place of the
            fields' defaults.

    Raises:
        ValueError: Naming the value that is not allowed.
    """
    names = {f.name: option.keyword for f, option in options_of(cls)}
    given = {f: keywords.pop(name) for f, name in names.items() if name in keywords}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        if is_dataclass(f.default) and not isinstance(f.default, type):
            now = f.default if base is None else getattr(base, f.name)
            given[f.name] = take(type(f.default), keywords, now)
    return cls(**given) if base is None else replace(base, **given)  # type: ignore[type-var]


def take_all(cls: type[T], keywords: dict[str, Any]) -> T:
    """`take`, where no other keyword arguments are known.

    Raises:
        TypeError: Naming a keyword argument that is left.
    """
    keywords = dict(keywords)
    taken = take(cls, keywords)
    if keywords:
        raise TypeError(f"There is no option {next(iter(keywords))!r}.")
    return taken


def keywords_of(settings: Any) -> dict[str, Any]:
    """The keyword arguments that `take` makes an equal value from."""
    keywords = {o.keyword: getattr(settings, f.name) for f, o in options_of(settings)}
    for f in dataclasses.fields(settings):
        if is_dataclass(value := getattr(settings, f.name)) and f.name not in keywords:
            keywords |= keywords_of(value)
    return keywords


def check_numbers(settings: Any) -> None:
    """Checks every number of a value against its limits, and every choice.

    NumPy's numbers become Python's. None passes where it is the default.

    Raises:
        ValueError: Naming the field, what is allowed and what it is.
    """
    for f, option in options_of(settings):
        value = getattr(settings, f.name)
        if value is None and f.default is None:
            continue
        if option.choices and value not in option.choices:
            raise ValueError(
                f"{option.keyword} must be one of {', '.join(option.choices)}, not "
                f"{value!r}."
            )
        if option.least is None and option.most is None:
            continue
        is_whole = int in (f.type, *get_args(f.type))
        object.__setattr__(settings, f.name, _number(value, is_whole, option))


def _number(value: Any, is_whole: bool, option: Option) -> int | float:
    name = option.keyword
    if isinstance(value, bool) or not isinstance(value, Integral if is_whole else Real):
        kind = "an integer" if is_whole else "a number"
        raise ValueError(f"{name} must be {kind}, not {value!r}.")
    least = -math.inf if option.least is None else option.least
    most = math.inf if option.most is None else option.most
    # NaN is within no limits.
    if not least <= value <= most or math.isinf(value):
        raise ValueError(f"{name} must be {_allowed(option)}, not {value!r}.")
    return int(value) if is_whole else float(value)


def _allowed(option: Option) -> str:
    least, most = (
        "2^64 - 1" if limit == 2**64 - 1 else f"{limit:,}"
        for limit in (option.least or 0, option.most or 0)
    )
    if option.most is None:
        return f"{least} or more"
    return f"{least} to {most}"
