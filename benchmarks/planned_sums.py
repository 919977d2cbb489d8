"""Sums of single digits with plans made by a rule, for the strategies that plan.

The built-in model cannot write a plan. Its sums fall into parts, though: a plan here
has the first half of the operands as one part and the others as a second, each worth
what it has of them. The file is for `mlx-budget evaluate --data`.
"""

import json
import random
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from recipes.demo.problems import expression, make_problem


def planned(chain: tuple[int, ...]) -> dict:
    """The plan of a chain of signed operands."""
    half = len(chain) // 2
    rest = " ".join(f"{'+' if n > 0 else '-'} {abs(n)}" for n in chain[half:])
    return {
        "parts": [
            {"question": f"What is {expression(chain[:half])}?", "credits": half},
            {"question": f"And then {rest}?", "credits": len(chain) - half},
        ]
    }


@click.command()
@click.option("--count", default=200, help="Problems to write.")
@click.option("--seed", default=0)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(count: int, seed: int, output: Path) -> None:
    """Writes problems that the built-in model was never trained on, with plans."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        problem = make_problem(rng, held_out=True, is_story=False)
        rows.append(
            {
                "question": problem.question,
                "answer": problem.answer,
                "plan": planned(problem.chain),
            }
        )
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    click.echo(f"{count} problems in {output}.")


if __name__ == "__main__":
    main()
