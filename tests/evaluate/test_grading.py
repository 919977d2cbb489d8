"""Answers are graded as a reader would, and what cannot be graded says why."""

import json
import sys
import threading
from pathlib import Path

import pytest

from mlx_budget.evaluate import comparison, mathematics
from mlx_budget.evaluate.grading import answer_of, check_available, grade
from mlx_budget.installing import install_command

pytest.importorskip("math_verify")

PAIRS = Path(__file__).with_name("grading_pairs.jsonl")
NO_LETTER = "no letter of a choice in the answer"
ENDINGS = ("it is", "it must be", "I choose", "I pick", "I select", "I go with")
UNPARSED = "nothing that math-verify can parse in the answer"


def told(result):
    """What a grade says, but for its rule."""
    return result.correct, result.extracted, result.problem


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("18", "18"),
        ("The answer is 18.", "18"),
        ("12 of 30 are left. She has 18 apples", "18"),
        ("Answer: **18** apples.", "18"),
        ("#### 18", "18"),
        ("x = 18", "18"),
        (r"\boxed{18}", "18"),
        (r"\boxed {18}", "18"),
        (r"\[ \boxed{18.} \]", "18"),
        (r"\boxed{\mathbf{0.5}}", "1/2"),
        (r"\boxed{18}, \boxed{18}", "18"),
        (r"\boxed{18} since 20 - 3 + 1 = 18 and 7 are odd.", "18"),
        # Thousands, currencies, units, on either side
        ("She earns $1,234.", "1234"),
        (r"She earns \$1,234 a day.", "1234"),
        (r"\boxed{€1,234}", "1234"),
        (r"\boxed{1\,234}", "1,234"),
        (r"\boxed{1234 dollars}", "1,234"),
        ("1234", r"\$1,234"),
        ("1234", "1,234 dollars."),
        ("1234.50", "$1,234.5"),
        (r"\boxed{5.4}", r"5.4 \text{ cents}"),
        # One number written in two ways
        ("0.75", r"\frac{3}{4}"),
        (r"\boxed{\dfrac34}", "0.75"),
        ("3/4", r"\frac{6}{8}"),
        ("50%", "0.5"),
        ("-5", "-5.0"),
        ("The result is −5.", "-5"),
        (r"-\frac{35}{9}", "-35/9"),
        # More than numbers
        ("(1, 2)", "(1,2)"),
        (r"\boxed{2,1}", "1,2"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1,2"),
        (r"\boxed{5-p+x}", "x - p + 5"),
        (r"\boxed{\{1,2\}}", r"\{2,1\}"),
        (r"\boxed{even}", r"\text{even}"),
        ("paris.", "Paris"),
        (r"$90^\circ$", r"90^\circ"),
        ("18", r"\boxed{18}"),
    ],
)
def test_what_is_equal_is_right(answer, reference):
    result = grade(answer, reference)
    assert (result.correct, result.problem) == (True, None)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "120"),
        ("120", "12"),
        (r"\boxed{12}", "120"),
        ("5", "-5"),
        ("0.33", r"\frac{1}{3}"),
        ("(2, 1)", "(1,2)"),
        ("1,234", "1"),
        ("18 was too much. It is 17", "18"),
        # The last box is the answer, and two answers are not one.
        (r"At first \boxed{18}, then rather \boxed{17}.", "18"),
        (r"\boxed{18} or \boxed{17}", "18"),
        (r"\boxed{17}. I also thought of 18", "18"),
        (r"\boxed{5 million}", "5"),
        (r"\boxed{2 x}", "2"),
    ],
)
def test_what_differs_is_wrong_without_a_problem(answer, reference):
    result = grade(answer, reference)
    assert (result.correct, result.problem) == (False, None)


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [
        (r"First 3, hence $\boxed{\frac{3}{4}}$.", r"\frac{3}{4}"),
        (r"\boxed{1,234 dollars}", "1,234 dollars"),
        ("It is 1,234 in all.", "1,234"),
        ("x = 5", "x = 5"),
        (r"\boxed{x = \boxed{5}}", "5"),
    ],
)
def test_it_says_what_was_taken_for_the_answer(answer, extracted):
    assert told(grade(answer, "7")) == (False, extracted, None)


@pytest.mark.parametrize(
    ("answer", "extracted", "problem"),
    [
        (None, None, "no answer: thinking was never closed"),
        (" \n", None, "no answer: nothing follows the thinking"),
        ("I do not know.", None, UNPARSED),
        (r"\boxed{(}", "(", UNPARSED),
        (r"\boxed{5\{}", r"5\{", UNPARSED),
        (r"So 7 + 1 is \boxed{8", None, "the answer has a box that is never closed"),
    ],
)
def test_an_answer_that_cannot_be_graded_says_why(answer, extracted, problem):
    assert told(grade(answer, "8")) == (False, extracted, problem)


@pytest.mark.parametrize("reference", ["(", ""])
def test_a_reference_that_cannot_be_parsed_says_so(reference):
    problem = f"the reference answer {reference!r} cannot be parsed"
    assert told(grade("8", reference)) == (False, "8", problem)


def test_a_reference_with_an_open_box_says_so():
    problem = "the reference answer has a box that is never closed"
    assert told(grade("8", r"\boxed{8")) == (False, None, problem)


def test_the_rule_that_decided_is_told():
    rules = {
        ("18", "18"): "text",
        (r"\boxed{2 \frac12}", "2.5"): "number",
        (r"\boxed{x(x+1)}", "x^2+x"): "mathematics",
        ("3 or 4", "3"): "several",
        (r"\boxed{2,1}", "1,2"): "list",
        (r"\boxed{\{1,2\}}", r"\{2,1\}"): "set",
        (r"\boxed{\{1,2\}}", "(1,2)"): "brackets",
        (r"\boxed{x > 3}", r"(3,\infty)"): "tuple",
        ("3 to 5", "5"): "range",
        ("at least 5", "5"): "bound",
        ("not 5", "5"): "negation",
        (None, "5"): "no answer",
    }
    assert {pair: grade(*pair).rule for pair in rules} == rules
    assert grade("B", "B", choices=True).rule == "letter"


def test_pairs_of_all_families_are_graded_as_a_reader_would():
    lines = PAIRS.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) > 500
    wrong = [
        pair
        for pair in pairs
        if grade(
            pair["answer"], pair["reference"], choices=pair["family"] == "letters"
        ).correct
        != pair["correct"]
    ]
    assert wrong == []


def test_failures_of_math_verify_are_problems(monkeypatch):
    def fail(*_):
        raise mathematics.CannotCompare("math-verify: RecursionError")

    monkeypatch.setattr(comparison, "compare", fail)
    problem = (
        "the answer cannot be compared with the reference (math-verify: RecursionError)"
    )
    result = grade(r"\boxed{x+y}", "y+x+0")
    assert told(result) == (False, "x+y", problem)


@pytest.mark.parametrize("formula", ["9^{9^{9^9}}", "10^{10^{10}}"])
def test_a_number_beyond_computing_ends_in_time_in_any_thread(
    monkeypatch, capfd, formula
):
    monkeypatch.setattr(mathematics, "TIMEOUT", 0.3)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(grade(rf"\boxed{{{formula}}}", "5"))
    )
    thread.start()
    thread.join(60)
    problem = "the answer cannot be compared with the reference"
    late = f"{problem} (math-verify: no answer within 0.3 seconds)"
    assert [told(result) for result in results] == [(False, formula, late)]
    # What came to nothing leaves no process behind, and the next answer is graded.
    assert mathematics._worker._process is None
    monkeypatch.undo()
    assert grade(r"\boxed{x+y}", "y+x").correct
    assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_is_replaced():
    assert grade(r"\boxed{x+y}", "y+x").correct
    process = mathematics._worker._process
    process.kill()
    result = grade(r"\boxed{x+2y}", "2y+x")
    assert result.problem.endswith("(math-verify: it stopped)")
    assert grade(r"\boxed{x+2y}", "2y+x").correct
    mathematics.close()
    assert mathematics._worker._process is None


def test_a_formula_that_is_too_long_is_not_compared():
    result = grade(rf"\boxed{{{'x+' * 5000}1}}", "5")
    assert result.problem.endswith("(a formula has more than 5,000 characters)")


def test_without_math_verify_it_says_what_to_install(monkeypatch):
    check_available()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    message = f"Grading needs math-verify: `{install_command('eval')}`."
    for ask in (check_available, lambda: grade("x + 1", "1 + x")):
        with pytest.raises(ValueError) as e:
            ask()
        assert str(e.value) == message
    # Letters and numbers do not need it.
    assert grade("0.5", "1/2").correct
    assert grade("C", "C", choices=True).correct


def test_the_answer_is_what_follows_the_thinking():
    assert answer_of("<think>18</think>\n7", "</think>", False) == "\n7"
    assert answer_of("18</think>7 </think> 8", "</think>", False) == "7 </think> 8"
    assert answer_of("7", "</think>", False) == "7"
    assert answer_of("18</think>", "</think>", False) == ""
    assert answer_of("<think>18", "</think>", True) is None


@pytest.mark.parametrize("answer", ["\\boxed{1e5000}", "The answer is 1e9999."])
@pytest.mark.parametrize("reference", ["2\\pi", "3", "x + 1"])
def test_numbers_of_any_size_are_no_error(answer, reference):
    assert not grade(answer, reference).correct


@pytest.mark.parametrize(
    "marker, opened",
    [
        ("\\boxed{", "\\boxed{"),
        ("**Final Answer**\n$\\fbox {", "\\fbox {"),
        ("\\boxed{}", ""),
        ("</think>", ""),
    ],
)
def test_a_box_that_the_marker_opens_is_of_the_answer(marker, opened):
    assert answer_of(f"18{marker}7}} of 9", marker, False) == f"{opened}7}} of 9"
    answer = answer_of(f"18{marker}7}}\n\nSo 9 pears", "\\boxed{", False)
    if opened == "\\boxed{":
        assert grade(answer, "7").extracted == "7"


def test_thinking_is_never_graded():
    for reply, is_thinking in ((r"\boxed{18}</think>7", False), (r"\boxed{18}", True)):
        answer = answer_of(reply, "</think>", is_thinking)
        assert not grade(answer, "18").correct


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (r"\boxed{C}", "C"),
        (r"\[\boxed{\text{(C)}}\]", "C"),
        (r"\boxed{C. Paris}", "C"),
        (r"\boxed{c}", "C"),
        (r"The answer is A. So \boxed{C}. Not (B).", "C"),
        (r"\boxed{12}. The answer is C.", "C"),
        ("The answer is (C).", "C"),
        ("The answer is C because A is wrong.", "C"),
        ("The answer is A because it is.", "A"),
        ("The answer to this is **C**, not (D).", "C"),
        (r"The answer is $\text{C}$.", "C"),
        ("The answer is not A but is C.", "C"),
        ("Answer: C", "C"),
        ("answer: c", "C"),
        ("**Answer:** C", "C"),
        ("The correct answer is:\n\n**C) Paris**", "C"),
        ("The correct option is C", "C"),
        ("Answer: option C", "C"),
        ("Answer: A\nWait.\nAnswer: C", "C"),
        ("The answer is C. Then option\n(A)", "C"),
        ("C", "C"),
        ("c", "C"),
        ("(C)", "C"),
        ("C.", "C"),
        ("**C**", "C"),
        ("Let us see.\n\nC", "C"),
        ("(A) is wrong, (C) is right", "C"),
        ("A dog, so (C).", "C"),
        ("C) Paris", "C"),
        ("C. Paris is the capital.\n\nIt always was.", "C"),
        *((f"A bit of thought: {verb} C.", "C") for verb in ENDINGS),
    ],
)
def test_the_letter_that_the_answer_settles_on(answer, letter):
    assert told(grade(answer, letter, choices=True)) == (True, letter, None)
    other = chr(ord(letter) + 1)
    assert told(grade(answer, other, choices=True)) == (False, letter, None)


@pytest.mark.parametrize(
    "answer",
    [
        "A dog has four legs.",
        "The answer is A dog.",
        "The answer is I think unknown.",
        "I think so",
        "Vitamin C helps.",
        "f(X) = 3",
        "Answer: a dog",
        "A. is red\nB. is blue",
        r"\boxed{12}",
    ],
)
def test_words_and_lists_settle_on_no_letter(answer):
    for letter in "ABCIX":
        assert told(grade(answer, letter, choices=True)) == (False, None, NO_LETTER)


def test_several_letters_and_denied_ones_are_no_answer():
    several = "the answer names several letters"
    denied = "the answer only says which letter it is not"
    assert told(grade("It is B or C", "C", choices=True)) == (False, None, NO_LETTER)
    for answer in ("The answer is B or C", r"\boxed{B/C}", "**B** and **C**"):
        assert told(grade(answer, "C", choices=True)) == (False, None, several)
    assert told(grade("The answer is not C.", "C", choices=True)) == (
        False,
        None,
        denied,
    )


@pytest.mark.parametrize("reference", ["12", "c", "AB", ""])
def test_the_reference_of_a_choice_is_a_letter(reference):
    problem = f"the reference answer {reference!r} is not a letter"
    assert told(grade("C", reference, choices=True)) == (False, None, problem)


def test_a_choice_needs_an_answer_too():
    problem = "no answer: thinking was never closed"
    assert told(grade(None, "C", choices=True)) == (False, None, problem)
