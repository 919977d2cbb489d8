"""The commands that measure: `evaluate` and `report`.

Knows their options; what they do is in `evaluate`, which is imported when they run.
"""

from pathlib import Path

import click

from .cli.options import (
    BATCH_SIZE_OPTION,
    COUNT,
    MARKER_OPTIONS,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
)


@click.command()
@MODEL_OPTIONS
@click.option(
    "--task",
    help="gsm8k, math-500, aime-2024 or aime-2025 from the Hub, or demo, the built-in "
    "problems [default: demo, with the built-in model].",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="File of questions in place of a task: JSON lines with question and answer, "
    "and choices where it is one of several.",
)
@click.option(
    "--instruction",
    help="Text to put behind each question [default: the task's own, such as asking "
    "for \\boxed{}].",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for records, summary and plots; one that is there is gone on with.",
)
@click.option(
    "--strategies",
    help="Comma-separated, or all: full, no-thinking, guidance, guidance-no-hard-stop, "
    "budget-forcing, truncate, prompt, wait, auto "
    "[default: full,guidance,budget-forcing].",
)
@click.option(
    "--budgets",
    help="Comma-separated: tokens, or shares of the mean without a budget "
    "[default: 25%,50%,63%,100%].",
)
@click.option("--limit", type=COUNT, help="Take the first so many questions.")
@click.option(
    "--num-samples",
    type=COUNT,
    default=1,
    show_default=True,
    help="Replies to each question, for each strategy and budget.",
)
@BATCH_SIZE_OPTION
@click.option(
    "--max-tokens",
    "-m",
    type=COUNT,
    help="Most tokens of a reply, thinking included [default: 8,192].",
)
@click.option("--temp", type=float, default=0.6, show_default=True, help="Temperature.")
@SAMPLING_OPTIONS
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed.",
)
@click.option("--hard-stop", type=float, help="Of guidance, as in generate.")
@click.option(
    "--thinking-budget-message",
    help="Text before the closing marker where guidance's hard stop or truncate close.",
)
@MARKER_OPTIONS
@PROMPT_OPTIONS
@PREFILL_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def evaluate(**options):
    """Measure accuracy against the thinking budget, by strategy.

    A run that was stopped goes on where it ended when the command is given again, also
    with more strategies or budgets.
    """
    from .evaluate.commands import run_evaluate
    from .evaluate.strategies import parse_budgets, parse_strategies

    parsers = {"strategies": parse_strategies, "budgets": parse_budgets}
    for name in ("strategies", "budgets", "max_tokens", "hard_stop"):
        if options[name] is None:
            del options[name]
        elif name in parsers:
            options[name] = parsers[name](options[name])
    run_evaluate(**options)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def report(folder: Path, as_json: bool):
    """Make tables and plots again from the records of an evaluation."""
    from .evaluate.commands import run_report

    run_report(folder, as_json)
