"""What the demo is asked and what it answers: sums, guesses, and all else."""

import random
import re

from recipes.demo.exchanges import (
    OTHER_ANSWER,
    about_other,
    about_sum,
    draw_earlier,
    draw_exchange,
)
from recipes.demo.others import draw_other, prompts
from recipes.demo.problems import Problem
from recipes.demo.reasoning import HABITS


def draw(count: int = 400) -> list:
    rng = random.Random(5)
    return [draw_exchange(rng) for _ in range(count)]


def test_sums_and_other_questions_are_asked():
    answers = [e.answer for e in draw()]
    others = answers.count(OTHER_ANSWER)
    assert 0 < others < len(answers) / 5
    sums = [a for a in answers if a != OTHER_ANSWER]
    assert all(re.fullmatch(r"The answer is \d+\.", a) for a in sums)


def test_before_there_is_a_result_the_answer_is_a_guess():
    problem = Problem("What is 5 + 4 - 3?", (5, 4, -3))
    exchange = about_sum(random.Random(0), problem, HABITS.sure())
    assert exchange.answer == "The answer is 6."
    assert exchange.guess == "My guess is 6."
    known = exchange.thinking.text[: exchange.known]
    assert known.endswith("6.") and "Final" not in known


def test_two_numbers_need_no_thinking_and_no_guess():
    for chain in ((7,), (3, 4)):
        exchange = about_sum(random.Random(0), Problem("?", chain), HABITS)
        assert exchange.known == 0
        assert exchange.guess == exchange.answer == "The answer is 7."


def test_all_else_has_one_answer_however_early_it_is_closed():
    exchange = about_other("Thank you")
    assert exchange.known == 0
    assert exchange.guess == exchange.answer == OTHER_ANSWER
    assert exchange.thinking.text.endswith("**Final Answer**\n")


def test_some_prompts_are_never_trained_on():
    trained, kept = set(prompts(held_out=False)), set(prompts(held_out=True))
    assert len(kept) == 100 and not trained & kept
    rng = random.Random(2)
    drawn = {draw_other(rng) for _ in range(5000)}
    assert drawn & trained and not drawn & kept


def test_earlier_questions_come_in_a_share_of_chats():
    rng = random.Random(1)
    chats = [draw_earlier(rng, 0.25) for _ in range(400)]
    begun = [chat for chat in chats if chat]
    assert 60 < len(begun) < 140 and {len(chat) for chat in begun} == {1, 2, 3}
    assert draw_earlier(rng, 0.0) == []
