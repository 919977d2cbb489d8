"""What the commands `evaluate` and `report` do with their options.

Knows how progress and results are shown; nothing of how options are parsed.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from .. import demo
from ..commands import model_or_demo
from ..files import hub
from ..files.texts import write_text
from ..models.loading import load
from . import grading
from .options import EvaluateOptions
from .plots import NO_PLOTS, draw
from .run import Progress, evaluate, read_records, read_settings
from .summary import (
    comparison_table,
    markdown,
    speed_table,
    summarize,
    table,
    write_summary,
)
from .tasks import load_task

MARKDOWN_FILE = "summary.md"


def run_evaluate(
    model: str | None,
    output: Path,
    *,
    task: str | None,
    data: Path | None,
    instruction: str | None,
    limit: int | None,
    as_json: bool,
    predictor: str | bool | None = None,
    adapter_path: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options,
) -> None:
    """Evaluates, shows how it goes, and reports.

    Args:
        model (str, optional): Folder or Hub name; None for the built-in model.
        output (Path): The folder of the run.
        task, data, instruction, limit: As in `load_task`.
        as_json (bool): Whether to print the summary as JSON.
        predictor, adapter_path, revision, trust_remote_code: As in `load`.
        options: The fields of `EvaluateOptions`.
    """
    # What can be checked before a download is checked before it.
    EvaluateOptions(**options)
    grading.check_available()
    if model in (None, demo.NAME) and task is None and data is None:
        task = demo.NAME
    found = load_task(task, data, limit, instruction)
    model = model_or_demo(model)
    loaded, tokenizer, predictor = load(
        model,
        predictor,
        adapter_path=adapter_path,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    with ExitStack() as stack:
        bars = _Bars(stack)
        try:
            evaluate(
                loaded,
                tokenizer,
                predictor,
                found,
                output,
                model_name=hub.model_name(model, adapter_path, revision),
                progress=bars.update,
                **options,
            )
        except KeyboardInterrupt:
            stack.close()
            click.echo(
                f"Stopped; the same command goes on from there. What there is so far: "
                f"`mlx-budget report {output}`.",
                err=True,
            )
            raise
    run_report(output, as_json)


def run_report(folder: Path, as_json: bool) -> None:
    """Makes tables, `summary.json` and plots from the records of a folder."""
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
    click.echo(f"In {folder}: {', '.join(names)}.", err=True)


class _Bars:
    """A progress bar for each arm on stderr, with its accuracy so far."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self._arm: str | None = None
        self._bar = None

    def update(self, progress: Progress) -> None:
        """Shows how far a run is."""
        if progress.arm != self._arm:
            self._arm = progress.arm
            self._stack.close()
            bar = click.progressbar(
                length=progress.total,
                label=progress.arm,
                show_pos=True,
                item_show_func=_accuracy,
                file=sys.stderr,
            )
            self._bar = self._stack.enter_context(bar)
        self._bar.update(progress.done - self._bar.pos, progress)


def _accuracy(progress: Progress | None) -> str | None:
    if progress is None or not progress.correct:
        return None
    return f"{progress.correct / progress.done:.1%} right"
