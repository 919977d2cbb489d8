"""Plans as models write them: read where they can be, mended and named where not."""

import json

import pytest

from mlx_budget.engine.answers import AnswerFormat
from mlx_budget.planning.plans import (
    PLAN_SCHEMA,
    UNREAD,
    Part,
    Plan,
    plan_from,
    rate,
    rating_schema,
    read_parts,
)

QUESTION = "How many primes are below 30?"
TWO = {
    "parts": [
        {"question": "Which are odd?", "hint": "try 3 first"},
        {"question": "And 2?"},
    ]
}


def written(parts: int) -> str:
    return json.dumps({"parts": [{"question": f"q{i}"} for i in range(parts)]})


def rated(text: str | None, parts: int = 2):
    return rate([Part(f"q{i}") for i in range(parts)], [], text)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TWO),
        f"  {json.dumps(TWO, indent=2)}\n",
        f"Here it is:\n```json\n{json.dumps(TWO)}\n```\nGood luck!",
    ],
)
def test_a_plan_is_read_bare_or_in_a_fence(text):
    parts, problems = read_parts(text, QUESTION)
    assert problems == []
    assert [(p.question, p.hint) for p in parts] == [
        ("Which are odd?", "try 3 first"),
        ("And 2?", ""),
    ]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "1. Which are odd? 2. And 2?",
        '{"parts": [',
        "[" * 100_000,
        f"```json\n{json.dumps(TWO)}\n```\n```json\n{json.dumps(TWO)}\n```",
        "[]",
        '"text"',
        "{}",
        '{"parts": []}',
        '{"parts": "two"}',
        '{"parts": [{}, 3, null, {"question": " "}]}',
    ],
)
def test_what_is_no_plan_leaves_the_question_itself(text):
    parts, problems = read_parts(text, QUESTION)
    assert parts == [Part(QUESTION)]
    assert UNREAD & {*problems}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_to_five_parts_are_kept(count):
    parts, problems = read_parts(written(count), QUESTION)
    assert (len(parts), problems) == (count, [])


def test_the_last_of_five_parts_holds_all_that_are_more():
    parts, problems = read_parts(written(7), QUESTION)
    assert [p.question for p in parts] == ["q0", "q1", "q2", "q3", "q4 q5 q6"]
    assert problems == ["too many parts"]


def test_a_part_that_is_none_is_left_out_and_named():
    text = json.dumps({"parts": [{"question": "q0"}, {"hint": "?"}]})
    assert read_parts(text, QUESTION) == ([Part("q0")], ["a part that is none"])


def test_parts_are_single_lines():
    text = json.dumps({"parts": [{"question": "a\nb", "hint": " c\n\n d "}, "e\tf"]})
    parts, _ = read_parts(text, QUESTION)
    assert [(p.question, p.hint) for p in parts] == [("a b", "c d"), ("e f", "")]


def test_half_of_a_character_is_mended():
    parts, problems = read_parts('{"parts": ["a \\ud800 b"]}', QUESTION)
    assert (parts, problems) == ([Part("a ? b")], [])


def test_an_empty_rating_lacks_both():
    assert len(rated("{}").problems) == 2


def test_a_question_in_lines_is_the_same_plan_when_it_is_read_again():
    parts, problems = read_parts("no", "Which?\n\nA. 1\nB. 2")
    plan = Plan(tuple(parts), problems=tuple(problems))
    assert plan_from(plan.as_dict()).parts == plan.parts


def test_a_rating_gives_difficulty_and_credits():
    plan = rated('{"difficulty": 2, "credits": [70, 30]}')
    assert (plan.difficulty, [p.credits for p in plan.parts]) == (2, [70, 30])
    assert plan.problems == ()


@pytest.mark.parametrize(
    ("text", "difficulty", "credits", "problem"),
    [
        ("no", 3, [50, 50], "rating is not JSON"),
        (None, 3, [50, 50], "rating is not JSON"),
        ("[1, 2]", 3, [50, 50], "rating is not JSON"),
        ('{"difficulty": 9, "credits": [70, 30]}', 3, [70, 30], "no difficulty"),
        ('{"difficulty": true, "credits": [70, 30]}', 3, [70, 30], "no difficulty"),
        ('{"credits": [70, 30]}', 3, [70, 30], "no difficulty"),
        ('{"difficulty": 4, "credits": [30, 10]}', 4, [75, 25], "sum to 100"),
        ('{"difficulty": 4, "credits": [100, 100]}', 4, [50, 50], "sum to 100"),
        ('{"difficulty": 4, "credits": [100]}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4, "credits": [60, 30, 10]}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4, "credits": [150, -50]}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4, "credits": [0, 0]}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4, "credits": ["70", "30"]}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4, "credits": [NaN, 1]}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4}', 4, [50, 50], "no credits"),
        ('{"difficulty": 4, "credits": [1e308, 1e308]}', 4, [50, 50], "no credits"),
        (
            f'{{"difficulty": 4, "credits": [1{"0" * 400}, 1]}}',
            4,
            [50, 50],
            "no credits",
        ),
    ],
)
def test_a_rating_is_mended_and_the_fault_named(text, difficulty, credits, problem):
    plan = rated(text)
    assert plan.difficulty == difficulty
    assert [p.credits for p in plan.parts] == credits
    assert len(plan.problems) == 1
    assert problem in plan.problems[0]


def test_a_single_part_is_worth_all_whatever_it_was_given():
    plan = rated('{"difficulty": 1, "credits": [7]}', parts=1)
    assert (plan.parts[0].credits, plan.problems) == (100, ())


def test_a_plan_comes_back_from_what_is_shown_of_it():
    plan = rated('{"difficulty": 5, "credits": [70, 30]}')
    assert plan_from(json.loads(json.dumps(plan.as_dict()))) == plan


def test_a_users_plan_needs_no_credits():
    plan = plan_from({"parts": ["a", {"question": "b", "hint": "c"}]})
    assert [(p.question, p.hint, p.credits) for p in plan.parts] == [
        ("a", "", 50),
        ("b", "c", 50),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "JSON object with"),
        ({"parts": []}, "1 to 5"),
        ({"parts": ["a"] * 6}, "1 to 5"),
        ({"parts": ["a", {"hint": "b"}]}, "Part 2"),
        ({"parts": ["a"], "difficulty": 0}, "difficulty"),
        ({"parts": [{"question": "a", "credits": 1}, "b"]}, "credits"),
        ({"parts": [{"question": "a", "credits": -1}]}, "credits"),
        ({"parts": [{"question": "a", "credits": 10**400}]}, "credits"),
        ({"parts": [{"question": "a", "credits": 1e308}] * 2}, "credits"),
        ({"parts": ["a", {"question": "b", "hint": "\ud800"}]}, "Part 2 .* half of"),
    ],
)
def test_a_users_plan_that_is_wrong_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        plan_from(value)


@pytest.mark.parametrize("schema", [PLAN_SCHEMA, rating_schema(1), rating_schema(5)])
def test_the_schemas_can_be_honoured(schema):
    assert not AnswerFormat(schema).is_free
