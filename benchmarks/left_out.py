"""How much probability the likeliest tokens leave out where guidance acts.

Generates without guidance and looks at the steps that follow a newline. What is left
out decides how often a guided step needs the whole vocabulary (see `candidates`).
"""

from pathlib import Path

import click
import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.sample_utils import make_sampler

import timing
import workload
from mlx_budget.engine.prompt_files import read_prompts
from mlx_budget.engine.prompts import encode_chat

COUNTS = (256, 1024, 4096)
TEMPERATURES = (0.6, 1.0)


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Prompts, as `mlx-budget estimate --data` takes them.",
)
@click.option("--prompts", default=12, show_default=True)
@click.option("--tokens", default=180, show_default=True, help="Tokens of a reply.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    model: Path, data: Path, prompts: int, tokens: int, output: Path | None
) -> None:
    """Measures the probability outside the likeliest tokens after newlines."""
    loaded, tokenizer = workload.load_smollm2(model)
    mx.random.seed(0)
    found = {temp: [] for temp in TEMPERATURES}
    with click.progressbar(read_prompts(data)[:prompts]) as questions:
        for question in questions:
            after_newline = False
            for r in mlx_lm.stream_generate(
                loaded,
                tokenizer,
                encode_chat(tokenizer, question),
                max_tokens=tokens,
                sampler=make_sampler(0.8),
            ):
                for temp in TEMPERATURES if after_newline else ():
                    p = np.sort(np.array(mx.softmax(r.logprobs / temp), np.float64))
                    found[temp].append([p[:-count].sum() for count in COUNTS])
                after_newline = "\n" in tokenizer.decode([r.token])
    rows = []
    for temp, masses in found.items():
        for count, column in zip(COUNTS, np.array(masses).T, strict=True):
            rows.append(
                {
                    "temperature": temp,
                    "candidates": count,
                    "steps": len(column),
                    "median": float(np.median(column)),
                    "90 %": float(np.quantile(column, 0.9)),
                    "highest": float(column.max()),
                }
            )
    timing.report("Probability left out after newlines", rows, output)


if __name__ == "__main__":
    main()
