"""Writes the help pages of all commands to `docs/cli.md`: run with python."""

from pathlib import Path

import click

from mlx_budget.cli import cli

FILE = Path(__file__).with_name("cli.md")
WIDTH = 88
HEAD = """\
# The command line

What `mlx-budget --help` and `mlx-budget COMMAND --help` print, made by
`python docs/make_cli.py`. [configuration.md](configuration.md) says how to give options
defaults of your own, and how a shell completes them.
"""


def page(name: str, command: click.Command, parent: click.Context | None) -> str:
    """The help page of a command, as wide as `WIDTH` whatever the terminal is."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
    )
    return f"\n## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"


def text() -> str:
    """All pages, that of the group first."""
    group = click.Context(cli, info_name="mlx-budget")
    pages = [page("mlx-budget", cli, None)]
    pages += [page(name, command, group) for name, command in cli.commands.items()]
    return HEAD + "".join(pages)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
