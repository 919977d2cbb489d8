"""The command `train`: a predictor from chat records.

Knows how a run is shown; nothing of training.
"""

from typing import TYPE_CHECKING

import click

from ..interrupts import raise_again
from ..train.options import TrainOptions
from .command import Command
from .options import options_from
from .parameters import Read
from .progress import bars_until_stopped

if TYPE_CHECKING:
    from ..train.loop import Progress

_LABELS = {
    "reading": "Reading records",
    "encoding": "Hidden states",
    "training": "Training",
}


def _positions(text: str) -> str | int:
    if text in ("newline", "all"):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ValueError(
        f"--positions must be newline, all or a number above 0, not {text!r}."
    )


@click.command(cls=Command)
@options_from(
    options=TrainOptions, types={"positions": Read("newline|all|N", _positions)}
)
def train(options: TrainOptions) -> None:
    """Train a predictor on a model's own replies.

    A run that was stopped in any way goes on with --resume, to the same weights.
    """
    from ..train.loop import train
    from ..train.output import how_to_go_on
    from ..train.report import format_report

    def show(now: "Progress") -> None:
        bars.show(_LABELS[now.stage], now.done, now.total, _details(now))

    raise_again()
    with bars_until_stopped(lambda: how_to_go_on(options)) as bars:
        result = train(options, show)
    if not result.is_new:
        click.echo(
            f"Nothing left to do: the predictor in {options.output} is finished.",
            err=True,
        )
        return
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
    click.echo(f"The predictor is in {options.output}.", err=True)


def _details(progress: "Progress") -> str | None:
    if not progress.rate:
        return None
    if progress.losses is None:
        return f"{progress.rate:,.0f} tokens/s"
    loss, val_loss = progress.losses
    return f"loss {loss:.3f}, validation {val_loss:.3f}, {progress.rate:,.1f} records/s"
