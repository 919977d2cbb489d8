"""Prompts are read from files of any kind, and what is wrong in them is one line."""

import json
from pathlib import Path

import pytest

from mlx_budget.engine.prompt_files import read_prompts
from mlx_budget.evaluate import load_task

USER, REPLY = {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}
SYSTEM = {"role": "system", "content": "Be terse."}


@pytest.fixture
def write(tmp_path):
    """Writes a file; rows that are not texts become lines of JSON."""

    def write(name: str, *rows: object) -> Path:
        file = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("\n".join(lines), encoding="utf-8")
        return file

    return write


def test_a_prompt_is_a_text_or_a_chat_without_its_reply(write):
    in_parts = {"role": "user", "content": [{"type": "text", "text": "c"}]}
    rows = {
        '{"prompt": "a"}': "a",
        '{"question": "b", "answer": "2"}': "b",
        '{"problem": " b\u2028"}': " b\u2028",
        '"just a text"': "just a text",
        json.dumps({"messages": [USER, REPLY]}): [USER],
        json.dumps({"prompt": [SYSTEM, USER]}): [SYSTEM, USER],
        json.dumps([USER, REPLY, USER]): [USER, REPLY, USER],
        json.dumps({"messages": [in_parts]}): [USER],
        json.dumps({"prompt": in_parts["content"]}): "c",
        json.dumps({"prompt": None, "messages": [{**USER, "name": None}]}): [USER],
    }
    file = write("a.jsonl", *rows)
    assert read_prompts(file) == list(rows.values())
    assert read_prompts(str(file)) == list(rows.values())


def test_the_first_field_with_a_prompt_in_it_counts(write):
    file = write("a.jsonl", {"question": " ", "problem": "a", "messages": [USER]})
    assert read_prompts(file) == ["a"]


def test_choices_stand_below_the_question_as_in_an_evaluation(write):
    asked = {"question": "Which?", "choices": ["red", " blue "], "answer": "B"}
    chat = [SYSTEM, USER, REPLY, {"role": "user", "content": "Which?"}]
    text = "Which?\n\nA. red\nB. blue"
    rows = [
        asked,
        {"messages": [*chat, REPLY], "choices": ["red", "blue"]},
        {"question": "A or B?", "choices": True},
        {"question": "No choice?", "choices": None},
    ]
    (problem,) = load_task(None, write("task.jsonl", asked)).problems
    assert problem.question == text
    *earlier, last = chat
    whole = [*earlier, {**last, "content": text}]
    expected = [text, whole, "A or B?", "No choice?"]
    assert read_prompts(write("a.jsonl", *rows)) == expected
    table = ["question,choices", 'Which?,"[""red"", ""blue""]"', "Why?,"]
    assert read_prompts(write("b.csv", *table)) == [text, "Why?"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("red, blue", "line 1 has 'red, blue' for choices: give a list of texts, or t"),
        (["red"], "line 1 has ['red'] for choices: give 2 to 26 texts that are not em"),
        ({"text": ["a", "b"]}, "for choices: give a list of texts, or true if the que"),
    ],
)
def test_choices_that_cannot_be_asked_are_named(write, choices, message):
    with pytest.raises(ValueError) as e:
        read_prompts(write("a.jsonl", {"question": "Which?", "choices": choices}))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_files_of_other_kinds_hold_the_same_prompts(write):
    expected = ["One, two?", "Three?"]
    rows = [{"prompt": text, "x": 1} for text in expected]
    write("a.json", json.dumps(rows, indent=2))
    write("b.json", json.dumps(expected))
    write("c.csv", "x,prompt", '1,"One, two?"', "", "2,Three?")
    write("d.tsv", "x\tprompt", "1\tOne, two?", "2\tThree?")
    write("e.txt", "One, two?\r", "", "Three?")
    file = write("f", *expected)
    for name in ("a.json", "b.json", "c.csv", "d.tsv", "e.txt", "f"):
        assert read_prompts(file.parent / name) == expected, name
    chat = json.dumps([USER, REPLY]).replace('"', '""')
    assert read_prompts(write("g.csv", "messages", f'"{chat}"')) == [[USER]]


def test_a_parquet_file_holds_prompts(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    rows = [{"messages": [USER, {**REPLY, "x": 1}], "question": None}] * 2
    parquet.write_table(pa.Table.from_pylist(rows), file)
    assert read_prompts(file) == [[USER], [USER]]
    parquet.write_table(pa.Table.from_pylist([{"text": "a"}]), file)
    with pytest.raises(ValueError, match="none of the columns prompt, question, prob"):
        read_prompts(file)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"answer": 1, "text": "a"},
            "a.jsonl, line 2: no prompt in it: it has the fields answer, text, and a "
            "prompt is read from prompt, question, problem or messages.",
        ),
        ("{", "line 2: it is not valid JSON (Expecting property name enclosed in dou"),
        ([1], "no prompt in it: give prompt, question, problem or messages, as a text"),
        ({"prompt": " "}, "as a text that is not empty or as messages with role and"),
        ({"messages": ["x"]}, "as messages with role and content"),
        ({"messages": [{"role": "user"}]}, "line 2: message 1 (user) has no content."),
        (
            {"messages": [SYSTEM, {"role": "Human", "content": "x"}]},
            "message 2 has the role 'Human', which is written 'user'.",
        ),
        ({"messages": [{"content": "x"}]}, "message 1 has no role: it has the field c"),
        ({"messages": [SYSTEM, REPLY]}, "line 2: none of its messages is the user's."),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "message 1 (user) has a part of type input_audio: only parts of type text",
        ),
        ({"prompt": [{"type": "image_url"}]}, "has a part of type image_url: only par"),
        ({"messages": [{"role": "user", "content": 3}]}, "content that is not a text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_the_reason(write, row, message):
    file = write("a.jsonl", {"prompt": "a"}, row)
    with pytest.raises(ValueError) as e:
        read_prompts(file)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jsonl", "holds no prompts"),
        ("a.txt", "holds no prompts"),
        ("a.csv", "holds no prompts"),
        ("a.xlsx", "is of a kind that is not read here; give one of .jsonl"),
    ],
)
def test_a_file_without_prompts_is_named(write, name, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(write(name, "", " "))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no file .*nope"):
        read_prompts(tmp_path / "nope")
