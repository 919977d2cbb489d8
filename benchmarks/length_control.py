"""Does a trained predictor steer a model's thinking to a budget?

Replies to the same prompts without a budget, then with budgets that are shares of that
mean length: guided by the predictor, by one that knows only the marginal distribution
of the lengths, and cut at the budget; with and without the hard stop. Every finished
part is kept in the output folder, so that a stopped run goes on.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
import mlx.core as mx
import numpy as np

import timing
from mlx_budget import Predictor, load, stream_batch_generate
from mlx_budget.engine.prompt_files import read_prompts
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.sizes import SIZES

MAX_TOKENS = 300


def marginal_predictor(trained: Predictor, concentration: float, rate: float):
    """A predictor that says the same of every token that ``trained`` knows.

    Args:
        trained: Whose tokens, model and thresholds to take.
        concentration: Of the distribution of log(L + 1) that it always predicts.
        rate: Likewise.
    """
    predictor = EncoderPredictor(replace(trained.config, **SIZES["tiny"]))
    predictor.tokens = trained.tokens
    # The encoding is all ones, whatever the hidden states.
    norm = predictor.layers[-1].output_norm
    norm.weight, norm.bias = mx.zeros_like(norm.weight), mx.ones_like(norm.bias)
    heads = (predictor.concentration_head, concentration), (predictor.rate_head, rate)
    for head, value in heads:
        output = value + np.log(-np.expm1(-value))  # softplus gives the value back
        head.weight = mx.full(head.weight.shape, output / head.weight.shape[1])
    return predictor.eval()


def summarize(replies: list[dict], budget: int | None) -> dict:
    """A row of the table; replies that never closed count with what they used."""
    used = np.array([r["thinking_tokens"] for r in replies])
    low, high = np.quantile(used, (0.1, 0.9))
    closed = np.mean([r["closed_by"] == "model" for r in replies])
    return {
        "mean": float(used.mean()),
        "10-90 %": f"{low:.0f}-{high:.0f}",
        "over budget": "" if budget is None else f"{np.mean(used > budget):.0%}",
        "closed by itself": f"{closed:.0%}",
    }


@click.command()
@click.option("--model", required=True)
@click.option("--predictor", required=True, help="Folder made by `mlx-budget train`.")
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--shares", default="0.25,0.5,0.75,1,1.5", show_default=True)
@click.option("--arms", default="guided,marginal,cut", show_default=True)
@click.option("--temp", default=0.7, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--thinking-start-token", "start", default=None)
@click.option("--thinking-end-token", "end", default=None)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(
    model: str,
    predictor: str,
    data: Path,
    shares: str,
    arms: str,
    temp: float,
    batch_size: int,
    seed: int,
    start: str | None,
    end: str | None,
    output: Path,
) -> None:
    """Compares thinking lengths with the budgets that were set."""
    output.mkdir(parents=True, exist_ok=True)
    loaded, tokenizer, trained = load(model, predictor)
    prompts = [encode_chat(tokenizer, prompt) for prompt in read_prompts(data)]
    report = json.loads(Path(predictor, "report.json").read_text(encoding="utf-8"))
    predictors = {
        "guided": trained,
        "marginal": marginal_predictor(trained, **report["marginal"]),
        "cut": False,
    }

    def run(arm: str, budget: int | None, hard_stop: float | None) -> list[dict]:
        name = f"{arm}-{budget}-{hard_stop}".replace("None", "no")
        file = output / f"{name}.jsonl"
        if file.exists():
            return [json.loads(line) for line in file.read_text().splitlines()]
        mx.random.seed(seed)
        replies = stream_batch_generate(
            loaded,
            tokenizer,
            prompts,
            predictor=predictors.get(arm, False),
            thinking_budget=budget,
            hard_stop=hard_stop,
            thinking_start=start,
            thinking_end=end,
            max_tokens=MAX_TOKENS,
            temp=temp,
            batch_size=batch_size,
            stop_after_thinking=True,
        )
        rows = []
        with click.progressbar(replies, len(prompts), name, file=sys.stderr) as bar:
            for reply in bar:
                rows.append({**vars(reply)})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        partial = file.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.rename(file)
        return rows

    natural = run("natural", None, None)
    table = [{"arm": "no budget", "hard stop": "", "share": "", "budget": ""}]
    table[0].update(summarize(natural, None))
    mean = table[0]["mean"]
    for share in map(float, shares.split(",")):
        budget = round(share * mean)
        for arm in arms.split(","):
            for hard_stop in (1.0,) if arm == "cut" else (None, 1.1):
                row = {"arm": arm, "hard stop": hard_stop or "off", "share": share}
                row["budget"] = budget
                row.update(summarize(run(arm, budget, hard_stop), budget))
                table.append(row)
    timing.report("Thinking tokens by budget", table, output / "table.json")


if __name__ == "__main__":
    main()
