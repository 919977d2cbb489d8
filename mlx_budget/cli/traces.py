"""The command `traces`: a model's own replies to many prompts.

Knows how prompts are read and progress is shown; nothing of how replies are made.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..engine.fields import keywords_of
from ..engine.settings import ModelSource
from ..interrupts import raise_again
from ..train.options import TraceOptions
from .command import Command
from .options import DATA_HELP, options_from
from .parameters import PATH, command_option
from .progress import bars_until_stopped

if TYPE_CHECKING:
    from ..models.fetching import Ahead
    from ..train.traces import TraceStats


@click.command(cls=Command)
@options_from(source=ModelSource, without=["predictor"], required=["model"])
@command_option("--data", type=PATH, required=True, group="Data", help=DATA_HELP)
@command_option(
    "--output",
    type=PATH,
    required=True,
    group="Output",
    help="File of chat records to write (*.jsonl); one that is there is gone on with.",
)
@options_from(options=TraceOptions)
def traces(
    source: ModelSource, data: Path, output: Path, options: TraceOptions
) -> None:
    """Write a model's own replies to many prompts, to train a predictor on.

    Keep the temperature at 1: predictions hold for the distribution that they were
    trained on, so sample the distribution that is going to be steered.

    A run that was stopped goes on where it ended when the command is given again. With
    --seed, or greedy, its replies are then those of a run that was never stopped: the
    draws of each depend on the seed, its prompt's place and its sample's number alone.
    """
    from ..engine.context import context_length
    from ..engine.prompt_files import read_prompts
    from ..files import hub
    from ..models.fetching import find_before
    from ..models.loading import load_source
    from ..train.traces import check_output, check_prompts, write_traces

    # What can be checked before a download is checked before it.
    check_output(output)
    find_before(data, source)
    prompts = read_prompts(data)

    def check(ahead: "Ahead") -> None:
        most = context_length(ahead.model, ahead.tokenizer)
        check_prompts(ahead.tokenizer, prompts, output, options, most)

    model, tokenizer, _ = load_source(
        replace(source, predictor=False),
        check=check,
        lazy=True,  # the weights are read when all else has been checked
    )
    name = hub.model_name(source.model, source.adapter_path, source.revision)
    last: TraceStats | None = None

    def show(stats: "TraceStats") -> None:
        nonlocal last
        last = stats
        # click's own estimate would count the records of earlier runs as fast.
        bars.show("Traces", stats.records, stats.total, _rate(stats), shows_eta=False)

    raise_again()
    with bars_until_stopped(lambda: _how_to_go_on(last, output)) as bars:
        stats = write_traces(
            model,
            tokenizer,
            prompts,
            output,
            progress=show,
            **{**keywords_of(options), "model_name": name},
        )
    if not stats.written:
        click.echo(f"Nothing left to do: {output} is finished.", err=True)
    click.echo(_summary(stats), err=True)
    if stats.closed < stats.records / 2:
        click.echo(
            "Warning: fewer than half closed their thinking, and only those can be "
            f"learnt from. Raise --max-tokens (it is {options.max_tokens}), or check "
            "--thinking-start-token and --thinking-end-token.",
            err=True,
        )


def _how_to_go_on(stats: "TraceStats | None", output: Path) -> str:
    if stats is None or not stats.records:
        return f"Stopped before there was a record in {output}: run the same again."
    return (
        f"Stopped with {stats.records} of {stats.total} records in {output}: run the "
        "same again, and it goes on from there."
    )


def _rate(stats: "TraceStats") -> str | None:
    if not stats.written:
        return None
    left = stats.seconds / stats.written * (stats.total - stats.records)
    return (
        f"{stats.tokens_per_second:.1f} tokens-per-sec, "
        f"{timedelta(seconds=round(left))} left"
    )


def _summary(stats: "TraceStats") -> str:
    records = "record" if stats.records == 1 else "records"
    line = (
        f"Traces: {stats.records} {records}, {stats.closed} closed by the model, "
        f"{stats.mean_thinking_tokens:.1f} thinking tokens on average"
    )
    if stats.written:
        line += f", {stats.tokens_per_second:.3f} tokens-per-sec"
    return line
