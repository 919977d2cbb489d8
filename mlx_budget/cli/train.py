"""The command `train`: a predictor from chat records.

Knows how a run is shown; nothing of training.
"""

from pathlib import Path

import click

from ..train.loop import Progress
from ..train.loop import train as run
from ..train.options import TrainOptions
from ..train.report import format_report
from .options import (
    COUNT,
    LOADING_OPTIONS,
    MARKER_OPTIONS,
    MODEL_OPTION,
    SYSTEM_PROMPT_OPTION,
    TEMPLATE_CONFIG_OPTION,
)
from .progress import ProgressBars

_LABELS = {
    "reading": "Reading records",
    "encoding": "Hidden states",
    "training": "Training",
}


class _Positions(click.ParamType):
    name = "newline|all|N"

    def convert(self, value, parameter, context):
        if value in ("newline", "all"):
            return value
        if value.isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is none of newline, all and a number above 0.")


@click.command()
@MODEL_OPTION
@LOADING_OPTIONS
@click.option(
    "--data",
    required=True,
    help="Chat records with thinking: a file of `mlx-budget traces` or another *.jsonl "
    "or *.parquet with messages; or a dataset on the Hub, or a file or folder in one, "
    "as owner/name/path.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Predictor folder to make.",
)
@MARKER_OPTIONS
@SYSTEM_PROMPT_OPTION
@TEMPLATE_CONFIG_OPTION
@click.option(
    "--positions",
    type=_Positions(),
    help="Where to train: newline (where guidance acts), all, or so many positions of "
    "each record drawn at random [default: newline].",
)
@click.option(
    "--augment",
    type=click.Choice(["concise"]),
    help="Add to each record one whose thinking is its answer alone.",
)
@click.option(
    "--max-length",
    type=COUNT,
    help="Tokens of a record, the prompt included; longer ones are cut, their lengths "
    "stay [default: 16384].",
)
@click.option("--limit", type=COUNT, help="Take the first so many usable records.")
@click.option(
    "--strict", is_flag=True, help="Stop at the first record that cannot be used."
)
@click.option(
    "--min-count",
    type=COUNT,
    help="How often a token must come next where guidance acts to be one that guidance "
    "may favour [default: 2].",
)
@click.option(
    "--size",
    type=click.Choice(["base", "small", "mini", "tiny"]),
    help="Size of the predictor; base is BERT-base [default: base].",
)
@click.option("--width", type=COUNT, help="Its width, in place of the size's.")
@click.option("--layers", type=COUNT, help="Its layers, likewise.")
@click.option("--heads", type=COUNT, help="Its attention heads, likewise.")
@click.option("--intermediate", type=COUNT, help="Its feed-forward width, likewise.")
@click.option("--steps", type=COUNT, help="Updates to make, in place of --epochs.")
@click.option("--epochs", type=float, help="Passes over the positions [default: 10].")
@click.option("--batch-size", type=COUNT, help="Positions of an update [default: 64].")
@click.option(
    "--learning-rate", type=float, help="Highest learning rate [default: 2e-4]."
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    help="Updates over which it rises [default: a tenth of all, at most 100].",
)
@click.option(
    "--schedule",
    type=click.Choice(["constant", "linear", "cosine", "rex", "uba"]),
    help="How it falls [default: rex].",
)
@click.option("--phi", type=float, help="Shape of the schedule uba [default: 1].")
@click.option("--weight-decay", type=float, help="AdamW's [default: 0.01].")
@click.option("--seed", type=click.IntRange(min=0), help="Random seed [default: 0].")
@click.option(
    "--val-fraction",
    type=float,
    help="Share of the prompts to validate on [default: 0.1].",
)
@click.option(
    "--eval-every", type=COUNT, help="Updates between validations [default: 50]."
)
@click.option(
    "--save-every", type=COUNT, help="Updates between checkpoints [default: 100]."
)
@click.option(
    "--keep",
    type=click.Choice(["best", "last"]),
    help="Which weights to keep: those of the lowest validation loss, or the last "
    "[default: best].",
)
@click.option(
    "--prefill-step-size",
    type=COUNT,
    help="Tokens that the model reads at a time [default: 512].",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Folder for the hidden states [default: OUTPUT/training/states].",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(["float16", "bfloat16"]),
    help="Their type [default: the model's if it has 16 bits, else float16].",
)
@click.option("--resume", is_flag=True, help="Go on with the run that OUTPUT holds.")
def train(**options):
    """Train a predictor on a model's own replies.

    A run that was stopped in any way goes on with --resume, to the same weights.
    """
    run_train(options)


def run_train(options: dict) -> None:
    """Trains a predictor, with progress and a summary on stderr.

    Args:
        options (dict): Fields of `TrainOptions`; None for a default.
    """
    given = {name: value for name, value in options.items() if value is not None}
    checked = TrainOptions(**given)
    with ProgressBars() as bars:

        def show(now: Progress) -> None:
            bars.show(_LABELS[now.stage], now.done, now.total, _details(now))

        result = run(checked, show)
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


def _details(progress: Progress) -> str | None:
    if not progress.rate:
        return None
    if progress.stage == "encoding":
        return f"{progress.rate:,.0f} tokens/s"
    return (
        f"loss {progress.loss:.3f}, validation {progress.val_loss:.3f}, "
        f"{progress.rate:,.1f} records/s"
    )
