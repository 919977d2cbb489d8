"""The command `learn`: from a model to its predictor.

Knows how a run is shown; nothing of learning.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..engine.fields import keywords_of
from ..engine.settings import ModelSource
from ..interrupts import raise_again
from ..train.learn_options import LearnOptions
from .command import Command
from .options import options_from
from .parameters import PATH, command_option
from .progress import bars_until_stopped

if TYPE_CHECKING:
    from ..train.choice import Steered
    from ..train.loop import Progress
    from ..train.traces import TraceStats


@click.command(cls=Command)
@options_from(source=ModelSource, without=["predictor"], required=["model"])
@command_option(
    "--output",
    type=PATH,
    required=True,
    group="Output",
    help="Predictor folder to make; a run that is there is gone on with.",
)
@options_from(options=LearnOptions)
def learn(source: ModelSource, output: Path, options: LearnOptions) -> None:
    """Make the predictor that serves a model best, from nothing.

    The model thinks about prompts, and a table, a linear probe and an encoder are made
    of what it wrote. The one is kept that steers held-out prompts best, beside the
    prior and the hard cut. From the first 50 replies on OUTPUT can be used, while this
    goes on. Stop it at any time: the same command goes on from there. With more
    --num-prompts or --hours it learns more.
    """
    from ..train.learn import learn

    def show(what: str, now: "Progress | TraceStats") -> None:
        done = now.records if hasattr(now, "records") else now.done
        bars.show(what, done, now.total, shows_eta=False)

    raise_again()
    again = f"Stopped: the same command goes on from there, in {output}."
    with bars_until_stopped(lambda: again) as bars:
        learned = learn(source, output, show, **keywords_of(options))
    if not learned.is_new:
        click.echo(f"Nothing left to do: {output} is finished.", err=True)
    click.echo(
        f"Learnt from {learned.records:,} replies. "
        f"{len(learned.steered[0].costs)} held-out prompts, a budget of "
        f"{learned.budget:,} tokens:",
        err=True,
    )
    click.echo(_table(learned.steered), err=True)
    click.echo(learned.verdict, err=True)
    click.echo(f"The predictor is in {output}.", err=True)


def _table(steered: "list[Steered]") -> str:
    lines = [f"{'':>10} {'moved by':>9} {'by itself':>10} {'off by':>8} {'loss':>8}"]
    for s in steered:
        loss = "" if s.val_loss is None else f"{s.val_loss:.3f}"
        told = f"{s.cost:>9.1f} {s.closed_by_model:>10.0%} {s.deviation:>8.0%}"
        lines.append(f"{s.name:>10} {told} {loss:>8}")
    return "\n".join(lines)
