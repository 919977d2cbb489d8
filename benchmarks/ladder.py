"""What each step of the ladder of predictors gives, on the built-in model.

Replies at temperature 1 to the model's 500 problems and to others that were never
trained on, at several budgets: steered by each predictor that is named, by the prior,
by the hard stop alone, and cut. Each finished part is kept in the output folder, so
that a stopped run goes on; the same problem has the same seed in every part.
"""

import json
import random
import re
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from mlx_budget import Predictor, load, stream_batch_generate
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import ABOUT, AT_MOST
from mlx_budget.evaluate.strategies import FORCED_ANSWER
from recipes.demo.problems import draw_trained, make_problem

DEMO = Path(__file__).parents[1] / "mlx_budget" / "demo" / "problems.jsonl"
MAX_TOKENS = 1024
# Parts that nothing guides: the message of the forced close.
UNGUIDED = {"hard stop": None, "truncate": None, "budget forcing": FORCED_ANSWER}


def own_problems() -> list[dict]:
    """The 500 problems of the built-in model."""
    return [json.loads(line) for line in DEMO.read_text().splitlines()]


def other_problems(count: int, seed: int, held_out: bool) -> list[dict]:
    """Problems of the same kind.

    Args:
        count: How many.
        seed: What they are drawn with.
        held_out: Whether their chains are among those that are never trained on.
    """
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        problem = (
            make_problem(rng, True, rng.random() < 0.5)
            if held_out
            else draw_trained(rng)
        )
        found.append({"question": problem.question, "answer": str(problem.answer)})
    return found


def answer(loaded, problems: list[dict], seed: int, **options) -> list[dict]:
    """What came of the replies to problems, in their order."""
    model, tokenizer = loaded
    found: list[dict] = [{} for _ in problems]
    for reply in stream_batch_generate(
        model,
        tokenizer,
        [encode_chat(tokenizer, p["question"]) for p in problems],
        temp=1.0,
        seed=[seed + i for i in range(len(problems))],
        max_tokens=MAX_TOKENS,
        batch_size=64,
        **options,
    ):
        numbers = re.findall(r"-?\d+", reply.answer)
        right = problems[reply.index]["answer"]
        found[reply.index] = {
            "right": bool(numbers) and numbers[-1] == right,
            "used": reply.thinking_tokens,
            "closed_by": reply.closed_by,
            "after_close": reply.after_close_tokens,
            "tokens": len(reply.tokens),
        }
    return found


def row(name: str, replies: list[dict], budget: int | None) -> str:
    """A line of the table, with the Wilson interval of the accuracy at 95 %."""
    right = np.array([r["right"] for r in replies])
    used = np.array([r["used"] for r in replies])
    n, share, z = len(right), right.mean(), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    closed = np.mean([r["closed_by"] == "model" for r in replies])
    cells = [
        name,
        "" if budget is None else str(budget),
        str(n),
        f"{share:.1%} ({middle - half:.1%} to {middle + half:.1%})",
        f"{used.mean():.1f}",
        "" if budget is None else f"{np.mean(np.abs(used - budget)) / budget:.3f}",
        "" if budget is None else f"{np.mean(used > budget):.0%}",
        "" if budget is None else f"{np.mean(used > np.floor(1.1 * budget)):.0%}",
        f"{closed:.0%}",
        f"{np.mean([r['tokens'] for r in replies]):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| | budget | n | right (95 %) | used | off by | over | past hard stop | closed by "
    "the model | all tokens |\n|---|---|---|---|---|---|---|---|---|---|"
)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--predictor", "predictors", multiple=True, help="NAME=FOLDER")
@click.option("--budgets", default="45,60,90,150,250")
@click.option("--modes", default=f"{AT_MOST},{ABOUT}")
@click.option("--parts", default="own,others", help="own: the 500; others: 1,000 more.")
@click.option("--unguided/--no-unguided", default=True)
@click.option("--seed", default=0)
def main(
    output: Path,
    predictors: tuple[str, ...],
    budgets: str,
    modes: str,
    parts: str,
    unguided: bool,
    seed: int,
) -> None:
    """Steers, and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    model, tokenizer, shipped = load("demo")
    guides: dict[str, Predictor | bool | None] = {"shipped": shipped, "prior": None}
    for item in predictors:
        name, _, folder = item.partition("=")
        guides[name] = Predictor.load(folder)
    problems = {
        "own": own_problems(),
        "others": other_problems(1000, 12345, held_out=True),
    }

    def part(which: str, name: str, budget: int | None, **options) -> list[dict]:
        label = "_".join(str(v) for v in (which, name, budget)).replace(" ", "-")
        file = output / f"{label}.json"
        if not file.exists():
            given = problems[which]
            found = answer((model, tokenizer), given, 1_000_000 * seed, **options)
            file.write_text(json.dumps(found))
        return json.loads(file.read_text())

    for which in parts.split(","):
        print(f"\n{which}: {len(problems[which])} problems\n\n{HEADER}", flush=True)
        if unguided:
            full = part(which, "no budget", None, predictor=False)
            print(row("no budget", full, None), flush=True)
        for budget in map(int, budgets.split(",")):
            for mode in modes.split(","):
                for name, guide in guides.items():
                    options = {"predictor": guide, "budget_mode": mode}
                    found = part(
                        which,
                        f"{name} {mode}",
                        budget,
                        thinking_budget=budget,
                        **options,
                    )
                    print(row(f"{name}, {mode}", found, budget), flush=True)
            for name, message in UNGUIDED.items() if unguided else ():
                options = {"thinking_budget_message": message, "predictor": False}
                if name != "hard stop":
                    options["hard_stop"] = 1.0
                found = part(which, name, budget, thinking_budget=budget, **options)
                print(row(name, found, budget), flush=True)


if __name__ == "__main__":
    main()
