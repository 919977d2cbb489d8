"""Options of the command line: their types, their groups and how help shows them.

Knows click; nothing of settings or of what commands do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

# A command's function, or a decorator of one.
Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Decorated], Decorated]

COUNT = click.IntRange(min=1)
# Of options in help, in the order in which it lists them.
GROUPS = (
    "Model",
    "Questions",
    "Data",
    "Thinking",
    "Plan",
    "Sampling",
    "Prompt",
    "Positions",
    "Predictor",
    "Training",
    "Quantisation",
    "Replies",
    "Access",
    "Limits",
    "Memory and speed",
    "Output",
    "Other",
)
OTHER = GROUPS[-1]


class Read(click.ParamType):
    """What a function makes of an option's text; a ValueError of its is the user's."""

    def __init__(self, name: str, read: Callable[[str], Any]):
        self.name = name
        self._read = read

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """The value of a text; defaults may be values already."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as e:
            raise click.BadParameter(str(e), context, parameter) from e


def _bytes(text: str) -> int:
    from mlx_lm.utils import _parse_size

    try:
        return _parse_size(text)
    except (ValueError, ArithmeticError):
        raise ValueError(f"A size must be such as 4GB, not {text!r}.") from None


SIZE = Read("text", _bytes)


class _Path(click.Path):
    """A path; an empty one would be the folder that the user is in."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """The path of a text; defaults are paths already."""
        if value == "":
            self.fail("It is empty; is a variable not set?", parameter, context)
        return super().convert(value, parameter, context)


PATH = _Path()


class CommandOption(click.Option):
    """An option of a group, whose help may tell its default in words.

    Args:
        shown (str, optional): The words; empty to show no default. None leaves it to
            ``show_default``.
        group (str): One of `GROUPS`.
        is_secret (bool): Whether nobody else is to see its value.
    """

    def __init__(
        self,
        *args: Any,
        shown: str | None = None,
        group: str = OTHER,
        is_secret: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.shown = shown
        self.group = group
        self.is_secret = is_secret

    def make_metavar(self, ctx: click.Context) -> str:
        """What stands for the value; the limits of a number are told in brackets."""
        return super().make_metavar(ctx).removesuffix(" RANGE")

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What help puts in brackets."""
        extra = super().get_help_extra(ctx)
        return {**extra, "default": self.shown} if self.shown else extra


def command_option(*flags: str, group: str = OTHER, **attributes: Any) -> Decorator:
    """`click.option` of a group in help.

    Args:
        flags: Its spellings, and the name of the command's parameter.
        group (str): One of `GROUPS`.
        attributes: Of `CommandOption`.
    """
    return click.option(*flags, cls=CommandOption, group=group, **attributes)


def together(*options: Decorator) -> Decorator:
    """One decorator of many options, in the order in which help shall list them."""

    def decorate(command: Decorated) -> Decorated:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate
