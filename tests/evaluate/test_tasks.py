"""Tasks are read from files and from the Hub, and what is wrong in them is one line.

The Hub's client reads its address when it is imported: that test runs it in a child
process, against a fake Hub on loopback.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fake_hub import FakeHub
from mlx_budget.evaluate.choice_tasks import read_gpqa, read_medmcqa, read_medqa
from mlx_budget.evaluate.tasks import TASKS, Problem, Task, load_task

MATHS = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER = "Answer with the letter of the right choice."
GOOD = {"question": "1 + 1?", "answer": "2"}
COLOURS = {"question": "Which is it?", "choices": ["red", "blue"], "answer": "B"}

SYSTEM = {"role": "system", "content": "Be terse."}
USER, REPLY = (
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
)

LOAD = """
import json, sys
from dataclasses import asdict
from mlx_budget.evaluate.choice_tasks import read_gpqa, read_medmcqa, read_medqa
from mlx_budget.evaluate.tasks import load_task
for arguments in map(json.loads, sys.argv[1:]):
    try:
        task = asdict(load_task(*arguments))
        assert task.pop("grader") is None
        print(json.dumps(task))
    except ValueError as e:
        print(f"ValueError: {e}")
"""


@pytest.fixture
def write(tmp_path):
    """Writes problems.jsonl, a line for each row; texts are lines as they are."""

    def write(*rows: object) -> Path:
        file = tmp_path / "problems.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines))
        return file

    return write


def message_of(*arguments, **options) -> str:
    with pytest.raises(ValueError) as e:
        load_task(*arguments, **options)
    return str(e.value)


def test_a_file_is_problems_in_their_order(write):
    file = write(GOOD, {"question": " Why?\n", "answer": " 3 ", "id": "x"}, GOOD)
    problems = (
        Problem("0", "1 + 1?", "2", False),
        Problem("x", "Why?", "3", False),
        Problem("2", "1 + 1?", "2", False),
    )
    assert load_task(None, file) == Task("problems", problems, "")


@pytest.mark.parametrize("field", ["question", "problem", "prompt"])
def test_the_question_has_one_of_three_names(write, field):
    (problem,) = load_task(None, write({field: "1 + 1?", "answer": "2"})).problems
    assert problem.question == "1 + 1?"


@pytest.mark.parametrize(
    "given",
    [
        {"messages": [USER, REPLY]},
        {"prompt": [USER]},
        {"question": [{"type": "text", "text": "1 + 1?"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}
            ]
        },
    ],
)
def test_the_question_may_be_a_chat_or_parts(write, given):
    (problem,) = load_task(None, write({**given, "answer": "2"})).problems
    assert problem.question == "1 + 1?"


def test_a_question_with_a_picture_is_named(write):
    file = write(GOOD, {"prompt": [{"type": "image_url"}], "answer": 2})
    assert message_of(None, file) == (
        "problems.jsonl, line 2, prompt: has a part of type image_url: only parts of "
        "type text can be read."
    )


def test_a_table_holds_problems(tmp_path):
    file = tmp_path / "problems.csv"
    file.write_text(
        "id,question,choices,answer\r\n"
        '7,"Is it 1, or 2?",,2\r\n'
        '8,Which?,"[""red"", ""blue""]",B\r\n'
        "9,A or B?,TRUE,A\r\n"
    )
    assert load_task(None, file).problems == (
        Problem("7", "Is it 1, or 2?", "2", False),
        Problem("8", "Which?\n\nA. red\nB. blue", "B", True),
        Problem("9", "A or B?", "A", True),
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It is 9 * 2.\n#### 1,018", "1,018"),
        ("a #### b #### 18", "18"),
        ("\\frac{3}{4}", "\\frac{3}{4}"),
        (18, "18"),
        (0, "0"),
        (-0.5, "-0.5"),
        (1e-07, "0.0000001"),
    ],
)
def test_an_answer_is_a_text_or_a_number(write, answer, expected):
    (problem,) = load_task(None, write({**GOOD, "answer": answer})).problems
    assert problem.answer == expected


def test_choices_are_put_behind_the_question_and_graded_by_letter(write):
    task = load_task(None, write(COLOURS))
    question = "Which is it?\n\nA. red\nB. blue"
    assert task.problems == (Problem("0", question, "B", True),)
    assert task.instruction == LETTER


def test_choices_may_be_in_the_question_already(write):
    row = {"question": "Red (A) or blue (B)?", "answer": "B", "choices": True}
    task = load_task(None, write(row))
    assert task.problems == (Problem("0", row["question"], "B", True),)
    assert task.instruction == LETTER


@pytest.mark.parametrize("choices", [None, False])
def test_a_problem_may_say_that_it_has_no_choices(write, choices):
    task = load_task(None, write({**GOOD, "choices": choices}))
    assert (task.problems[0].choices, task.instruction) == (False, "")


def test_the_letter_is_asked_for_only_if_all_problems_have_choices(write):
    assert load_task(None, write(COLOURS, GOOD)).instruction == ""


@pytest.mark.parametrize("instruction", ["Be brief.", ""])
def test_an_instruction_takes_the_place_of_the_default(write, instruction):
    task = load_task(None, write(COLOURS), instruction=instruction)
    assert task.instruction == instruction


def test_the_limit_takes_the_first_problems_and_reads_no_further(write):
    file = write(GOOD, {**GOOD, "answer": "3"}, "{")
    answers = [problem.answer for problem in load_task(None, file, 2).problems]
    assert answers == ["2", "3"]
    line = "problems.jsonl, line 3 is not valid JSON (Expecting property name"
    assert message_of(None, file, 3).startswith(line)


@pytest.mark.parametrize("limit", [0, -1])
def test_the_limit_is_at_least_one(write, limit):
    message = f"The limit must be at least 1 problem, not {limit}."
    assert message_of(None, write(GOOD), limit) == message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"a" 1}', "is not valid JSON (Expecting ':' delimiter at character 6)."),
        ([1], "is not a JSON object with question and answer: [1]."),
        (
            {"answer": "2"},
            "has no question: it has the field answer alone, and a question is read "
            "from question, problem, prompt or messages.",
        ),
        (
            {**GOOD, "question": " "},
            "has ' ' for its question: give a text that is not empty.",
        ),
        (
            {"problem": 7, "answer": "2"},
            "has 7 for its problem: give a text that is not empty.",
        ),
        (
            {"question": "Why?"},
            "has no answer: it has the field question alone, and an answer is read "
            "from answer.",
        ),
        (
            {"messages": [SYSTEM, USER, REPLY], "answer": 2},
            "has a chat of 2 messages for its messages: an evaluation asks one "
            "question, without a system prompt.",
        ),
        *(
            (
                {**GOOD, "answer": answer},
                f"has {answer!r} for its answer: give a number, or a text that is not "
                "empty.",
            )
            for answer in ("", "9 * 2\n#### ", True, [18], float("inf"))
        ),
        *(
            (
                {**GOOD, "id": name},
                f"has {name!r} for its id: give a text that is not empty, or a whole "
                "number.",
            )
            for name in (" ", 1.5, True)
        ),
        *(
            (
                {**COLOURS, "choices": choices},
                f"has {choices!r} for choices: give 2 to 26 texts that are not empty.",
            )
            for choices in ([], ["red"], ["red", " "], ["red", 2])
        ),
        (
            {**COLOURS, "choices": ["red"] * 27},
            # Cut, for the line stays one.
            f"has {str(['red'] * 27)[:57]}... for choices: give 2 to 26 texts that are "
            "not empty.",
        ),
        (
            {**COLOURS, "choices": "red, blue"},
            "has 'red, blue' for choices: give a list of texts, or true if the "
            "question has them already.",
        ),
        *(
            (
                {**COLOURS, "answer": answer},
                f"has choices and the answer {str(answer)!r}: give the letter of the "
                "right choice, A to B.",
            )
            for answer in ("C", "b", "blue", "AB", 1)
        ),
        (
            {**COLOURS, "choices": True, "answer": "blue"},
            "has choices and the answer 'blue': give the letter of the right choice, "
            "A to Z.",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(write, row, message):
    file = write(GOOD, "", row)
    assert message_of(None, file) == f"problems.jsonl, line 3 {message}"


@pytest.mark.parametrize(("first", "second"), [("x", "x"), (7, "7"), ("1", None)])
def test_no_two_problems_have_the_same_id(write, first, second):
    file = write({**GOOD, "id": first}, {**GOOD, "id": second})
    assert message_of(None, file) == (
        f"problems.jsonl, line 2 has the id {str(first)!r}, which problems.jsonl, "
        "line 1 has already: every problem needs its own."
    )


def test_a_file_without_problems_says_so(write):
    file = write("")
    assert message_of(None, file) == f"{file} holds no problems."


def test_a_missing_file_is_named(tmp_path):
    file = tmp_path / "none.jsonl"
    assert message_of(None, file).startswith(f"There is no file {file}.")


def test_one_of_a_task_and_a_file_is_needed(write):
    file = write(GOOD)
    names = "gsm8k, math-500, aime-2024, aime-2025, medmcqa, medqa, gpqa-diamond, demo"
    assert message_of("gsm8k", file) == (
        f"Give a task or a file of problems, not both (gsm8k and {file})."
    )
    assert message_of(None, None) == (
        f"There is nothing to evaluate on: give a task ({names}) or a file of problems."
    )
    assert message_of("gsm9k", None) == (
        f"There is no task 'gsm9k'; the tasks are {names}, and lm-eval:NAME for those "
        "of the LM Evaluation Harness."
    )


def test_every_task_is_described_and_names_a_data_file():
    for name, source in TASKS.items():
        assert source.about
        assert Path(source.data).suffix in (".jsonl", ".parquet", ".csv")
        usual = MATHS if source.read is None else LETTER
        assert source.instruction == ("" if name == "demo" else usual)
        if name != "demo":
            assert re.fullmatch(r"[\w-]+/[\w-]+/[\w/.-]+", source.data)


def test_tasks_are_read_from_the_hub(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    gsm8k, math, aime = (tmp_path / name for name in ("gsm8k", "math", "aime"))
    for folder in (gsm8k / "main", math, aime / "data"):
        folder.mkdir(parents=True)
    rows = [{"question": f"{i}?", "answer": f"So\n#### {i},000"} for i in (1, 2)]
    file = gsm8k / "main" / "test-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    row = {"problem": "x?", "solution": "y", "answer": "\\pi", "unique_id": "test/1"}
    (math / "test.jsonl").write_text(json.dumps(row))
    row = {"id": 60, "problem": "z?", "solution": "y", "answer": "204"}
    file = aime / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist([row]), file)

    medmcqa, medqa, gpqa = (tmp_path / name for name in ("medmcqa", "medqa", "gpqa"))
    for folder in (medmcqa / "data", medqa, gpqa):
        folder.mkdir(parents=True)
    options = dict(zip(("opa", "opb", "opc", "opd"), "pqrs", strict=True))
    row = {"id": "m-1", "question": "Which?", **options, "cop": 2, "exp": None}
    file = medmcqa / "data" / "validation-00000-of-00001.parquet"
    parquet.write_table(pa.Table.from_pylist([row]), file)
    options = {"A": "p", "B": "q", "C": "r", "D": "s"}
    row = {"question": "Why?", "answer": "q", "options": options, "answer_idx": "B"}
    (medqa / "phrases_no_exclude_test.jsonl").write_text(json.dumps(row))
    columns = "Record ID,Question,Correct Answer,Incorrect Answer 1"
    columns += ",Incorrect Answer 2,Incorrect Answer 3,Subdomain"
    (gpqa / "gpqa_diamond.csv").write_text(f"{columns}\nr1,How?,w,x,y,z,Physics\n")

    repositories = {
        "datasets/openlifescienceai/medmcqa": medmcqa,
        "datasets/GBaker/MedQA-USMLE-4-options": medqa,
        "datasets/Idavidrein/gpqa": gpqa,
        "datasets/openai/gsm8k": gsm8k,
        "datasets/HuggingFaceH4/MATH-500": math,
        "datasets/HuggingFaceH4/aime_2024": aime,
    }
    names = ("gsm8k", "math-500", "aime-2024", "aime-2025")
    calls = [[name, None] for name in names] + [["gsm8k", None, 1, "Be brief."]]
    choices = ("medmcqa", "medqa", "gpqa-diamond")
    calls = [[name, None] for name in choices] + calls
    with FakeHub(repositories) as hub:
        child = subprocess.run(
            [sys.executable, "-c", LOAD, *map(json.dumps, calls)],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    assert child.stderr == ""
    *lines, missing, limited = child.stdout.splitlines()
    lettered, lines = [json.loads(line) for line in lines[:3]], lines[3:]
    assert [task["name"] for task in lettered] == list(choices)
    assert {task["instruction"] for task in lettered} == {LETTER}
    found = [task["problems"][0] for task in lettered]
    assert all(problem["choices"] for problem in found)
    assert [problem["id"] for problem in found] == ["m-1", "0", "r1"]
    for problem, question, right in zip(
        found, ("Which?", "Why?", "How?"), ("r", "q", "w"), strict=True
    ):
        asked, _, *shown = problem["question"].splitlines()
        assert asked == question
        assert f"{problem['answer']}. {right}" in shown
        assert len(shown) == len(set(shown)) == 4
    assert [json.loads(line) for line in lines] == [
        task_of("gsm8k", ("0", "1?", "1,000"), ("1", "2?", "2,000")),
        task_of("math-500", ("test/1", "x?", "\\pi")),
        task_of("aime-2024", ("60", "z?", "204")),
    ]
    assert missing == (
        "ValueError: There is no file math-ai/aime25/test.jsonl here and no such name "
        "on the Hub (or it is private: log in with `hf auth login`)."
    )
    expected = task_of("gsm8k", ("0", "1?", "1,000"))
    assert json.loads(limited) == {**expected, "instruction": "Be brief."}


def task_of(name: str, *problems: tuple[str, str, str]) -> dict:
    fields = ("id", "question", "answer", "choices", "plan")
    records = [dict(zip(fields, (*p, False, None), strict=True)) for p in problems]
    return {"name": name, "problems": records, "instruction": MATHS}


def test_a_row_without_its_right_choice_is_named():
    for read in (read_medmcqa, read_medqa, read_gpqa):
        assert read({})["answer"] in (None, *"ABCD")
    unknown = {"question": "q", "opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    assert read_medmcqa({**unknown, "cop": -1})["answer"] is None
    assert read_medmcqa({**unknown, "cop": 3})["answer"] == "D"
    assert read_medqa({"options": {"A": "a"}, "answer_idx": "E"})["answer"] is None


def test_the_right_choice_of_gpqa_stands_at_every_letter():
    row = {"Question": "q", "Correct Answer": "w"}
    letters = [read_gpqa({**row, "Record ID": f"r{i}"})["answer"] for i in range(40)]
    assert set(letters) == set("ABCD")
    assert letters == [
        read_gpqa({**row, "Record ID": f"r{i}"})["answer"] for i in range(40)
    ]
