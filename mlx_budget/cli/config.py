"""The command `config`: the defaults of options, and where each comes from.

Knows how they are shown; nothing of how they are found.
"""

import json
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from .command import Command, Group
from .defaults import (
    config_file,
    in_home,
    key_of,
    options_of,
    read_defaults,
    unknown_variables,
)
from .naming import named_as_written, origin_of
from .parameters import CommandOption, command_option

PATH_WORD = "path"


class _Config(Command):
    """Shows what is wrong with the configuration instead of ending by it."""

    tells_problems = True


class _What(click.ParamType):
    """The name of a command, or the word for the file's path."""

    name = "command"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """The same, if there is such a command."""
        if value not in (known := [*_commands(context), PATH_WORD]):
            self.fail(
                f"There is no command {value!r}: choose from {', '.join(known)}.",
                parameter,
                context,
            )
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The words that a beginning may become."""
        words = (*_commands(ctx), PATH_WORD)
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


@dataclass(frozen=True)
class _Setting:
    """The default of one option.

    Attributes:
        value: As JSON has it; None without a default.
        kind: Of its origin, see `Origin`.
        name: Of its origin.
        problem: What is wrong with the value, if anything.
    """

    value: Any
    kind: str
    name: str
    problem: str = ""


@click.command(cls=_Config)
@click.argument("what", metavar="[COMMAND|path]", type=_What(), required=False)
@command_option(
    "--json", "as_json", is_flag=True, group="Output", help="Print one JSON object."
)
@click.pass_context
def config(context: click.Context, what: str | None, as_json: bool) -> None:
    """Show the defaults of options and where each comes from.

    Without COMMAND, those that are not the program's own; with it, all of that command.
    Defaults are keys of a TOML file, whose place `mlx-budget config path` tells: an
    option's long name (thinking-budget = "low"), for all commands or in the section of
    one ([chat]). Variables of the environment (MLX_BUDGET_THINKING_BUDGET, or
    MLX_BUDGET_CHAT_THINKING_BUDGET for one command) count more than the file, and what
    is given on the command line counts most.
    """
    file = config_file()
    if what == PATH_WORD:
        click.echo(file)
        return
    commands = _commands(context)
    problem = ""
    try:
        found = read_defaults(commands)
    except ValueError as e:
        found, problem = {}, str(e)
    chosen = commands if what is None else {what: commands[what]}
    settings = {
        name: {
            key: setting
            for key, setting in _settings(command, name, found.get(name)).items()
            if what is not None or setting.kind != "default"
        }
        for name, command in chosen.items()
    }
    unknown = unknown_variables(commands)
    problems = [
        *([problem] if problem else []),
        *dict.fromkeys(
            s.problem for each in settings.values() for s in each.values() if s.problem
        ),
        *unknown,
    ]
    if as_json:
        result = {
            "file": str(file),
            "file_exists": file.exists(),
            "problems": problems,
            "commands": {
                name: {
                    key: {"value": s.value, "from": s.kind, "name": s.name}
                    for key, s in each.items()
                }
                for name, each in settings.items()
                if each
            },
        }
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        state = "" if file.exists() else " (not there)"
        click.echo(f"File: {in_home(file)}{state}\n")
        click.echo(_table(settings, what))
        for line in problems:
            click.echo(f"Problem: {line}", err=True)
    if problems:
        context.exit(2)


def _commands(context: click.Context) -> dict[str, click.Command]:
    group = getattr(context.command, "group", None)
    return dict(group.commands) if isinstance(group, Group) else {}


def _settings(
    command: click.Command, name: str, defaults: dict[str, Any] | None
) -> dict[str, _Setting]:
    """The default of each option of a command, by the option's key."""
    context = click.Context(command, info_name=name, default_map=defaults)
    found = {}
    for option in options_of(command):
        value, source = option.consume_value(context, {})
        context.set_parameter_source(option.name or "", source)
        origin = origin_of(context, option)
        problem = ""
        try:
            if origin.kind != "default":
                option.type_cast_value(context, value)
        except (click.BadParameter, ValueError) as e:
            text = e.message if isinstance(e, click.BadParameter) else str(e)
            text = named_as_written(text, context)
            problem = text if origin.name in text else f"{origin.name}: {text}"
        shown = _shown(option, value)
        if origin.kind == "default" and isinstance(option, CommandOption):
            shown = option.shown or shown
        found[key_of(option)] = _Setting(shown, origin.kind, origin.name, problem)
    return found


def _shown(option: click.Option, value: Any) -> Any:
    """A value as JSON has it, without what nobody is to see."""
    if not isinstance(value, bool | int | float | str | list | tuple | None):
        return None  # click's word for none
    if isinstance(option, CommandOption) and option.is_secret and value:
        return "***"
    if isinstance(value, list | tuple):
        return [v if isinstance(v, bool | int | float) else str(v) for v in value]
    return value


def _table(settings: dict[str, dict[str, _Setting]], what: str | None) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for command, each in settings.items():
        for key, setting in each.items():
            value = "" if setting.value in (None, []) else str(setting.value)
            value = value.lower() if isinstance(setting.value, bool) else value
            place = "default" if setting.kind == "default" else setting.name
            rows.setdefault((key, value, place), []).append(command)
    if not rows:
        return (
            "All options have the program's own defaults. `mlx-budget config COMMAND` "
            "lists them."
        )
    table = [("option", "value", "from"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    of = ["commands", *(", ".join(names) for names in rows.values())]
    lines = []
    for row, names in zip(table, of, strict=True):
        line = f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}"
        lines.append(line if what is not None else f"{line}  ({names})")
    return "\n".join(line.rstrip() for line in lines)
