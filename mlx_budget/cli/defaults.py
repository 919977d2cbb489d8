"""Defaults of a user's own: a configuration file, and variables of the environment.

Knows commands and their options; nothing of what they mean. The command line beats a
variable, a variable beats the file, and what is for one command beats what is for all.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import platformdirs

from .parameters import Read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "MLX_BUDGET_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
# Variables that are no option's: where things are kept, tracebacks, a test's model.
RESERVED = (
    CONFIG_VARIABLE,
    f"{PREFIX}CACHE",
    f"{PREFIX}DEBUG",
    f"{PREFIX}SMOLLM2",
)

Commands = Mapping[str, click.Command]


def config_file() -> Path:
    """The configuration file, which need not be there.

    It is that of ``MLX_BUDGET_CONFIG``, or ``config.toml`` where the platform keeps
    such files. On a Mac one in ``~/.config/mlx-budget`` counts as well.
    """
    if own := os.environ.get(CONFIG_VARIABLE):
        return Path(own).expanduser()
    usual = platformdirs.user_config_path("mlx-budget") / "config.toml"
    plain = Path.home() / ".config" / "mlx-budget" / "config.toml"
    if sys.platform == "darwin" and not usual.exists() and plain.exists():
        return plain
    return usual


def in_home(path: Path) -> str:
    """A path as it is told to others, without the name of the user's folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


class Defaults(dict[str, Any]):
    """What the configuration file says for one command, as click's ``default_map``.

    Attributes:
        places: For each, how errors call it, and whether it is for this command alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, tuple[str, bool]] = {}


def read_defaults(commands: Commands) -> dict[str, Defaults]:
    """What the configuration file says for each command, by the command's name.

    Args:
        commands (Mapping): All commands by their names.

    Raises:
        ValueError: In one line, if the file cannot be read, or a key or a value of it
            is wrong.
    """
    file = config_file()
    found = {name: Defaults() for name in commands}
    document = _read(file)
    sections = {
        name: value
        for name, value in document.items()
        if isinstance(value, dict) and name in commands
    }
    for key, value in document.items():
        if key in sections:
            continue
        if isinstance(value, dict) and not options_named(commands, key):
            raise ValueError(
                f"{in_home(file)} has a section [{key}], and there is no such command"
                f"{_guess(key, commands)}"
            )
        takers = options_named(commands, key)
        if not takers:
            raise ValueError(_unknown(file, key, "", _keys(commands.values())))
        for name, option in takers:
            _add(found[name], file, key, value, option, "")
    for name, section in sections.items():
        for key, value in section.items():
            takers = options_named({name: commands[name]}, key)
            if not takers:
                keys = _keys([commands[name]])
                raise ValueError(_unknown(file, key, f"[{name}] ", keys))
            _add(found[name], file, key, value, takers[0][1], f"[{name}] ")
    return found


def options_named(commands: Commands, key: str) -> list[tuple[str, click.Option]]:
    """The options that a key of the file is for, each with its command's name.

    A name that is the first of some options is not taken for another name of others:
    ``model`` is not the checkpoint that ``convert --model`` names.
    """
    spelling = f"--{key.replace('_', '-')}"
    takers = [
        (name, option)
        for name, command in commands.items()
        for option in options_of(command)
        if spelling in (*option.opts, *option.secondary_opts)
    ]
    first = [(name, o) for name, o in takers if key_of(o) == spelling[2:]]
    return first or takers


def options_of(command: click.Command) -> Iterator[click.Option]:
    """The options of a command that can have a default."""
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.expose_value:
            yield parameter


def key_of(option: click.Option) -> str:
    """What an option is called in the file: its first long spelling."""
    return next(name for name in option.opts if name.startswith("--"))[2:]


def variables_of(commands: Commands, name: str, option: click.Option) -> list[str]:
    """The variables that give an option its default, the first that is set counts.

    Args:
        commands (Mapping): All commands by their names.
        name (str): Of the option's command.
        option (click.Option): The option.
    """
    keys = [spelling[2:] for spelling in option.opts if spelling.startswith("--")]
    of_command = [variable_of(f"{name}-{key}") for key in keys]
    of_all = [
        variable_of(key)
        for key in keys
        if (name, option) in options_named(commands, key)
        and variable_of(key) not in RESERVED
    ]
    return of_command + of_all


def variable_of(key: str) -> str:
    """The variable of a key, such as ``MLX_BUDGET_MAX_TOKENS``."""
    return PREFIX + key.replace("-", "_").upper()


def unknown_variables(commands: Commands) -> list[str]:
    """A line for each variable that is set, sounds like ours and is no option's."""
    known = {*RESERVED}
    for command in commands.values():
        for option in options_of(command):
            names = option.envvar or ()
            known.update((names,) if isinstance(names, str) else names)
    return [
        f"{name} is the variable of no option{_guess(name, known, PREFIX)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known
    ]


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        if os.environ.get(CONFIG_VARIABLE):
            raise ValueError(
                f"There is no file {in_home(file)}, which {CONFIG_VARIABLE} names."
            ) from None
        return {}
    except UnicodeError:
        raise ValueError(f"{in_home(file)} is not UTF-8 text.") from None
    except OSError as e:
        raise ValueError(f"{in_home(file)} cannot be read: {e.strerror}.") from None
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{in_home(file)} is not valid TOML: {e}.") from None


def _add(
    defaults: Defaults,
    file: Path,
    key: str,
    value: Any,
    option: click.Option,
    section: str,
) -> None:
    name, place = option.name or "", f"{section}{key} in {in_home(file)}"
    former = defaults.places.get(name)
    if former is not None and former[1] == bool(section):
        raise ValueError(
            f"{place} is the same option as {former[0].partition(' in ')[0]}: give "
            "one of them."
        )
    spelling = f"--{key.replace('_', '-')}"
    checked = _checked(place, value, option)
    if spelling in option.secondary_opts:
        checked = not checked
    defaults[name] = checked
    defaults.places[name] = (place, bool(section))


def _checked(place: str, value: Any, option: click.Option) -> Any:
    """A value of the file as click takes it.

    Raises:
        ValueError: If it is of another type than the option's.
    """
    kind = option.type
    if option.multiple:
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, str) for v in values):
            return values
        raise _wrong(place, "a text or a list of texts", value)
    if getattr(option, "is_secret", False) and not isinstance(value, str):
        raise ValueError(f"{place} must be a text.")
    is_true, is_list = isinstance(value, bool), isinstance(value, list)
    is_whole = isinstance(value, int) and not is_true
    if option.is_flag or kind is click.BOOL:
        if is_true:
            return value
        raise _wrong(place, "true or false", value)
    if isinstance(kind, click.types.IntParamType):
        if is_whole:
            return value
        raise _wrong(place, "a whole number", value)
    if isinstance(kind, click.types.FloatParamType):
        if is_whole or isinstance(value, float):
            return value
        raise _wrong(place, "a number", value)
    if isinstance(kind, Read) and kind.name == "json":
        if isinstance(value, dict):
            return json.dumps(value)
    elif isinstance(kind, Read):
        if is_list and all(isinstance(v, str | int) for v in value):
            return ",".join(map(str, value))
        if is_whole:
            return str(value)
    elif isinstance(kind, click.Choice) and is_whole:
        return str(value)
    if not isinstance(value, str):
        is_read = isinstance(kind, Read) and kind.name != "json"
        expected = "a text or a whole number" if is_read else "a text"
        raise _wrong(place, expected, value)
    if isinstance(kind, click.Path) and value.startswith("~"):
        return os.path.expanduser(value)
    return value


def _wrong(place: str, expected: str, value: Any) -> ValueError:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return ValueError(f"{place} must be {expected}, not {shown}.")


def _keys(commands: Any) -> list[str]:
    return sorted({key_of(o) for command in commands for o in options_of(command)})


def _unknown(file: Path, key: str, section: str, keys: list[str]) -> str:
    return (
        f"{section}{key} in {in_home(file)} is no option"
        f" of {'that' if section else 'any'} command{_guess(key, keys)}"
    )


def _guess(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a line about a name that is not known, with one like it."""
    like = name.removeprefix(prefix)
    like = like if prefix else like.replace("_", "-")
    near = get_close_matches(like, [k.removeprefix(prefix) for k in known], 1)
    return f": did you mean {prefix}{near[0]}?" if near else "."
