"""Commands: how their help is laid out, where defaults come from, and how they end.

Knows click; nothing of what a command does.
"""

import io
import os
import sys
from typing import Any

import click

from ..ranks import current
from ..ranks.joining import become_rank, is_launched
from ..ranks.team import EXIT_CODE
from . import naming
from .defaults import options_of, read_defaults, unknown_variables, variables_of
from .naming import named_as_written, origin_of, typed_spellings
from .parameters import GROUPS, OTHER


class Ends(click.Command):
    """Ends in one line and exit code 2 on bad input; -h is --help."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """The names of the option that shows help."""
        return ["-h", "--help"]

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """As click's, with other ends.

        Of several processes of `mlx.launch` one runs the command, rank 0.
        """
        _prepare_output()
        try:
            if is_launched():
                become_rank()
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.ctx.get_help(), err=True)
            code = 2
        except click.ClickException as e:
            code = _fail(e.format_message())
        except (click.Abort, KeyboardInterrupt):
            code = 130
        except BrokenPipeError:
            # The reader of our output has gone; nobody is left to be told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except (ValueError, OSError) as e:
            if os.environ.get("MLX_BUDGET_DEBUG"):
                raise
            code = _fail(_describe(e))
        if (team := current()) is not None:
            team.leave()
            code = EXIT_CODE if team.has_told else code
        if standalone_mode:
            _leave(code if isinstance(code, int) else 0)
        return code


def _prepare_output() -> None:
    """Gives closed streams a place to go, and a sign to what they cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class Command(Ends):
    """A command whose options help shows in groups.

    Its options have defaults from the user's file and variables, and its errors call
    them as the user did.

    Attributes:
        group: Of all commands, once it has been added.
        tells_problems: Whether the command itself says what is wrong with the
            configuration, which ends others.
    """

    group: "Group | None" = None
    tells_problems = False

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """As click's, with the user's defaults."""
        problem = None
        if self.group is not None and not extra.get("resilient_parsing"):
            try:
                found = read_defaults(self.group.commands)
                extra["default_map"] = found[self.name or ""]
            except ValueError as e:
                problem = e
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.BadParameter as e:
            raise _as_written(e) from e
        is_run = not extra.get("resilient_parsing") and not self.tells_problems
        if self.group is not None and is_run:
            if problem is not None:
                raise problem
            for line in unknown_variables(self.group.commands):
                click.echo(f"Warning: {line}", err=True)
        return context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; notes how options were spelt."""
        ctx.meta[naming.TYPED] = typed_spellings(self.get_params(ctx), args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; errors call options as the user did."""
        try:
            return super().invoke(ctx)
        except ValueError as e:
            if e.args and e.args[0] == str(e):
                e.args = (named_as_written(str(e), ctx), *e.args[1:])
            raise

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Writes the options in their groups."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                groups[getattr(parameter, "group", OTHER)].append(record)
        for name, records in groups.items():
            title = "Options" if name == OTHER else f"{name} options"
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(Ends, click.Group):
    """Commands, each with its whole summary in help."""

    command_class = Command

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """As click's, for commands that are to have the user's defaults."""
        super().add_command(cmd, name)
        if isinstance(cmd, Command):
            cmd.group = self

    def take_variables(self) -> None:
        """Gives every option its variables, when all commands are there."""
        for name, command in self.commands.items():
            for option in options_of(command):
                own = option.envvar or ()
                own = (own,) if isinstance(own, str) else tuple(own)
                found = variables_of(self.commands, name, option)
                option.envvar = list(dict.fromkeys((*own, *found)))

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Writes the commands with summaries that are not cut."""
        rows = [
            (name, command.get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _as_written(error: click.BadParameter) -> click.UsageError:
    """The error, in which the option is called as the user did."""
    context, option = error.ctx, error.param
    is_missing = isinstance(error, click.MissingParameter)
    if context is None or is_missing or not isinstance(option, click.Option):
        return error
    message = named_as_written(error.message, context)
    origin = origin_of(context, option)
    if origin.name in message:
        return click.UsageError(message, context)
    is_typed = origin.kind == "command line"
    hint = f"'{origin.name}'" if is_typed else origin.name
    return click.BadParameter(message, context, option, hint)


def _fail(message: str) -> int:
    if (team := current()) is not None and team.has_told:
        return EXIT_CODE
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return 2


def _leave(code: int) -> None:
    server = sys.modules.get("mlx_budget.server.run")
    if server is not None and server.has_computed:
        # MLX's CPU build (0.32.4) may abort a process that ends after one of its
        # threads has computed, as mlx_lm.server does.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    return str(error) or repr(error)
