"""The commands that make a predictor: `traces` and `train`.

Knows their options; what they do is in `train`, which is imported when they run.
"""

from pathlib import Path

import click

from .cli.options import (
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
    SYSTEM_PROMPT_OPTION,
    TEMPLATE_CONFIG_OPTION,
)


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
    from .train.commands import run_traces

    if options["max_tokens"] is None:
        del options["max_tokens"]
    run_traces(**options)


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
    from .train.train_command import run_train

    run_train(options)
