"""The command `evaluate`: accuracy against the thinking budget.

Knows how progress is shown; nothing of how replies are made or graded.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import demo
from ..engine.fields import keywords_of
from ..engine.settings import ModelSource
from ..evaluate.arms import parse_budgets
from ..evaluate.options import EvaluateOptions
from ..evaluate.strategies import parse_strategies
from ..interrupts import raise_again
from .command import Command
from .completion import complete_task
from .options import options_from, tell_of_demo
from .parameters import COUNT, PATH, SIZE, Read, command_option
from .prior import name_of_fitting, names_fitting
from .progress import bars_until_stopped
from .report import ALL_OPTION, show_report

if TYPE_CHECKING:
    from ..evaluate.run import Progress

_TYPES = {
    "strategies": Read("text", parse_strategies),
    "budgets": Read("text", parse_budgets),
    "prompt_cache_bytes": SIZE,
}


@click.command(cls=Command)
@options_from(source=ModelSource)
@command_option(
    "--task",
    shown="demo, with the built-in model",
    shell_complete=complete_task,
    group="Questions",
    help="gsm8k, math-500, aime-2024 or aime-2025 from the Hub, or medmcqa, medqa or "
    "gpqa-diamond, whose questions have lettered choices; demo, the built-in problems; "
    "or lm-eval:NAME, a task of the LM Evaluation Harness or a YAML file of "
    "one.",
)
@command_option(
    "--data",
    type=PATH,
    group="Questions",
    help="File of questions in place of a task: .jsonl, .json, .csv, .tsv or .parquet "
    "with question and answer, and choices where it is one of several.",
)
@command_option(
    "--instruction",
    shown="the task's own, such as asking for \\boxed{}",
    group="Questions",
    help="Text to put behind each question.",
)
@command_option(
    "--output",
    type=PATH,
    required=True,
    group="Output",
    help="Folder for records, summary and plots; one that is there is gone on with.",
)
@command_option(
    "--limit", type=COUNT, group="Questions", help="Take the first so many questions."
)
@options_from(
    options=EvaluateOptions,
    without=["thinking_budget", "budget_mode", "min_thinking_tokens"],
    types=_TYPES,
)
@command_option(
    "--json", "as_json", is_flag=True, group="Output", help="Print the summary as JSON."
)
@ALL_OPTION
@names_fitting
def evaluate(
    source: ModelSource,
    task: str | None,
    data: Path | None,
    instruction: str | None,
    output: Path,
    limit: int | None,
    options: EvaluateOptions,
    as_json: bool,
    shows_all: bool,
) -> None:
    """Measure accuracy against the thinking budget, by strategy.

    A run that was stopped goes on where it ended when the command is given again, also
    with more strategies or budgets. The draws of a reply depend on the seed, its
    question and its sample's number alone. The hard stop and the tolerance are those of
    the strategies that guide.
    """
    from ..engine.priors import notice
    from ..evaluate import grading
    from ..evaluate.folder import check_output
    from ..evaluate.run import check_ahead, evaluate
    from ..evaluate.tasks import TASKS, load_task
    from ..files import hub
    from ..files.outputs import check_output_folder
    from ..models.fetching import find_before
    from ..models.loading import load_source

    # What can be checked before a download is checked before it.
    grading.check_available()
    if source.model == demo.NAME and task is None and data is None:
        task = demo.NAME
    check_output_folder(output)
    asked = data if data is not None or task not in TASKS else TASKS[task].data
    find_before(asked or "", source)
    found = load_task(task, data, limit, instruction)
    name = hub.model_name(source.model, source.adapter_path, source.revision)
    check_output(output, found, options, name)
    tell_of_demo()
    model, tokenizer, predictor = load_source(
        source, check=lambda ahead: check_ahead(ahead, found, options)
    )
    if predictor is None and "guidance" in options.strategies:
        click.echo(notice(name_of_fitting(source)), err=True)
    made = 0

    def show(now: "Progress") -> None:
        nonlocal made
        made = now.made
        bars.show(now.arm, now.done, now.total, _accuracy(now))

    raise_again()
    with bars_until_stopped(lambda: _how_to_go_on(output)) as bars:
        evaluate(
            model,
            tokenizer,
            predictor,
            found,
            output,
            model_name=name,
            progress=show,
            **keywords_of(options),
        )
    if not made:
        click.echo(f"Nothing left to do: {output} is finished.", err=True)
    show_report(output, as_json, shows_all=shows_all)


def _how_to_go_on(output: Path) -> str:
    from ..evaluate.folder import RECORDS_FILE
    from ..files.records import has_records

    if not has_records(output / RECORDS_FILE):
        return f"Stopped before there was a reply in {output}: run the same again."
    return (
        "Stopped: run the same again, and it goes on from there. What there is so far: "
        f"`mlx-budget report {output}`."
    )


def _accuracy(progress: "Progress") -> str | None:
    if not progress.correct:
        return None
    return f"{progress.correct / progress.done:.1%} right"
