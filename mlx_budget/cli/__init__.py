"""The command line: a module for each command, with its options and what it shows.

Knows how a command ends; nothing of what the commands do.
"""

import os
import sys
from typing import Any

import click

from .. import __version__
from . import (
    chat,
    convert,
    estimate,
    evaluate,
    generate,
    learn,
    report,
    serve,
    traces,
    train,
)


class OneLineErrors(click.Group):
    """A group whose commands end in one line and exit code 2 on bad input."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """As click's, with other ends."""
        try:
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
        if standalone_mode:
            _leave(code if isinstance(code, int) else 0)
        return code


def _fail(message: str) -> int:
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


@click.group(cls=OneLineErrors)
@click.version_option(__version__, prog_name="mlx-budget")
def cli() -> None:
    """Thinking budgets for reasoning models, with MLX."""


for command in (
    convert.convert,
    generate.generate,
    estimate.estimate,
    chat.chat,
    learn.learn,
    traces.traces,
    train.train,
    evaluate.evaluate,
    report.report,
    serve.serve,
):
    cli.add_command(command)
