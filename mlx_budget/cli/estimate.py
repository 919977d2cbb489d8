"""The command `estimate`: predicted thinking lengths.

Knows how prompts are given and lengths are shown; nothing of how they are predicted.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engine.fields import keywords_of
from ..engine.settings import ModelSource, PromptOptions, ThinkingBudget
from .command import Command
from .options import (
    DATA_HELP,
    JSON_OPTION,
    PREFILL_OPTION,
    PROMPT_HELP,
    options_from,
    read_prompt,
    tell_of_demo,
)
from .parameters import PATH, command_option
from .prior import names_fitting

if TYPE_CHECKING:
    from ..engine.estimate import ThinkingEstimate
    from ..models.fetching import Ahead


@click.command(cls=Command)
@options_from(source=ModelSource)
@command_option("--prompt", "-p", group="Prompt", help=PROMPT_HELP)
@command_option("--data", type=PATH, group="Prompt", help=DATA_HELP)
@options_from(thinking=ThinkingBudget, only=["thinking_start", "thinking_end"])
@options_from(template=PromptOptions)
@PREFILL_OPTION
@JSON_OPTION
@names_fitting
def estimate(
    source: ModelSource,
    prompt: str | None,
    data: Path | None,
    thinking: ThinkingBudget,
    template: PromptOptions,
    prefill_step_size: int,
    as_json: bool,
) -> None:
    """Predict how long the model will think about a prompt."""
    if (prompt is None) == (data is None):
        raise ValueError("Give one of --prompt and --data.")

    from ..engine.context import context_length
    from ..engine.estimate import check_predictor, estimate
    from ..engine.markers import find_markers
    from ..engine.prompt_files import read_prompts
    from ..engine.prompts import encode_chat
    from ..engine.template import let_think
    from ..models.fetching import find_before
    from ..models.loading import load_source

    prompts: list[Any] = []
    if data is not None:
        find_before(data, source)
        prompts = read_prompts(data)
    elif prompt is not None:
        prompts = [read_prompt(prompt)]
    tell_of_demo()

    def check(ahead: "Ahead") -> None:
        check_predictor(ahead.predictor)
        find_markers(ahead.tokenizer, thinking.start, thinking.end)
        asked = let_think(ahead.tokenizer, thinking, template)
        most = context_length(ahead.model, ahead.tokenizer)
        for prompt in prompts:
            encode_chat(ahead.tokenizer, prompt, **keywords_of(asked), most_tokens=most)

    loaded = load_source(source, check=check)
    template = let_think(loaded[1], thinking, template)
    chat = {**keywords_of(template), "most_tokens": context_length(*loaded[:2])}
    estimates = []
    # All of them are encoded first, in case one cannot be.
    encoded = [encode_chat(loaded[1], prompt, **chat) for prompt in prompts]
    for text, ids in zip(prompts, encoded, strict=True):
        found = estimate(
            *loaded,
            ids,
            thinking_start=thinking.start,
            thinking_end=thinking.end,
            prefill_step_size=prefill_step_size,
        )
        title = text if isinstance(text, str) else text[-1]["content"]
        estimates.append((title, found))
    if as_json:
        rows = [{"prompt": title, **_finite(found)} for title, found in estimates]
        result = {"model": source.model, "estimates": rows}
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _print_table(estimates)


def _finite(found: "ThinkingEstimate") -> dict[str, Any]:
    """The fields of an estimate; lengths beyond float32 are None, as JSON has them."""
    values = asdict(found)
    return {k: None if v == float("inf") else v for k, v in values.items()}


def _print_table(estimates: "list[tuple[str, ThinkingEstimate]]") -> None:
    click.echo(f"{'mode':>8}{'10 %':>8}{'median':>8}{'90 %':>8}  prompt")
    for title, found in estimates:
        lengths = (found.mode, found.low, found.median, found.high)
        numbers = "".join(f"{length:8,.0f}" for length in lengths)
        title = " ".join(title.split())
        mark = "" if found.trusted else " (*)"
        click.echo(f"{numbers}  {title[:60]}{'...' if len(title) > 60 else ''}{mark}")
    click.echo("Predicted thinking length in tokens.", err=True)
    if not all(found.trusted for _, found in estimates):
        click.echo("(*) outside the predictor's guidance thresholds.", err=True)
