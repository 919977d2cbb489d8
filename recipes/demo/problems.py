"""The demo model's small world: chains of additions and subtractions.

Problems are bare ("What is 7 + 1 + 5 - 9 + 8?") or short stories. Operands are single
digits and no running total leaves 1 to 20: the length of a chain makes a problem hard,
not its digits. Those that are measured have four to eight numbers; people ask for
shorter ones as well. Knows nothing of how problems are solved.
"""

import hashlib
import random
from dataclasses import dataclass

LARGEST_TOTAL = 20
OPERANDS = range(4, 9)
FEW_OPERANDS = range(1, 4)
# Of all chains, one in so many is kept out of training, however it is worded. There are
# too few of the shortest to keep any out.
_HELD_OUT = 20
_SHORTEST_HELD_OUT = 3

# How often a problem that is trained on is a story.
_STORIES = 0.5
# How often it has few numbers.
_FEW = 0.15
# How often a bare problem is written without spaces.
_TIGHT = 0.15

_BARE = (
    "What is {}?",
    "Calculate {}.",
    "Work out {}.",
    "How much is {}?",
    "{} = ?",
    "Find {}.",
    "Please compute {}.",
    "{}",
)
_NAMES = (
    "Mia",
    "Tom",
    "Anna",
    "Ben",
    "Lena",
    "Sam",
    "Nora",
    "Paul",
    "Ella",
    "Max",
    "Ida",
    "Leo",
)
_THINGS = (
    "shells",
    "apples",
    "stamps",
    "coins",
    "marbles",
    "books",
    "cards",
    "pens",
    "eggs",
    "stones",
)
_STARTS = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "In the morning {name} has {n} {things}.",
    "There are {n} {things} in the box of {name}.",
)
_GAINS = (
    "{name} finds {n} more.",
    "Then {name} buys {n}.",
    "A friend brings {n}.",
    "{n} more are added.",
    "{name} gets {n} from a neighbour.",
    "Later {name} wins {n}.",
)
_LOSSES = (
    "{name} gives away {n}.",
    "Then {name} loses {n}.",
    "{n} are broken.",
    "{name} sells {n}.",
    "A friend takes {n}.",
    "Later {n} are gone.",
)
_ENDS = (
    "How many {things} are there now?",
    "How many {things} does {name} have in the end?",
    "How many {things} are left?",
    "What is the number of {things} now?",
)


@dataclass(frozen=True)
class Problem:
    """A question and the chain that answers it.

    Attributes:
        question: The question in words.
        chain: Signed operands; the first is above 0.
    """

    question: str
    chain: tuple[int, ...]

    @property
    def answer(self) -> int:
        """The sum of the chain."""
        return sum(self.chain)


def make_problem(
    rng: random.Random, held_out: bool, is_story: bool, operands: range = OPERANDS
) -> Problem:
    """Draws a problem.

    Args:
        rng (random.Random): Where chance comes from.
        held_out (bool): Whether its chain is one of those that are never trained on.
        is_story (bool): Whether it is a story.
        operands (range): How many numbers it may have.
    """
    while is_held_out(chain := _chain(rng, operands)) != held_out:
        pass
    if not is_story:
        asked = expression(chain)
        if rng.random() < _TIGHT:
            asked = asked.replace(" ", "")
        return Problem(rng.choice(_BARE).format(asked), chain)
    words = {"name": rng.choice(_NAMES), "things": rng.choice(_THINGS)}
    sentences = [rng.choice(_STARTS).format(n=chain[0], **words)]
    for step in chain[1:]:
        kind = _GAINS if step > 0 else _LOSSES
        sentences.append(rng.choice(kind).format(n=abs(step), **words))
    sentences.append(rng.choice(_ENDS).format(**words))
    return Problem(" ".join(sentences), chain)


def draw_trained(rng: random.Random) -> Problem:
    """A problem of the kind that is trained on, as often a story as not."""
    operands = FEW_OPERANDS if rng.random() < _FEW else OPERANDS
    return make_problem(rng, False, rng.random() < _STORIES, operands)


def is_held_out(chain: tuple[int, ...]) -> bool:
    """Whether a chain is kept out of training."""
    if len(chain) < _SHORTEST_HELD_OUT:
        return False
    digest = hashlib.sha256(expression(chain).encode()).digest()
    return int.from_bytes(digest[:4], "big") % _HELD_OUT == 0


def expression(chain: tuple[int, ...]) -> str:
    """A chain as text, such as "7 + 1 - 3"."""
    first, *rest = chain
    return " ".join([str(first), *(f"{'+-'[s < 0]} {abs(s)}" for s in rest)])


def _chain(rng: random.Random, operands: range) -> tuple[int, ...]:
    chain = [rng.randint(1, 9)]
    length = rng.choice(operands)
    while len(chain) < length:
        step = rng.randint(1, 9) * rng.choice((1, -1))
        if 1 <= sum(chain) + step <= LARGEST_TOTAL:
            chain.append(step)
    return tuple(chain)
