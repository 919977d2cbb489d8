"""The command `evaluate`: accuracy against the thinking budget.

Knows how progress is shown; nothing of how replies are made or graded.
"""

from pathlib import Path

import click

from .. import demo
from ..evaluate import grading
from ..evaluate.options import EvaluateOptions
from ..evaluate.run import Progress
from ..evaluate.run import evaluate as run
from ..evaluate.strategies import parse_budgets, parse_strategies
from ..evaluate.tasks import load_task
from ..files import hub
from ..models.loading import load
from .options import (
    BATCH_SIZE_OPTION,
    COUNT,
    MARKER_OPTIONS,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
    model_or_demo,
)
from .progress import ProgressBars
from .report import run_report


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
    parsers = {"strategies": parse_strategies, "budgets": parse_budgets}
    for name in ("strategies", "budgets", "max_tokens", "hard_stop"):
        if options[name] is None:
            del options[name]
        elif name in parsers:
            options[name] = parsers[name](options[name])
    run_evaluate(**options)


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
    with ProgressBars() as bars:

        def show(now: Progress) -> None:
            bars.show(now.arm, now.done, now.total, _accuracy(now))

        try:
            run(
                loaded,
                tokenizer,
                predictor,
                found,
                output,
                model_name=hub.model_name(model, adapter_path, revision),
                progress=show,
                **options,
            )
        except KeyboardInterrupt:
            bars.close()
            click.echo(
                f"Stopped; the same command goes on from there. What there is so far: "
                f"`mlx-budget report {output}`.",
                err=True,
            )
            raise
    run_report(output, as_json)


def _accuracy(progress: Progress) -> str | None:
    if not progress.correct:
        return None
    return f"{progress.correct / progress.done:.1%} right"
