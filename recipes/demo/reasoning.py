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
goes wrong: in a careful line it is seen at once, in a terse one it is found out only by
another look. Texts say where, since a model is to learn how slips are found more than
how they are made. `Habits` say how often all of that happens.
"""

import random
import re
from typing import NamedTuple

from .problems import Problem, expression

FINAL = "**Final Answer**"
# What lines begin with.
OPENINGS = ("It", "Next", "Quickly", "Wait", "Check", "Again", FINAL)
# How likely the first calculation begins with "Quickly".
_QUICK = 0.25
_MOST_LOOKS = 4
# Stands before a total that slipped, until the text is whole.
_SLIPPED = "\0"
_RESULT = re.compile(r"^(?:Quickly: .*|.*, so \d+\.)$", re.MULTILINE)
_CAREFUL = re.compile(r"^(?:Next|Wait).* = (-?\d+), so ", re.MULTILINE)
_LOOKS = ("doubt", "check", "quick", "again")


class Habits(NamedTuple):
    """How likely a turn of thinking is.

    Attributes:
        turn (float): That a careful calculation turns terse, at each step.
        look (float): Another look at a right result, each time.
        doubt (float): A doubt about a careful operation, right behind it.
        careful_slip (float): That a careful operation goes wrong.
        terse_slip (float): That a terse one does.
    """

    turn: float = 0.08
    look: float = 0.7
    doubt: float = 0.05
    careful_slip: float = 0.03
    terse_slip: float = 0.05

    def sure(self) -> "Habits":
        """The same without slips."""
        return self._replace(careful_slip=0.0, terse_slip=0.0)


HABITS = Habits()


class Thinking(NamedTuple):
    """Thinking about a problem.

    Attributes:
        text (str): Lines, each with its newline.
        slips (tuple[tuple[int, int], ...]): Where in the text the totals stand that
            slipped: first character, and the one behind the last.
    """

    text: str
    slips: tuple[tuple[int, int], ...]


def write_thinking(
    rng: random.Random, problem: Problem, habits: Habits = HABITS
) -> Thinking:
    """Thinking that ends at the right answer.

    Args:
        rng (random.Random): Where chance comes from.
        problem (Problem): What to think about.
        habits (Habits): How to think.
    """
    chain = problem.chain
    lines = [f"It is {expression(chain)}."]
    if len(chain) == 1:
        return Thinking(_join(lines), ())
    result = _calculate(rng, chain, lines, rng.random() < _QUICK, habits)
    looks = 0
    while result != problem.answer or (
        looks < _MOST_LOOKS and rng.random() < habits.look
    ):
        looks += 1
        kind = rng.choice(_LOOKS)
        if kind == "doubt" and result == problem.answer:
            lines.append(_doubt((result - chain[-1], chain[-1])))
        elif kind == "check":
            lines.append(_check(chain, result))
        else:
            lines.append(f"Again {expression(chain)}.")
            now = habits if result == problem.answer else habits.sure()
            result = _calculate(rng, chain, lines, kind == "quick", now)
    return _find_slips(_join(lines))


def write_tersest(problem: Problem) -> str:
    """The text of the shortest thinking that `write_thinking` makes for a problem."""
    lines = [f"It is {expression(problem.chain)}."]
    if len(problem.chain) > 1:
        _quick(problem.chain, lines)
    return _join(lines)


def careful_totals(thinking: str) -> list[tuple[int, int]]:
    """Where the totals of careful lines stand: first character, and one behind."""
    return [found.span(1) for found in _CAREFUL.finditer(thinking)]


def end_of_first_result(thinking: str) -> int:
    """Where, in characters, the line ends that first comes to a result.

    If none does, the result stands in the first line.
    """
    found = _RESULT.search(thinking)
    return thinking.index("\n") if found is None else found.end()


def _join(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in (*lines, FINAL))


def _find_slips(text: str) -> Thinking:
    """Takes the marks out of a text, and keeps where they were."""
    first, *marked = text.split(_SLIPPED)
    plain, slips = first, []
    for part in marked:
        length = len(part) - len(part.lstrip("-0123456789"))
        slips.append((len(plain), len(plain) + length))
        plain += part
    return Thinking(plain, tuple(slips))


def _calculate(
    rng: random.Random,
    chain: tuple[int, ...],
    lines: list[str],
    is_quick: bool,
    habits: Habits,
) -> int:
    """Works a chain out, by operations that may slip; what it comes to."""
    while len(chain) > 1:
        if is_quick or rng.random() < habits.turn:
            return _quick(chain, lines, rng, habits.terse_slip)
        a, b, *rest = chain
        slip = _slip(rng, habits.careful_slip)
        lines.append(_line("Next", (a, b), a + b + slip, rest, slip != 0))
        if slip or rng.random() < habits.doubt:
            lines.append(_doubt((a, b), rest))
        chain = (a + b, *rest)
    return chain[0]


def _line(
    word: str, pair: tuple[int, int], total: int, rest: list[int], slipped: bool = False
) -> str:
    mark = _SLIPPED if slipped else ""
    left = expression((total, *rest))
    return f"{word} {expression(pair)} = {mark}{total}, so {left}."


def _doubt(pair: tuple[int, int], rest: list[int] = ()) -> str:
    return _line("Wait, let me check that:", pair, sum(pair), rest)


def _slip(rng: random.Random | None, likely: float) -> int:
    """By how much an operation goes wrong."""
    return rng.choice((-1, 1)) if likely and rng.random() < likely else 0


def _quick(
    chain: tuple[int, ...],
    lines: list[str],
    rng: random.Random | None = None,
    likely: float = 0.0,
) -> int:
    """Works a chain out in one line, by operations that are so likely to slip."""
    running, result = _running(chain, rng, likely)
    lines.append(f"Quickly: {running}.")
    return result


def _check(chain: tuple[int, ...], result: int) -> str:
    """From the result back, each operation undone, to the first number or not."""
    first, *rest = chain
    running, back = _running((result, *(-step for step in reversed(rest))))
    found = "right" if back == first else f"not {first}"
    return f"Check: {running}, {found}."


def _running(
    chain: tuple[int, ...], rng: random.Random | None = None, likely: float = 0.0
) -> tuple[str, int]:
    """A chain with its running totals, such as "7 + 1 = 8 - 3 = 5", and the last."""
    total, *rest = chain
    words = [str(total)]
    for step in rest:
        slip = _slip(rng, likely)
        total += step + slip
        mark = _SLIPPED if slip else ""
        words.append(f"{'+-'[step < 0]} {abs(step)} = {mark}{total}")
    return " ".join(words), total
