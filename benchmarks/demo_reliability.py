"""How reliable the demo's careful and terse calculations are, from its replies.

    mlx-budget evaluate --temp 1 --strategies full --max-tokens 1024 --output run
    python benchmarks/demo_reliability.py run

A calculation begins with an expression ("It is ..." or "Again ...") and is right if it
comes to what that expression is. It is careful if it goes on by "Next" alone, terse if
by "Quickly" at once, and turned if by the one and then the other.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from mlx_budget.evaluate.folder import read_records

KINDS = ("careful", "terse", "turned")
_BEGIN = re.compile(r"(?:It is|Again) (\d+(?: [+-] \d+)*)\.")
_STEP = re.compile(r"(?:Next|Wait, let me check that:) .* = -?\d+, so (.*)\.")
_TERSE = re.compile(r"Quickly: .* = (-?\d+)\.")
_NUMBER = re.compile(r"-?\d+")


def calculations(thinking: str) -> Iterator[tuple[str, int, bool]]:
    """Kind, number of operands and rightness of each calculation that has an end."""
    expression, steps = None, 0
    for line in thinking.splitlines():
        if begin := _BEGIN.fullmatch(line):
            expression, steps = begin[1].replace("- ", "-").replace("+ ", ""), 0
            continue
        if expression is None:
            continue
        numbers = [int(n) for n in expression.split()]
        if terse := _TERSE.fullmatch(line):
            kind, result = ("turned" if steps else "terse"), terse[1]
        elif step := _STEP.fullmatch(line):
            kind, result = "careful", step[1]
            steps += 1
            if not _NUMBER.fullmatch(result):
                continue
        else:
            expression = None
            continue
        yield kind, len(numbers), int(result) == sum(numbers)
        expression = None


def difference(counts: Counter) -> tuple[float, float]:
    """How much oftener careful ones are right than terse ones, at like length.

    Lengths are weighted by n1 n2 / (n1 + n2), as Mantel and Haenszel do.

    Args:
        counts (Counter): Of (kind, operands, rightness).

    Returns:
        tuple[float, float]: The difference, and half of its 95 % interval; shares of 1,
        NaN if there is no length that both have.
    """
    total = weights = variance = 0.0
    for operands in {operands for _, operands, _ in counts}:
        shares, sizes = [], []
        for kind in ("careful", "terse"):
            right, wrong = (counts[kind, operands, r] for r in (True, False))
            sizes.append(right + wrong)
            shares.append(right / max(right + wrong, 1))
        if not all(sizes):
            continue
        weight = sizes[0] * sizes[1] / sum(sizes)
        total += weight * (shares[0] - shares[1])
        weights += weight
        spread = sum(p * (1 - p) / n for p, n in zip(shares, sizes, strict=True))
        variance += weight**2 * spread
    if not weights:
        return math.nan, math.nan
    return total / weights, 1.96 * math.sqrt(variance) / weights


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(folders):
    """Count calculations in the replies without a budget of FOLDERS with records."""
    first, every, replies = Counter(), Counter(), 0
    for folder in folders:
        try:
            records = read_records(folder)
        except ValueError as e:
            raise click.ClickException(str(e)) from None
        for record in records:
            if record["strategy"] != "full":
                continue
            replies += 1
            found = list(calculations(record["reply"].partition("</think>")[0]))
            first.update(found[:1])
            every.update(found)
    if not every:
        raise click.ClickException("There is no calculation in these records.")
    for name, counts in (("first calculation of each", first), ("all", every)):
        click.echo(f"{replies:,} replies, {name}:")
        for kind in KINDS:
            of_kind = {key: n for key, n in counts.items() if key[0] == kind}
            n = sum(of_kind.values())
            wrong = sum(n for key, n in of_kind.items() if not key[2])
            click.echo(f"  {kind:8} {n:6,}  wrong {wrong:4}  {wrong / max(n, 1):.2%}")
        points, spread = (100 * x for x in difference(counts))
        click.echo(f"  careful - terse at like length: {points:+.2f} +- {spread:.2f}")


if __name__ == "__main__":
    main()
