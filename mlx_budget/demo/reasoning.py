"""How the demo model is taught to think: like a large one, about its small world.

Thinking is made of lines, and the first word of a line is a choice of what to do:

- "It": the problem as one expression.
- "Next": one operation, with what is left restated; slow and sure.
- "Quickly": all that is left in one line, by running totals.
- "Wait": a doubt about the operation just done, which is looked at again.
- "Check": the result by another route, from the end back to the first number.
- "Again": the whole calculation anew.
- "**Final Answer**": the end.

How often each comes is up to chance, so that the length of the thinking about one
problem varies widely and a budget has something to steer. Now and then an operation
goes wrong, and is found out and mended by what follows.
"""

import random
import re

from .problems import Problem, expression

FINAL = "**Final Answer**"
# How likely the first calculation begins with "Quickly", and how likely a careful one
# turns into it at each step.
_QUICK, _TURN = 0.25, 0.08
# How likely another look at the result is, once it is there.
LOOK = 0.7
_MOST_LOOKS = 4
_DOUBT = 0.05
_SLIP, _SLIP_SEEN = 0.02, 0.7
_RESULT = re.compile(r"^(?:Quickly: .*|.*, so \d+\.)$", re.MULTILINE)
_LOOKS = ("doubt", "check", "quick", "again")


def write_thinking(rng: random.Random, problem: Problem, look: float = LOOK) -> str:
    """Thinking that ends at the right answer: lines, each with its newline.

    Args:
        rng (random.Random): Where chance comes from.
        problem (Problem): What to think about.
        look (float): How likely another look at a right result is, each time.
    """
    chain = problem.chain
    lines = [f"It is {expression(chain)}."]
    result = _calculate(rng, chain, lines, rng.random() < _QUICK)
    looks = 0
    while result != problem.answer or (looks < _MOST_LOOKS and rng.random() < look):
        looks += 1
        kind = rng.choice(_LOOKS)
        if kind == "doubt" and result == problem.answer:
            lines.append(_doubt((result - chain[-1], chain[-1])))
        elif kind == "check":
            lines.append(_check(chain, result))
        else:
            lines.append(f"Again {expression(chain)}.")
            slips = result == problem.answer
            result = _calculate(rng, chain, lines, kind == "quick", slips)
    return _join(lines)


def write_tersest(problem: Problem) -> str:
    """The shortest thinking that `write_thinking` can make for a problem."""
    lines = [f"It is {expression(problem.chain)}."]
    _quick(problem.chain, lines)
    return _join(lines)


def end_of_first_result(thinking: str) -> int:
    """Where, in characters, the line ends that first comes to a result."""
    return _RESULT.search(thinking).end()


def _join(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in (*lines, FINAL))


def _calculate(
    rng: random.Random,
    chain: tuple[int, ...],
    lines: list[str],
    is_quick: bool,
    slips: bool = True,
) -> int:
    """Works a chain out, by operations that may slip; what it comes to."""
    while len(chain) > 1:
        if is_quick or rng.random() < _TURN:
            return _quick(chain, lines)
        a, b, *rest = chain
        total = a + b
        if slips and rng.random() < _SLIP:
            total += rng.choice((-1, 1))
        lines.append(_line("Next", (a, b), total, rest))
        doubt = _DOUBT if total == a + b else _SLIP_SEEN
        if rng.random() < doubt:
            total = a + b
            lines.append(_doubt((a, b), rest))
        chain = (total, *rest)
    return chain[0]


def _line(word: str, pair: tuple[int, int], total: int, rest: list[int]) -> str:
    return f"{word} {expression(pair)} = {total}, so {expression((total, *rest))}."


def _doubt(pair: tuple[int, int], rest: list[int] = ()) -> str:
    return _line("Wait, let me check that:", pair, sum(pair), rest)


def _quick(chain: tuple[int, ...], lines: list[str]) -> int:
    lines.append(f"Quickly: {_running(chain)}.")
    return sum(chain)


def _check(chain: tuple[int, ...], result: int) -> str:
    """From the result back, each operation undone, to the first number or not."""
    first, *rest = chain
    back = (result, *(-step for step in reversed(rest)))
    found = "right" if sum(back) == first else f"not {first}"
    return f"Check: {_running(back)}, {found}."


def _running(chain: tuple[int, ...]) -> str:
    """A chain with its running totals, such as "7 + 1 = 8 - 3 = 5"."""
    total, *rest = chain
    words = [str(total)]
    for step in rest:
        total += step
        words.append(f"{'+-'[step < 0]} {abs(step)} = {total}")
    return " ".join(words)
