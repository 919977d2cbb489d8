"""The demo model's problems and the thinking that it is taught."""

import random
import re
import statistics

import pytest

from mlx_budget.demo.problems import LARGEST_TOTAL, is_held_out, make_problem
from mlx_budget.demo.reasoning import FINAL, write_tersest, write_thinking

STEP = re.compile(r"^Step (\d+) ([+-]) (\d+) = (\d+), so", re.MULTILINE)


def draw(count: int, held_out: bool = False, is_story: bool = False) -> list:
    rng = random.Random(7)
    return [make_problem(rng, held_out, is_story) for _ in range(count)]


@pytest.mark.parametrize("is_story", [False, True])
def test_problems_ask_for_their_chain(is_story):
    for problem in draw(300, is_story=is_story):
        numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
        assert numbers == [abs(step) for step in problem.chain]
        totals = [sum(problem.chain[: i + 1]) for i in range(len(problem.chain))]
        assert all(0 <= total <= LARGEST_TOTAL for total in totals)
        assert problem.answer == totals[-1]
        assert 4 <= len(problem.chain) <= 8


def test_chains_are_held_out_however_they_are_worded():
    trained = {p.chain for s in (False, True) for p in draw(2000, is_story=s)}
    tested = {p.chain for s in (False, True) for p in draw(300, True, s)}
    assert not trained & tested
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, tested))


def test_the_same_seed_draws_the_same():
    assert draw(20) == draw(20)
    first, second = ([write_thinking(random.Random(3), p) for p in draw(20)],) * 2
    assert first == second


def test_thinking_ends_at_the_right_answer():
    rng = random.Random(1)
    for problem in draw(500):
        for text in (write_thinking(rng, problem), write_tersest(problem)):
            *lines, final, nothing = text.split("\n")
            assert (final, nothing) == (FINAL, "")
            last = int(re.findall(r"\d+", lines[-1])[-1])
            assert last == problem.answer


def test_lines_begin_with_what_they_do():
    rng = random.Random(1)
    words = {"It", "Step", "Quick", "Wait", "So", "Check", "Again", "**Final"}
    seen = set()
    for problem in draw(500):
        seen |= {t.split()[0] for t in write_thinking(rng, problem).split("\n")[:-1]}
    assert seen == words


def test_few_steps_slip():
    rng = random.Random(1)
    texts = "".join(write_thinking(rng, p) for p in draw(1000))
    steps = STEP.findall(texts)
    wrong = sum(int(a) + int(sign + b) != int(c) for a, sign, b, c in steps)
    assert 0.01 < wrong / len(steps) < 0.05


def test_lengths_vary_and_the_tersest_is_short():
    rng = random.Random(1)
    problems = draw(1000)
    lengths = [len(write_thinking(rng, p)) for p in problems]
    low, _, high = statistics.quantiles(lengths, n=4)
    assert high > 2 * low
    tersest = statistics.mean(len(write_tersest(p)) for p in problems)
    assert 2.5 * tersest < statistics.mean(lengths)
