"""What the command `train` does with its options, and how it shows a run.

Knows progress bars and options; nothing of training.
"""

import sys

import click

from .loop import Progress, train
from .options import TrainOptions
from .report import format_report

_LABELS = {
    "reading": "Reading records",
    "encoding": "Hidden states",
    "training": "Training",
}


def run_train(options: dict) -> None:
    """Trains a predictor, with progress and a summary on stderr.

    Args:
        options (dict): Fields of `TrainOptions`; None for a default.
    """
    given = {name: value for name, value in options.items() if value is not None}
    checked = TrainOptions(**given)
    with _Bars() as bars:
        result = train(checked, bars.update)
    for note in result.notes:
        click.echo(note, err=True)
    click.echo(format_report(result.report), err=True)
    mass = result.report["mass_let_through"]
    if mass is not None:
        click.echo(
            f"Where guidance acts it may favour {result.report['known_tokens']:,} "
            f"tokens, which have {mass:.0%} of the model's own probability there.",
            err=True,
        )
    click.echo(f"The predictor is in {checked.output}.", err=True)


class _Bars:
    """One progress bar after another, each with what its stage tells."""

    def __init__(self):
        self._stage: str | None = None
        self._bar = None
        self._latest: Progress | None = None

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def update(self, progress: Progress) -> None:
        """Shows how far a run is."""
        self._latest = progress
        if progress.stage != self._stage:
            self.__exit__(None, None, None)
            self._stage = progress.stage
            # The bar of a stage whose length is not known moves with each record.
            self._bar = click.progressbar(
                length=progress.total or 0,
                label=_LABELS[progress.stage],
                file=sys.stderr,
                show_eta=progress.total is not None,
                show_percent=progress.total is not None,
                show_pos=True,
                item_show_func=lambda _: _details(self._latest),
            )
            self._bar.__enter__()
        self._bar.update(progress.done - self._bar.pos, progress)


def _details(progress: Progress | None) -> str | None:
    if progress is None or not progress.rate:
        return None
    if progress.stage == "encoding":
        return f"{progress.rate:,.0f} tokens/s"
    return (
        f"loss {progress.loss:.3f}, validation {progress.val_loss:.3f}, "
        f"{progress.rate:,.1f} records/s"
    )
