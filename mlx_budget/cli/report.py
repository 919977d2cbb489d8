"""The command `report`: tables and plots of an evaluation.

Knows how results are shown; nothing of how they came about.
"""

import json
from pathlib import Path

import click

from ..interrupts import raise_again
from .command import Command
from .parameters import PATH, command_option

MARKDOWN_FILE = "summary.md"
ALL_OPTION = command_option(
    "--all",
    "shows_all",
    is_flag=True,
    group="Output",
    help="Show all strategies in the pictures, not only full, the guided one and the "
    "strongest simple cut (hard-stop, budget-forcing or truncate).",
)


@click.command(cls=Command)
@click.argument("folder", type=PATH)
@command_option(
    "--json", "as_json", is_flag=True, group="Output", help="Print the summary as JSON."
)
@command_option(
    "--html",
    "as_page",
    is_flag=True,
    group="Output",
    help="Make report.html too, one page of all: curves, tables, and every reply.",
)
@ALL_OPTION
def report(folder: Path, as_json: bool, as_page: bool, shows_all: bool) -> None:
    """Make tables and plots again from the records of an evaluation.

    The evaluation may still be at work.
    """
    show_report(folder, as_json, as_page, shows_all)


def show_report(
    folder: Path, as_json: bool, as_page: bool = False, shows_all: bool = False
) -> None:
    """Makes tables, `summary.json` and plots from the records of a folder."""
    from ..evaluate.folder import read_records, read_settings
    from ..evaluate.plots import NO_PLOTS, by_strategy, draw, main_strategies
    from ..evaluate.summary import (
        comparison_table,
        markdown,
        speed_table,
        summarize,
        table,
        write_summary,
    )
    from ..files.texts import write_text

    raise_again()
    records = read_records(folder)
    summary = summarize(records, read_settings(folder))
    write_summary(folder, summary)
    write_text(folder / MARKDOWN_FILE, markdown(summary) + "\n")
    every = list(by_strategy(summary["arms"]))
    shown = every if shows_all else main_strategies(summary["arms"])
    plots = draw(folder, records, summary, shown)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        click.echo(table(summary))
        if comparisons := comparison_table(summary):
            click.echo(f"\n{comparisons}")
        click.echo(speed_table(summary), err=True)
    if not plots:
        click.echo(NO_PLOTS, err=True)
    if plots and len(shown) < len(every):
        click.echo(
            f"The pictures show {', '.join(shown[:-1])} and {shown[-1]}; "
            f"`mlx-budget report --all {folder}` shows all {len(every)} strategies.",
            err=True,
        )
    names = ["records.jsonl", "summary.json", *(plot.name for plot in plots)]
    if as_page:
        from ..evaluate.page import write_page

        names.append(write_page(folder, records, summary, shown).name)
    click.echo(f"In {folder}: {', '.join(names)}.", err=True)
