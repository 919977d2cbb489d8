"""The command line: a module for each command, with its options and what it shows.

Knows which commands there are; nothing of what they do.
"""

import click

from .. import __version__
from . import (
    chat,
    config,
    convert,
    estimate,
    evaluate,
    generate,
    info,
    learn,
    plan,
    predictors,
    report,
    serve,
    traces,
    train,
)
from .command import Group


@click.group(
    cls=Group,
    epilog="Tab completes models, options and more, once your shell is told so; in zsh "
    "by a line in ~/.zshrc: autoload -Uz compinit && compinit; "
    'eval "$(_MLX_BUDGET_COMPLETE=zsh_source mlx-budget)". '
    "`mlx-budget config` tells how to give options defaults of your own.",
)
@click.version_option(__version__, prog_name="mlx-budget")
def cli() -> None:
    """Thinking budgets for reasoning models, with MLX."""


for command in (
    convert.convert,
    generate.generate,
    estimate.estimate,
    chat.chat,
    predictors.predictors,
    plan.plan,
    learn.learn,
    traces.traces,
    train.train,
    evaluate.evaluate,
    report.report,
    serve.serve,
    config.config,
    info.info,
):
    cli.add_command(command)
cli.take_variables()
