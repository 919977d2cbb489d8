"""The demo model's problems and the thinking that it is taught."""

import random
import re
import statistics

import pytest

from recipes.demo.pretrain import CLOSING
from recipes.demo.problems import (
    FEW_OPERANDS,
    LARGEST_TOTAL,
    OPERANDS,
    Problem,
    draw_trained,
    is_held_out,
    make_problem,
)
from recipes.demo.reasoning import (
    FINAL,
    HABITS,
    _check,
    end_of_first_result,
    write_tersest,
    write_thinking,
)


def draw(
    count: int, held_out: bool = False, is_story: bool = False, operands=OPERANDS
) -> list:
    rng = random.Random(7)
    return [make_problem(rng, held_out, is_story, operands) for _ in range(count)]


@pytest.mark.parametrize("operands", [FEW_OPERANDS, OPERANDS])
@pytest.mark.parametrize("is_story", [False, True])
def test_problems_ask_for_their_chain(is_story, operands):
    for problem in draw(300, is_story=is_story, operands=operands):
        numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
        assert numbers == [abs(step) for step in problem.chain]
        totals = [sum(problem.chain[: i + 1]) for i in range(len(problem.chain))]
        assert all(1 <= total <= LARGEST_TOTAL for total in totals)
        assert problem.answer == totals[-1]
        assert len(problem.chain) in operands


def test_chains_are_held_out_however_they_are_worded():
    trained = {p.chain for s in (False, True) for p in draw(2000, is_story=s)}
    tested = {p.chain for s in (False, True) for p in draw(300, True, s)}
    assert not trained & tested
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, tested))


def test_chains_too_few_to_keep_any_out_are_all_trained_on():
    assert not any(is_held_out((n, m)) for n in range(1, 10) for m in range(1, 10))
    rng = random.Random(3)
    lengths = {len(draw_trained(rng).chain) for _ in range(1000)}
    assert lengths == {*FEW_OPERANDS, *OPERANDS}


def test_the_same_seed_draws_the_same():
    assert draw(20) == draw(20)
    first = [write_thinking(random.Random(3), p) for p in draw(20)]
    assert first == [write_thinking(random.Random(3), p) for p in draw(20)]


def test_thinking_ends_at_the_right_answer():
    rng = random.Random(1)
    for problem in draw(500) + draw(100, operands=FEW_OPERANDS):
        for text in (write_thinking(rng, problem).text, write_tersest(problem)):
            *lines, final, nothing = text.split("\n")
            assert (final, nothing) == (FINAL, "")
            result = lines[-1]
            if result.startswith("Check: "):
                assert result.endswith(", right.")
                assert int(re.findall(r"\d+", result)[0]) == problem.answer
            else:
                assert int(re.findall(r"\d+", result)[-1]) == problem.answer


def test_lines_begin_with_what_they_do():
    rng = random.Random(1)
    words = {"It", "Next", "Quickly:", "Wait,", "Check:", "Again", "**Final"}
    seen = set()
    for problem in draw(500):
        lines = write_thinking(rng, problem).text.splitlines()
        seen |= {line.split()[0] for line in lines}
    assert seen == words


def operations(text: str) -> list[tuple[int, int, int]]:
    """All operations: what each comes to, rightly, and where its total stands."""
    found = []
    for line in re.finditer(r"^(Quickly|Check|Wait|Next).* = .*$", text, re.MULTILINE):
        begin = re.compile(r"\d+").search(text, line.start())
        total = int(begin[0])
        steps = re.compile(r" ([+-]) (\d+) = (-?\d+)")
        for step in steps.finditer(text, begin.start(), line.end()):
            right = total + int(step[1] + step[2])
            total = int(step[3])
            found.append((right, *step.span(3)))
    return found


def test_every_operation_is_right_but_those_that_are_said_to_slip():
    rng = random.Random(1)
    count = 0
    for problem in draw(500):
        text, slips = write_thinking(rng, problem)
        wrong = [(a, b) for right, a, b in operations(text) if right != int(text[a:b])]
        assert wrong == list(slips)
        count += len(slips)
    assert count > 100


def test_a_careful_slip_is_seen_at_once_and_a_terse_one_by_another_look():
    rng = random.Random(1)
    kinds = set()
    for problem in draw(500):
        text, slips = write_thinking(rng, problem)
        for start, end in slips if len(slips) == 1 else ():
            kind = text[: text.rindex(" ", 0, start)].rpartition("\n")[2].split()[0]
            after = text[end:].partition("\n")[2].split()[0]
            kinds.add((kind, after))
    assert kinds == {
        ("Next", "Wait,"),
        ("Quickly:", "Check:"),
        ("Quickly:", "Again"),
    }


def test_in_the_closing_stage_careful_lines_neither_slip_nor_doubt():
    rng = random.Random(1)
    slipped = 0
    for problem in draw(500):
        text, slips = write_thinking(rng, problem, CLOSING.habits)
        starts = [text.rindex("\n", 0, start) + 1 for start, _ in slips]
        assert all(text.startswith("Quickly", start) for start in starts)
        assert "Wait" not in text[: end_of_first_result(text)]
        slipped += len(slips)
    assert slipped > 100


def test_thinking_without_slips_is_right_throughout():
    rng = random.Random(1)
    for problem in draw(200):
        text, slips = write_thinking(rng, problem, HABITS.sure())
        assert slips == ()
        assert all(right == int(text[a:b]) for right, a, b in operations(text))


def test_a_wrong_result_is_never_the_end():
    wrong = Problem("", (5, 4, -3))
    assert _check(wrong.chain, 6) == "Check: 6 + 3 = 9 - 4 = 5, right."
    assert _check(wrong.chain, 7) == "Check: 7 + 3 = 10 - 4 = 6, not 5."


def test_lengths_vary_and_the_tersest_is_short():
    rng = random.Random(1)
    problems = draw(1000)
    lengths = [len(write_thinking(rng, p).text) for p in problems]
    low, _, high = statistics.quantiles(lengths, n=4)
    assert high > 2 * low
    tersest = statistics.mean(len(write_tersest(p)) for p in problems)
    assert 2.5 * tersest < statistics.mean(lengths)


def test_the_first_result_is_that_of_the_first_calculation():
    text = (
        "It is 5 + 4 - 3.\nNext 5 + 4 = 9, so 9 - 3.\nNext 9 - 3 = 6, so 6.\n"
        "Again 5 + 4 - 3.\nQuickly: 5 + 4 = 9 - 3 = 6.\n**Final Answer**\n"
    )
    assert text[: end_of_first_result(text)].endswith("so 6.")
    terse = write_tersest(Problem("", (5, 4, -3)))
    assert terse[end_of_first_result(terse) :] == f"\n{FINAL}\n"
    single = write_tersest(Problem("", (5,)))
    assert single[: end_of_first_result(single)] == "It is 5."
