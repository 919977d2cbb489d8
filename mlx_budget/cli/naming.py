"""How errors name an option: as the user wrote it, wherever that was.

Knows click's options and where their values came from; nothing of what they mean.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import click
from click.core import ParameterSource

# Where the context of a command keeps the spellings that were typed, by the name of
# the parameter.
TYPED = "mlx_budget.typed"

# A hint for callers from Python keeps the names that Python has.
_FOR_PYTHON = re.compile(r"(\([^()]*\bin Python\b[^()]*\))")


@dataclass(frozen=True)
class Origin:
    """Where an option's value came from.

    Attributes:
        kind: "command line", "variable", "file" or "default".
        name: What it is called there: a spelling, a variable, or a key and its file.
        rank: The higher of two decides.
    """

    kind: str
    name: str
    rank: int


def origin_of(context: click.Context, parameter: click.Parameter) -> Origin:
    """Where the value of a parameter came from."""
    source = context.get_parameter_source(parameter.name or "")
    usual = usual_spelling(parameter)
    if source is ParameterSource.COMMANDLINE:
        typed = context.meta.get(TYPED, {}).get(parameter.name, usual)
        return Origin("command line", typed, 5)
    if source is ParameterSource.ENVIRONMENT:
        variable, is_of_command = set_variable(context, parameter)
        return Origin("variable", variable, 3 + is_of_command)
    if source is ParameterSource.DEFAULT_MAP:
        places = getattr(context.default_map, "places", {})
        place, is_of_command = places.get(parameter.name, (usual, False))
        return Origin("file", place, 1 + is_of_command)
    return Origin("default", usual, 0)


def set_variable(
    context: click.Context, parameter: click.Parameter
) -> tuple[str, bool]:
    """The variable that gives a parameter its value, and whether for one command."""
    names = parameter.envvar or ()
    names = (names,) if isinstance(names, str) else names
    name = next((name for name in names if os.environ.get(name)), "")
    command = (context.command.name or "").upper()
    return name, name.startswith(f"MLX_BUDGET_{command}_")


def usual_spelling(parameter: click.Parameter) -> str:
    """The spelling of an option that help shows first, the long one."""
    long = [name for name in parameter.opts if name.startswith("--")]
    return (long or parameter.opts)[0]


def typed_spellings(
    parameters: Iterable[click.Parameter], args: Sequence[str]
) -> dict[str, str]:
    """The spelling of each option that was typed last, by the parameter's name."""
    known = {
        spelling: parameter
        for parameter in parameters
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }
    typed: dict[str, str] = {}
    words = iter(args)
    for word in words:
        if word == "--":
            break
        for spelling, rest in _options_in(word):
            if (found := known.get(spelling)) is None:
                break
            typed[found.name or ""] = spelling
            if not found.is_flag and not found.count:
                if rest is None:
                    next(words, None)  # its value
                break
    return typed


def _options_in(word: str) -> Iterator[tuple[str, str | None]]:
    """The options of a word, each with what is behind it in the word."""
    if word.startswith("--"):
        spelling, is_with_value, value = word.partition("=")
        yield spelling, value if is_with_value else None
    elif word.startswith("-"):
        for place in range(1, len(word)):
            yield f"-{word[place]}", word[place + 1 :] or None


def named_as_written(message: str, context: click.Context) -> str:
    """A message in which options are called as the user called them.

    Settings name their fields as Python does (``thinking_budget``), and help by the
    first spelling.

    Args:
        message (str): Of an error.
        context (click.Context): Of the command that was run.
    """
    parts = _FOR_PYTHON.split(message)
    for parameter in context.command.params:
        if not isinstance(parameter, click.Option) or not parameter.name:
            continue
        origin = origin_of(context, parameter)
        for place in range(0, len(parts), 2):
            parts[place] = _rename(parts[place], parameter, origin, place == 0)
    return "".join(parts)


def _rename(text: str, option: click.Option, origin: Origin, is_start: bool) -> str:
    keyword, name = option.name or "", origin.name
    if "_" in keyword:
        text = _word(keyword).sub(lambda _: name, text)
    elif is_start and re.match(rf"{keyword} (must|is|has|was)\b", text):
        text = name + text[len(keyword) :]
    for spelling in option.opts:
        if spelling == name or not spelling.startswith("--"):
            continue
        # A spelling within a text is a way out, to be typed.
        most = 0 if origin.kind == "command line" else 1
        if most == 0 or (is_start and text.startswith(f"{spelling} ")):
            text = _word(spelling).sub(lambda _: name, text, count=most)
    return text


def _word(text: str) -> re.Pattern[str]:
    """A word that is no part of a path, a name or a quotation."""
    return re.compile(rf"(?<![\w./'\"=-]){re.escape(text)}(?![\w/'\"=-]|\.\w)")
