"""Files are read as what their endings say, whatever program wrote them."""

import gzip
import json
from pathlib import Path

import pytest

from mlx_budget.files.formats import Row
from mlx_budget.files.rows import read_rows

COLUMNS = ("question", "answer")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(name: str, data: str | bytes, **options) -> list[Row]:
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_rows(name, COLUMNS, **options))


def values(name: str, data: str | bytes, **options) -> list[object]:
    return [row.value for row in rows(name, data, **options)]


def refusal(name: str, data: str | bytes, **options) -> str:
    with pytest.raises(ValueError) as caught:
        rows(name, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ONE, TWO = {"question": "1 + 1?"}, {"question": "2 + 2?"}
QUOTED = 'question,answer\r\n"Is ""1, 2""\r\na pair?",yes\r\n\r\nOr "not"?,\r\n'


def test_a_table_is_rows_by_the_names_of_its_first_line():
    assert rows("a.csv", QUOTED) == [
        Row("a.csv, line 2", {"question": 'Is "1, 2"\r\na pair?', "answer": "yes"}),
        Row("a.csv, line 5", {"question": 'Or "not"?'}),
    ]
    # As a spreadsheet saves it.
    assert rows("b.csv", "\ufeff" + QUOTED)[0].value == rows("a.csv", QUOTED)[0].value
    assert values("c.csv", "question;answer\n1,5 + 1?;2,5\n") == [
        {"question": "1,5 + 1?", "answer": "2,5"}
    ]
    tabs = "question\tanswer\n1, 2?\t3\n"
    for name in ("d.tsv", "d.csv", "D.TSV"):
        assert values(name, tabs) == [{"question": "1, 2?", "answer": "3"}]
    assert values("e.csv", "question\n1 + 1?\n\n2 + 2?") == [ONE, TWO]
    assert values("f.tsv", tabs.encode("utf-16")) == values("d.tsv", tabs)


@pytest.mark.parametrize("data", ["", "\n \r\n", "question,answer\n", "\ufeff"])
def test_a_table_may_be_empty(data):
    assert values("a.csv", data) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text,label\na,b\n", "has no column question; it has text, label."),
        ("question\nOne, two?\n", "line 2 has 2 cells, and the first line names 1"),
        ('question\n"One\ntwo\n', "a.csv, line 2 cannot be read as a table (unexp"),
        ('question\n"One" two\n', "line 2 cannot be read as a table (',' expected"),
        (b"question\nWie gro\xdf?\n", "a.csv is not UTF-8 text: save it as that."),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(data, message):
    assert message in refusal("a.csv", data)


def test_a_table_may_have_any_of_several_columns():
    options = {"needed": ("question", "prompt", "problem")}
    assert values("a.csv", "problem\n1 + 1?\n", **options) == [{"problem": "1 + 1?"}]
    assert refusal("a.csv", "text\nx\n", **options) == (
        "a.csv has none of the columns question, prompt and problem; it has text."
    )


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ([ONE, TWO], ["record 1", "record 2"]),
        ({"version": 2, "data": [ONE, TWO]}, ["record 1", "record 2"]),
        ({"a": ONE, "b": TWO}, ["record a", "record b"]),
        (ONE, ["record 1"]),
        # Its list is not of rows.
        ({**ONE, "steps": [{"x": 1}]}, ["record 1"]),
        ({"x": {"y": 1}, "z": 2}, ["record 1"]),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_json_file_is_an_array_or_an_object_of_rows(value, names, indent, encoding):
    text = json.dumps(value, indent=indent)
    found = rows("a.json", text.encode(encoding))
    assert [row.name for row in found] == [f"a.json, {name}" for name in names]
    nested = {"record a": ONE, "record b": TWO, "record 2": TWO}
    for row, name in zip(found, names, strict=True):
        single = value if len(names) == 1 else ONE
        assert row.value == nested.get(name, single)


def test_several_lists_of_rows_are_not_chosen_from():
    text = json.dumps({"train": [ONE], "test": [TWO]})
    assert "has several lists of rows (train, test)" in refusal("a.json", text)


def test_a_json_file_may_hold_lines_and_lines_an_indented_value():
    lines = f"{json.dumps(ONE)}\r\n\n{json.dumps(TWO)}\n"
    assert [row.name for row in rows("a.json", lines)] == [
        "a.json, line 1",
        "a.json, line 3",
    ]
    assert values("a.json", lines) == values("a.jsonl", lines) == [ONE, TWO]
    assert values("a.ndjson", lines) == [ONE, TWO]
    for indented in ([ONE, TWO], {"data": [ONE, TWO]}):
        assert values("a.jsonl", json.dumps(indented, indent=1)) == [ONE, TWO]
    assert values("a.json", "\n") == []
    assert values("a.jsonl", lines.encode("utf-16")) == [ONE, TWO]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"question": "1', "Unterminated string starting at character 14"),
        (b'{"question": 1 2}', "Expecting ',' delimiter at character 16"),
        (b'{"question": "\xff"}', "not UTF-8 text"),
    ],
)
def test_a_broken_line_says_where_it_is_broken(line, fault):
    first, second = rows("a.jsonl", json.dumps(ONE).encode() + b"\n" + line)
    assert first.value == ONE
    assert second == Row("a.jsonl, line 2", None, False, fault)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
def test_each_but_parquet_may_be_compressed(name):
    data = json.dumps(ONE) if "json" in name else "question\n1 + 1?\n"
    if name == "a.txt":
        data = "1 + 1?\n"
    plain = values(name, data, takes_text=True)
    assert plain == ["1 + 1?" if name == "a.txt" else ONE]
    whole = gzip.compress(data.encode())
    assert values(f"{name}.gz", whole, takes_text=True) == plain
    for damaged in (whole[:-9], b"no", whole[:12] + b"\0\0" + whole[14:]):
        message = refusal(f"{name}.gz", damaged, takes_text=True)
        assert message.startswith(f"{name}.gz is not a whole .gz file (")
    assert "is of a kind that is not read" in refusal("a.parquet.gz", whole)


def test_text_is_its_lines_where_it_is_taken():
    data = "\ufeffOne, two?\r\n\n  three\u2028four \n"
    for name in ("a.txt", "a"):
        assert rows(name, data, takes_text=True) == [
            Row(f"{name}, line 1", "One, two?"),
            Row(f"{name}, line 3", "  three\u2028four "),
        ]
        assert "is of a kind that is not read" in refusal(name, data)
    assert refusal("a.docx", data, takes_text=True) == (
        "a.docx is of a kind that is not read here; give one of .jsonl, .json, .csv, "
        ".tsv, .parquet, .txt (or .jsonl.gz and the like)."
    )


def test_what_is_no_text_is_not_taken_for_it():
    assert refusal("a.txt", "x\n" + json.dumps(ONE), takes_text=True) == (
        "a.txt, line 2 is JSON, and would be taken for text: name the file *.jsonl."
    )
    assert values("a.txt", "{x} is a set?", takes_text=True) == ["{x} is a set?"]
    message = refusal("a.txt", b"x\n\xff\n", takes_text=True)
    assert message == "a.txt, line 2 is not UTF-8 text."
