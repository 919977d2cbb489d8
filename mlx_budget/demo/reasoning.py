"""How the demo model is taught to think: like a large one, about its small world.

Thinking is made of lines, and the first word of a line is a choice of what to do:

- "Step": one operation, with what is left restated; slow and sure.
- "Quick": all that is left in one line, by running totals.
- "Wait": a doubt about one operation, which is looked at again.
- "Check": the result by another route, all gains and all losses apart.
- "Again": the whole calculation anew.
- "**Final Answer**": the end.

How often each comes is up to chance, so that the length of the thinking about one
problem varies widely and a budget has something to steer. Now and then an operation
goes wrong, and is found out and mended by what follows.
"""

import random

from .problems import Problem, expression

FINAL = "**Final Answer**"
# How likely the first calculation begins with "Quick", and how likely a careful one
# turns into it at each step.
_QUICK, _TURN = 0.2, 0.08
# How likely another look at the result is, once it is there.
_LOOK = 0.6
_MOST_LOOKS = 4
_DOUBT = 0.06
_SLIP = 0.03


def write_thinking(rng: random.Random, problem: Problem) -> str:
    """Thinking that ends at the right answer: lines, each with its newline.

    Args:
        rng (random.Random): Where chance comes from.
        problem (Problem): What to think about.
    """
    lines = [f"It is {expression(problem.chain)}."]
    result = _calculate(rng, problem.chain, lines, rng.random() < _QUICK)
    looks = 0
    while result != problem.answer or (looks < _MOST_LOOKS and rng.random() < _LOOK):
        looks += 1
        kind = rng.choice(("check", "again", "quick", "doubt"))
        if kind == "doubt" and result == problem.answer:
            _doubt(rng, problem.chain, lines)
        elif kind == "check":
            found = _check(problem.chain, lines)
            if found != result:
                lines.append(f"Again {expression(problem.chain)}.")
                result = _calculate(rng, problem.chain, lines, False, slips=False)
        else:
            lines.append(f"Again {expression(problem.chain)}.")
            slips = result == problem.answer
            result = _calculate(rng, problem.chain, lines, kind == "quick", slips)
    lines.append(FINAL)
    return "".join(f"{line}\n" for line in lines)


def write_tersest(problem: Problem) -> str:
    """The shortest thinking that `write_thinking` can make for a problem."""
    lines = [f"It is {expression(problem.chain)}."]
    _quick(problem.chain, lines)
    lines.append(FINAL)
    return "".join(f"{line}\n" for line in lines)


def _calculate(
    rng: random.Random,
    chain: tuple[int, ...],
    lines: list[str],
    is_quick: bool,
    slips: bool = True,
) -> int:
    """Works a chain out, by lines that may slip; what it comes to."""
    while len(chain) > 1:
        if is_quick or rng.random() < _TURN:
            return _quick(chain, lines)
        a, b, *rest = chain
        total = a + b
        if slips and rng.random() < _SLIP:
            total = max(0, total + rng.choice((-1, 1)))
        if total != a + b and rng.random() < 0.7:
            lines.append(_step(a, b, total, rest))
            total = a + b
            lines.append(
                f"Wait {expression((a, b))} = {total}, so {_left(total, rest)}."
            )
        else:
            lines.append(_step(a, b, total, rest))
            if total == a + b and rng.random() < _DOUBT:
                lines.append(f"Wait {expression((a, b))} = {total}, yes.")
                lines.append(f"So {_left(total, rest)}.")
        chain = (total, *rest)
    return chain[0]


def _step(a: int, b: int, total: int, rest: list[int]) -> str:
    return f"Step {expression((a, b))} = {total}, so {_left(total, rest)}."


def _left(total: int, rest: list[int]) -> str:
    return expression((total, *rest))


def _quick(chain: tuple[int, ...], lines: list[str]) -> int:
    total, *rest = chain
    words = [f"Quick {total}"]
    for step in rest:
        total += step
        words.append(f"{'+-'[step < 0]} {abs(step)} = {total}")
    lines.append(" ".join(words) + ".")
    return total


def _check(chain: tuple[int, ...], lines: list[str]) -> int:
    gains = tuple(s for s in chain if s > 0)
    losses = tuple(-s for s in chain if s < 0)
    up = _running(gains)
    if not losses:
        lines.append(f"Check {up}.")
        return sum(gains)
    lines.append(
        f"Check up {up}, down {_running(losses)}, {sum(gains)} - "
        f"{sum(losses)} = {sum(chain)}."
    )
    return sum(chain)


def _running(numbers: tuple[int, ...]) -> str:
    total, *rest = numbers
    words = [str(total)]
    for n in rest:
        total += n
        words.append(f"+ {n} = {total}")
    return " ".join(words)


def _doubt(rng: random.Random, chain: tuple[int, ...], lines: list[str]) -> None:
    place = rng.randrange(1, len(chain))
    before = sum(chain[:place])
    pair = before, chain[place]
    lines.append(f"Wait {expression(pair)} = {sum(pair)}, yes.")
    lines.append(f"So {sum(chain)}.")
