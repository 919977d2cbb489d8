"""What the command `traces` does with its options.

Knows how prompts are read and progress is shown; nothing of how options are parsed.
"""

import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import click

from ..engine.prompts import read_prompts
from ..files import hub
from ..models.loading import load
from .traces import TraceOptions, TraceStats, check_output, write_traces


def run_traces(
    model: str,
    data: Path,
    output: Path,
    *,
    adapter_path: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options,
) -> None:
    """Writes a model's replies to a file of prompts, and shows how it goes.

    Args:
        model (str): Folder or Hub name.
        data (Path): The file of prompts.
        output (Path): The file of records.
        adapter_path, revision, trust_remote_code: As in `load`.
        options: The fields of `TraceOptions`, the model's name aside.
    """
    # What can be checked before a download is checked before it.
    max_tokens = TraceOptions(**options).max_tokens
    check_output(output)
    prompts = read_prompts(data)
    loaded, tokenizer, _ = load(
        model,
        predictor=False,
        adapter_path=adapter_path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        lazy=True,  # the weights are read when all else has been checked
    )
    with ExitStack() as stack:
        bar = _Bar(stack)
        try:
            stats = write_traces(
                loaded,
                tokenizer,
                prompts,
                output,
                model_name=hub.model_name(model, adapter_path, revision),
                progress=bar.update,
                **options,
            )
        except KeyboardInterrupt:
            stack.close()
            if bar.last is not None:
                click.echo(
                    f"Stopped with {bar.last.records} of {bar.last.total} records in "
                    f"{output}: the same command goes on from there.",
                    err=True,
                )
            raise
    click.echo(_summary(stats), err=True)
    if stats.closed < stats.records / 2:
        click.echo(
            "Warning: fewer than half closed their thinking, and only those can be "
            f"learnt from. Raise --max-tokens (it is {max_tokens}), or check "
            "--thinking-start-token and --thinking-end-token.",
            err=True,
        )


class _Bar:
    """A progress bar on stderr, from the moment there is something to show."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self._bar = None
        self.last: TraceStats | None = None

    def update(self, stats: TraceStats) -> None:
        """Shows the next statistics."""
        if self._bar is None:
            bar = click.progressbar(
                length=stats.total,
                label="Traces",
                show_pos=True,
                show_eta=False,  # its own counts the records of earlier runs as fast
                item_show_func=_rate,
                file=sys.stderr,
            )
            self._bar = self._stack.enter_context(bar)
        self._bar.update(stats.records - self._bar.pos, stats)
        self.last = stats


def _rate(stats: TraceStats | None) -> str | None:
    if stats is None or not stats.written:
        return None
    left = stats.seconds / stats.written * (stats.total - stats.records)
    return (
        f"{stats.tokens_per_second:.1f} tokens-per-sec, "
        f"{timedelta(seconds=round(left))} left"
    )


def _summary(stats: TraceStats) -> str:
    records = "record" if stats.records == 1 else "records"
    line = (
        f"Traces: {stats.records} {records}, {stats.closed} closed by the model, "
        f"{stats.mean_thinking_tokens:.1f} thinking tokens on average"
    )
    if stats.written:
        line += f", {stats.tokens_per_second:.3f} tokens-per-sec"
    return line
