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
from typing import TYPE_CHECKING, Any, TypeVar, get_args

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_METADATA = "option"
_ITS_OWN: Any = object()


@dataclass(frozen=True)
class Option:
    """What a field is to a user.

    Attributes:
        help: What it does, as the command line tells it; empty if it has no option
            there.
        keyword: Its name as a keyword argument of public functions.
        flags: Its spellings on the command line, the first one of which is shown.
        off: A switch on the command line that sets the field to ``off_value``, if it
            has one.
        off_help: What that switch does.
        least, most: Limits of a number, both allowed.
        choices: The only values allowed, if they are few.
        words: Words that stand for values on the command line.
        shown: What help shows as the default where that is not the field's own
            value, such as "a tenth of all".
        variable: Of the environment, which gives the option where the user does not.
        group: Under which help lists it; by default that of its class, ``GROUP``.
        is_secret: Whether nobody else is to see its value.
    """

    help: str = ""
    keyword: str = ""
    flags: tuple[str, ...] = ()
    off: str = ""
    off_help: str = ""
    off_value: Any = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    words: dict[str, Any] = field(default_factory=dict)
    shown: str = ""
    variable: str | None = None
    group: str = ""
    is_secret: bool = False


def setting(default: Any = MISSING, help: str = "", **option: Any) -> Any:
    """A dataclass field with an `Option`, given by the names of its attributes."""
    metadata = {_METADATA: Option(help, **option)}
    return field(default=default, metadata=metadata)


def options_of(settings: Any) -> Iterator[tuple[dataclasses.Field, Option]]:
    """The fields of a settings class or value that are options, in order.

    Names that follow from the field's own are filled in, and the class's group. Fields
    that hold other settings are no options themselves.
    """
    for f in dataclasses.fields(settings):
        if isinstance(option := f.metadata.get(_METADATA), Option):
            keyword = option.keyword or f.name
            flags = option.flags or (f"--{keyword.replace('_', '-')}",)
            group = option.group or getattr(settings, "GROUP", "")
            yield f, replace(option, keyword=keyword, flags=flags, group=group)


def like(settings: type, name: str, default: Any = _ITS_OWN, **option: Any) -> Any:
    """A dataclass field with the option of another settings class's field.

    Args:
        settings (type): The other class.
        name (str): Of its field.
        default (optional): In place of that field's own; `MISSING` for none.
        option: Attributes of `Option` that differ.
    """
    found = {f.name: (f.default, its) for f, its in options_of(settings)}
    its_default, its_option = found[name]
    if default is _ITS_OWN:
        default = its_default
    return field(default=default, metadata={_METADATA: replace(its_option, **option)})


def all_options_of(settings: Any) -> Iterator[tuple[Any, dataclasses.Field, Option]]:
    """`options_of`, with those of the settings that its fields hold, in order.

    Yields:
        tuple: The default, the field and the option. The default is what the value
        has, or the field's own if `settings` is a class; `MISSING` if there is none.
    """
    options = {f.name: option for f, option in options_of(settings)}
    for f in dataclasses.fields(settings):
        default = f.default if isinstance(settings, type) else getattr(settings, f.name)
        if (option := options.get(f.name)) is not None:
            yield default, f, option
        elif is_dataclass(default):
            yield from all_options_of(default)


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
    for f in dataclasses.fields(cls):
        if is_dataclass(f.default) and not isinstance(f.default, type):
            now = f.default if base is None else getattr(base, f.name)
            given[f.name] = take(type(f.default), keywords, now)
    return cls(**given) if base is None else replace(base, **given)


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
    return {option.keyword: value for value, _, option in all_options_of(settings)}


def check_count(name: str, value: Any) -> int:
    """A number of something, 1 or more, as Python's.

    Raises:
        ValueError: Naming it, what is allowed and what it is.
    """
    return int(_number(value, True, Option(keyword=name, least=1)))


def check_limit(max_tokens: Any) -> int | None:
    """A limit on the tokens of a reply: 1 or more, -1 for none, None where unset.

    Raises:
        ValueError: If it is anything else.
    """
    is_number = isinstance(max_tokens, Integral) and not isinstance(max_tokens, bool)
    if max_tokens is None:
        return None
    if not is_number or max_tokens < -1 or max_tokens == 0:
        raise ValueError(
            f"max_tokens must be 1 or more, or -1 for no limit, not {max_tokens!r}."
        )
    return int(max_tokens)


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
    number: Any = value
    least = -math.inf if option.least is None else option.least
    most = math.inf if option.most is None else option.most
    # NaN is within no limits.
    if not least <= number <= most or math.isinf(number):
        raise ValueError(f"{name} must be {_allowed(option)}, not {value!r}.")
    return int(number) if is_whole else float(number)


def _allowed(option: Option) -> str:
    least, most = (
        "2^64 - 1" if limit == 2**64 - 1 else f"{limit:,}"
        for limit in (option.least or 0, option.most or 0)
    )
    if option.most is None:
        return f"{least} or more"
    return f"{least} to {most}"
