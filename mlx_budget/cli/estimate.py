"""The command `estimate`: predicted thinking lengths.

Knows how prompts are given and lengths are shown; nothing of how they are predicted.
"""

import json
from dataclasses import asdict
from pathlib import Path

import click

from ..engine.estimate import ThinkingEstimate
from ..engine.estimate import estimate as predict
from ..engine.prompts import encode_chat, read_prompts
from ..models.loading import load
from .options import (
    DATA_HELP,
    LOADING,
    MARKER_OPTIONS,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    TEMPLATE,
    model_or_demo,
    pick,
    read_prompt,
)


@click.command()
@MODEL_OPTIONS
@click.option("--prompt", "-p", help="The question; - reads stdin.")
@click.option("--data", type=click.Path(path_type=Path), help=DATA_HELP)
@MARKER_OPTIONS
@PROMPT_OPTIONS
@PREFILL_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate(**options):
    """Predict how long the model will think about a prompt."""
    run_estimate(**options)


def run_estimate(
    model: str | None, prompt: str | None, data, as_json: bool, **options
) -> None:
    """Predicts thinking lengths and shows them as a table or as JSON.

    Args:
        model (str, optional): Folder or Hub name; None for the built-in model.
        prompt (str, optional): The question, or "-" for standard input.
        data (Path, optional): A file of prompts, in its stead.
        as_json (bool): Whether to print JSON.
        options: The command's other options.
    """
    if (prompt is None) == (data is None):
        raise ValueError("Give one of --prompt and --data.")
    prompts = [read_prompt(prompt)] if data is None else read_prompts(data)
    template = pick(options, *TEMPLATE)
    model = model_or_demo(model)
    loaded, tokenizer, predictor = load(model, **pick(options, *LOADING))
    estimates = []
    for text in prompts:
        ids = encode_chat(tokenizer, text, **template)
        title = text if isinstance(text, str) else text[-1]["content"]
        found = predict(loaded, tokenizer, predictor, ids, **options)
        estimates.append((title, found))
    if as_json:
        rows = [{"prompt": title, **_finite(found)} for title, found in estimates]
        result = {"model": model, "estimates": rows}
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _print_table(estimates)


def _finite(found: ThinkingEstimate) -> dict:
    """The fields of an estimate; lengths beyond float32 are None, as JSON has them."""
    values = asdict(found)
    return {k: None if v == float("inf") else v for k, v in values.items()}


def _print_table(estimates: list[tuple[str, ThinkingEstimate]]) -> None:
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
