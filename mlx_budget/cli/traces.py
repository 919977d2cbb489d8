"""The command `traces`: a model's own replies to many prompts.

Knows how prompts are read and progress is shown; nothing of how replies are made.
"""

from datetime import timedelta
from pathlib import Path

import click

from ..engine.prompts import read_prompts
from ..files import hub
from ..models.loading import load
from ..train.traces import TraceOptions, TraceStats, check_output, write_traces
from .options import (
    BATCH_SIZE_OPTION,
    COUNT,
    DATA_HELP,
    LOADING_OPTIONS,
    MARKER_OPTIONS,
    MODEL_OPTION,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
    SEED_OPTION,
)
from .progress import ProgressBars


@click.command()
@MODEL_OPTION
@LOADING_OPTIONS
@click.option("--data", type=click.Path(path_type=Path), required=True, help=DATA_HELP)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="File of chat records to write (*.jsonl); one that is there is gone on with.",
)
@click.option("--limit", type=COUNT, help="Take the first so many prompts.")
@click.option(
    "--num-samples",
    type=COUNT,
    default=1,
    show_default=True,
    help="Replies to each prompt.",
)
@click.option(
    "--prompt-template",
    help="Text to send in place of each prompt that is a text; its first {} stands "
    "for the prompt.",
)
@BATCH_SIZE_OPTION
@click.option(
    "--max-tokens",
    "-m",
    type=click.IntRange(min=-1),
    help="Most tokens of a reply, thinking included; -1 for no limit [default: 8,192].",
)
@click.option(
    "--temp",
    type=float,
    default=1.0,
    show_default=True,
    help="Temperature: sample the distribution that is going to be steered.",
)
@SAMPLING_OPTIONS
@click.option(
    "--thinking-only",
    is_flag=True,
    help="End each reply when its thinking is closed: faster, but there is no answer "
    "for --augment concise.",
)
@SEED_OPTION
@MARKER_OPTIONS
@PROMPT_OPTIONS
@PREFILL_OPTION
def traces(**options):
    """Write a model's own replies to many prompts, to train a predictor on.

    A run that was stopped goes on where it ended when the command is given again.
    Greedy replies are then those of a run that was never stopped; sampled ones are
    other draws of the same distribution.
    """
    if options["max_tokens"] is None:
        del options["max_tokens"]
    run_traces(**options)


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
    seen: list[TraceStats] = []

    def show(stats: TraceStats) -> None:
        seen[:] = [stats]
        # The bar's own estimate would count the records of earlier runs as fast.
        bars.show("Traces", stats.records, stats.total, _rate(stats), shows_eta=False)

    with ProgressBars() as bars:
        try:
            stats = write_traces(
                loaded,
                tokenizer,
                prompts,
                output,
                model_name=hub.model_name(model, adapter_path, revision),
                progress=show,
                **options,
            )
        except KeyboardInterrupt:
            bars.close()
            for last in seen:
                click.echo(
                    f"Stopped with {last.records} of {last.total} records in "
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


def _rate(stats: TraceStats) -> str | None:
    if not stats.written:
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
