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
def report(folder: Path, as_json: bool, as_page: bool) -> None:
    """Make tables and plots again from the records of an evaluation.

    The evaluation may still be at work.
    """
    show_report(folder, as_json, as_page)


def show_report(folder: Path, as_json: bool, as_page: bool = False) -> None:
    """Makes tables, `summary.json` and plots from the records of a folder."""
    from ..evaluate.folder import read_records, read_settings
    from ..evaluate.plots import NO_PLOTS, draw
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
    plots = draw(folder, records, summary)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        click.echo(table(summary))
        if comparisons := comparison_table(summary):
            click.echo(f"\n{comparisons}")
        click.echo(speed_table(summary), err=True)
    if not plots:
        click.echo(NO_PLOTS, err=True)
    names = ["records.jsonl", "summary.json", *(plot.name for plot in plots)]
    if as_page:
        from ..evaluate.page import write_page

        names.append(write_page(folder, records, summary).name)
    click.echo(f"In {folder}: {', '.join(names)}.", err=True)
