"""The command `plan`: a question in parts, each within its share of the budget.

Knows how plans are given and shown; nothing of how they are made or kept.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engine.fields import keywords_of
from ..engine.settings import ModelSource, PromptOptions, Sampling, ThinkingBudget
from ..interrupts import raise_again
from ..planning.options import PlanOptions, check_divisible
from .ahead import reply_check
from .command import Command
from .options import (
    HIDE_THINKING_OPTION,
    JSON_OPTION,
    MAX_TOKENS_OPTION,
    PREFILL_OPTION,
    PROMPT_HELP,
    VERBOSE_OPTION,
    check_reply,
    options_from,
    read_prompt,
    tell_of_demo,
)
from .parameters import PATH, Read, command_option
from .prior import names_fitting
from .terminal import ReplyPrinter

if TYPE_CHECKING:
    from ..planning.run import PlannedReply


def _read_levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--levels must be five numbers of tokens such as 200,250,350,450,600, not "
            f"{text!r}."
        ) from None


@click.command(cls=Command)
@options_from(source=ModelSource)
@command_option("--prompt", "-p", required=True, group="Prompt", help=PROMPT_HELP)
@options_from(thinking=ThinkingBudget, without=["min_thinking_tokens", "reply_prefix"])
@options_from(asked=PlanOptions, types={"levels": Read("N,N,N,N,N", _read_levels)})
@command_option(
    "--plan",
    "plan_file",
    type=PATH,
    group="Plan",
    help="JSON file of a plan to follow, as --json shows it, in place of the model's.",
)
@HIDE_THINKING_OPTION
@JSON_OPTION
@VERBOSE_OPTION
@MAX_TOKENS_OPTION
@options_from(sampling=Sampling, template=PromptOptions)
@PREFILL_OPTION
@names_fitting
def plan(
    source: ModelSource,
    prompt: str,
    thinking: ThinkingBudget,
    asked: PlanOptions,
    plan_file: Path | None,
    sampling: Sampling,
    template: PromptOptions,
    hide_thinking: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Split a question into parts, and its thinking among them."""
    check_divisible(thinking)
    given = None if plan_file is None else _read_plan(plan_file)
    check_reply(source, thinking, options["max_tokens"])
    tell_of_demo()
    question = read_prompt(prompt)

    from ..engine.generate import statistics
    from ..models.loading import load_source
    from ..planning.run import stream_plan

    check = reply_check(source, thinking, template, [question])
    model, tokenizer, predictor = load_source(source, check=check)
    raise_again()
    replies = stream_plan(
        model,
        tokenizer,
        question,
        predictor=predictor,
        plan=given,
        **keywords_of(thinking),
        **keywords_of(asked),
        **keywords_of(sampling),
        **keywords_of(template),
        **options,
    )
    planned, _ = next(replies)
    if as_json:
        for _ in replies:
            pass
        click.echo(json.dumps(planned.as_dict(), ensure_ascii=False, indent=2))
        return
    if verbose:
        click.echo(_plan_lines(planned), err=True)
    printer = ReplyPrinter(sys.stdout, sys.stderr, hide_thinking)
    try:
        for _, response in replies:
            if response is not None:
                printer.update(response)
    finally:
        if planned.response is not None:
            printer.end()
            if verbose:
                lines = [statistics(planned.response), *_part_lines(planned)]
                click.echo("=" * 10 + "\n" + "\n".join(lines), err=True)


def _read_plan(file: Path) -> Any:
    """A plan in a file, checked."""
    from ..planning.plans import plan_from

    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeError, ValueError, RecursionError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ValueError(f"--plan {file} cannot be read: {reason}.") from None
    try:
        return plan_from(value)
    except ValueError as e:
        raise ValueError(f"--plan {file}: {e}") from None


def _plan_lines(planned: "PlannedReply") -> str:
    plan = planned.plan
    head = f"Plan: {planned.budget} tokens, difficulty {plan.difficulty} of 5"
    if plan.problems:
        head += f" (what the model wrote was mended: {', '.join(plan.problems)})"
    lines = [head]
    for i, (part, share) in enumerate(zip(plan.parts, planned.shares, strict=True), 1):
        hint = f" ({part.hint})" if part.hint else ""
        lines.append(f"  {i}. {share} tokens: {part.question}{hint}")
    return "\n".join(lines)


def _part_lines(planned: "PlannedReply") -> list[str]:
    """A line for each part that was held to its share, and what planning took."""
    lines = []
    for i, stretch in enumerate(planned.stretches, 1):
        allowed = str(stretch.share)
        if stretch.passed_on:
            allowed += f" + {stretch.passed_on} from others"
        if stretch.is_left_out:
            end = "left out: its share does not hold its hint"
        elif stretch.closed_by is None:
            end = "not ended"
        else:
            end = f"closed by the {stretch.closed_by}"
        lines.append(f"Part {i}: {stretch.used} of {allowed} tokens, {end}")
    lines.append(f"Planning: {planned.plan.tokens} tokens")
    return lines
