"""Loops: exact cycles that are long enough are found at once, and nothing else is."""

import random
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from mlx_budget import load
from mlx_budget.engine.loops import LONGEST, LoopFinder, Repetition

NONE, LOOP, STUCK = Repetition


def verdicts(tokens: Iterable[int]) -> Iterator[Repetition]:
    """After each of the tokens."""
    finder = LoopFinder()
    for token in tokens:
        finder.take(token)
        yield finder.repetition


def first(tokens: Iterable[int], wanted: Repetition) -> int | None:
    """After how many tokens it is said, if at all."""
    found = (i for i, verdict in enumerate(verdicts(tokens), 1) if verdict is wanted)
    return next(found, None)


@pytest.fixture(scope="module")
def encode():
    _, tokenizer, _ = load("demo")
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("period", "different", "copies"),
    [
        (1, 1, 1600),
        (2, 2, 400),
        (5, 5, 64),
        (8, 8, 25),
        (10, 10, 20),
        (20, 20, 10),
        (50, 50, 4),
        (300, 300, 4),
        (20, 10, 20),
        (40, 4, 100),
    ],
)
def test_a_cycle_is_a_loop_after_so_many_copies(period, different, copies):
    """Behind a text that has nothing to do with it, and whatever comes next."""
    text = list(range(1000, 1100))
    cycle = [*range(different), *[0] * (period - different)]
    tokens = text + cycle * (2 * copies)
    assert first(tokens, LOOP) == len(text) + copies * period
    stuck = first(tokens, STUCK)
    assert stuck == len(text) + -(-3 * copies * period // 2)
    said = list(verdicts([*tokens[:stuck], 7777, 7778]))
    assert said[-3:] == [STUCK, NONE, NONE]


def test_three_times_the_same_are_none_however_long():
    assert first(list(range(600)) * 3, LOOP) is None


def test_a_cycle_may_hold_shorter_ones():
    part, other = list(range(30)), list(range(100, 130))
    cycle = [*part, *part, *other, *part, *other, 7]
    assert first(cycle * 5, LOOP) == 4 * len(cycle)


def test_a_cycle_that_differs_by_one_token_is_none():
    cycle = list(range(40))
    tokens = [t for i in range(30) for t in (*cycle, 1000 + i)]
    assert first(tokens, LOOP) is None


def test_a_cycle_beyond_the_longest_is_not_looked_for():
    assert first(list(range(LONGEST + 1)) * 5, LOOP) is None
    assert first(list(range(LONGEST)) * 5, LOOP) == 4 * LONGEST


def by_definition(tokens: list[int]) -> Repetition:
    """What is said of a text, by comparing it with itself at every distance."""
    array, most = np.array(tokens), 0.0
    for period in range(1, len(tokens) // 4 + 1):
        differs = array[period:][::-1] != array[:-period][::-1]
        run = int(np.argmax(differs)) if differs.any() else len(differs)
        copies, different = run / period + 1, len(set(tokens[-period:]))
        needed = max(4, 200 / different, 1600 / different**2)
        most = max(most, copies / needed if copies >= 4 else 0)
    return NONE if most < 1 else LOOP if most < 1.5 else STUCK


@pytest.mark.parametrize("seed", range(6))
def test_what_is_said_is_what_the_definition_says(seed):
    """On texts of words, cycles, and cycles of cycles, written by chance."""
    rng = random.Random(seed)
    words = [[rng.randrange(60) for _ in range(rng.randint(3, 20))] for _ in range(6)]
    tokens: list[int] = []
    while len(tokens) < 900:
        chosen = rng.choices(words, k=rng.randint(1, 9))
        piece = [token for word in chosen for token in word]
        tokens += (piece * rng.choice([1, 1, 2, 6, 30]))[:400]
    said = list(verdicts(tokens))
    ends = [i for i in range(len(tokens)) if said[i] is not NONE or i % 50 == 0]
    for i in ends[:: max(1, len(ends) // 60)]:
        assert said[i] is by_definition(tokens[: i + 1]), i


ORDINARY = {
    "dots": "...\n" * 100,
    "blank lines": "\n" * 200,
    "closing braces": "}\n" * 100,
    "a rule": "-" * 500 + "\n",
    "an empty table": "| | | |\n" * 60,
    "the head of a table": "| --- | --- |\n" * 60,
    "equal rows": "| a | b | c |\n" * 25,
    "a table": "".join(f"| {i} | {i * i} | {i % 3} |\n" for i in range(300)),
    "a numbered list": "".join(f"{i}. Then comes the next step.\n" for i in range(200)),
    "similar lines": "".join(f"- {c} is a letter\n" for c in "abcdefghij" * 8),
    "a grid": (". " * 20 + "\n") * 20,
    "zeros": "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0],\n" * 20,
    "a power of ten": "1" + "0" * 300,
    "one seventh": "0." + "142857" * 30,
    "code": 'if x > 1:\n    print("a")\n' * 8,
    "a refrain": "Row, row, row your boat, gently down the stream.\n" * 3,
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_texts_are_no_loops(encode, name):
    assert first(encode(f"Here it is:\n\n{ORDINARY[name]}\nSo."), LOOP) is None


def test_sources_and_their_documentation_are_no_loops(encode):
    from pathlib import Path

    import mlx_budget

    folder = Path(mlx_budget.__file__).parent
    files = [*sorted(folder.glob("engine/*.py")), *sorted(folder.glob("demo/*.md"))]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert first(encode(text), LOOP) is None


@pytest.mark.parametrize(
    "text",
    [
        "Wait, let me check that again.\n",
        "So the answer is 12. Hmm, but is it?\n\nLet me think about it once more. ",
        "7 + 5 = 12, so 12 - 9 = 3.\nAgain: ",
        "No, that is not right, because it is odd. ",
    ],
)
def test_lines_that_come_again_and_again_are_a_loop(encode, text):
    """Within some 250 tokens, with a line before and in the middle of one."""
    tokens = encode("Mia has 7 shells.\n" + text * 60)
    found = first(tokens, LOOP)
    assert found is not None and found < 300
    assert first(tokens, STUCK) < 1.5 * 300


class Counted(int):
    """A token that counts how often it is compared or looked up."""

    steps = 0

    def __eq__(self, other: object) -> bool:
        Counted.steps += 1
        return int(self) == other

    def __hash__(self) -> int:
        Counted.steps += 1
        return int.__hash__(self)


def test_a_token_costs_the_same_however_long_the_text_is():
    """Of any kind: chance, a cycle, and many cycles at once."""
    rng = random.Random(1)
    poor = [t for _ in range(400) for t in ([1] * rng.randint(9, 14)) + [2] * 12]
    for tokens in ([rng.randrange(30) for _ in range(8000)], [*range(50)] * 160, poor):
        finder, steps = LoopFinder(), []
        for part in range(4):
            Counted.steps = 0
            for token in tokens[2000 * part : 2000 * (part + 1)]:
                finder.take(Counted(token))
                assert finder.repetition in Repetition
            steps.append(Counted.steps / 2000)
        assert max(steps) < 80
        # By rescanning, the last part would take 7 times as many as the first.
        assert steps[3] < 2 * steps[1]
