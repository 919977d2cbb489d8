"""Rows come out of files with their names, and what cannot be read is one line."""

import json
import sys
from pathlib import Path

import pytest

from mlx_budget.files.rows import Row, read_rows
from mlx_budget.installing import install_command

COLUMNS = ("messages", "tokens")


def rows(*data) -> list[Row]:
    return list(read_rows(data[0] if len(data) == 1 else data, COLUMNS))


def refusal(data) -> str:
    with pytest.raises(ValueError) as caught:
        rows(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, data: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return name


def test_lines_have_their_numbers(here):
    name = write("a.jsonl", '{"x": 1}\n\n[2]\r\n{"x": "\u2028"}')
    assert rows(name) == [
        Row("a.jsonl, line 1", {"x": 1}),
        Row("a.jsonl, line 3", [2]),
        Row("a.jsonl, line 4", {"x": "\u2028"}),
    ]


@pytest.mark.parametrize(
    "line", [b'{"x": ', b"x", b'{"x": "\xff"}', b"\xff", b"[" * 100_000, b"{}{}"]
)
def test_a_line_that_is_not_json_is_a_row_without_a_value(here, line):
    name = write("a.jsonl", b'\xef\xbb\xbf{"x": 1}\n' + line)
    first, second = rows(name)
    assert first == Row("a.jsonl, line 1", {"x": 1})
    assert second == Row("a.jsonl, line 2", None, False, second.fault)
    assert second.fault


def test_a_json_file_is_an_array_or_lines(here):
    write("array.json", "\ufeff\n [\n1,\n2]")
    write("lines.json", '{"x": 1}\n{"x": 2}\n')
    assert rows("array.json") == [
        Row("array.json, record 1", 1),
        Row("array.json, record 2", 2),
    ]
    assert [row.name for row in rows("lines.json")] == [
        "lines.json, line 1",
        "lines.json, line 2",
    ]
    message = refusal(write("array.json", '[{"x": 1},'))
    assert message.startswith("array.json is not valid JSON: ")


def test_a_folder_is_its_files_in_their_order(here):
    for name in ("b.jsonl", "a/z.jsonl", "a.txt", "info.json", "c/no.jsonl.bz2"):
        write(f"data/{name}", "1\n2")
    expected = ["a/z.jsonl, line 1", "a/z.jsonl, line 2"]
    expected += ["b.jsonl, line 1", "b.jsonl, line 2"]
    assert [row.name for row in rows(Path("data"))] == expected
    assert refusal("data/c") == (
        "The folder data/c holds no .jsonl, .parquet, .csv or .tsv files."
    )


def test_tables_are_the_data_of_a_folder_without_other_data(here):
    write("data/b.csv", "messages\n1\n")
    assert [row.name for row in rows("data")] == ["b.csv, line 2"]
    write("data/a.jsonl", "1")
    assert [row.name for row in rows("data")] == ["a.jsonl, line 1"]


def test_several_files_and_rows_are_one_after_another(here):
    row = {"x": 0}
    found = rows(write("b.jsonl", "1"), Path(write("a.jsonl", "2")), row)
    assert found == [
        Row("b.jsonl, line 1", 1),
        Row("a.jsonl, line 1", 2),
        Row("record 3", row),
    ]
    assert rows([]) == []


def test_rows_are_read_as_they_are_asked_for(here):
    found = read_rows([write("a.jsonl", "1\nx"), "./none.jsonl"], COLUMNS)
    assert next(found).value == 1
    found.close()


def test_a_home_folder_is_known(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    write("a.jsonl", "1")
    assert rows("~/a.jsonl") == [Row("a.jsonl, line 1", 1)]


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a", "x/a.jsonl", "x/a.parquet", "./x/a", "/x/a", "~x/a", "x/"]
)
def test_what_can_be_nowhere_is_named(here, name):
    assert refusal(name) == (
        f"There is no file {name}. Check the path (a dataset on the Hub is named "
        "owner/name)."
    )


def test_an_empty_name_is_refused(here):
    assert refusal("") == "The name of the data is empty; is a variable not set?"


def test_files_of_other_kinds_are_refused(here):
    name = write("a.txt", "{}")
    assert refusal(name) == (
        "a.txt is of a kind that is not read here; give one of .jsonl, .json, .csv, "
        ".tsv, .parquet (or .jsonl.gz and the like)."
    )


def test_what_may_not_be_read_is_one_line(here, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    write("a.jsonl", "{}")
    monkeypatch.setattr(Path, "open", refuse)
    assert refusal("a.jsonl") == "a.jsonl cannot be read (Permission denied)."


def write_parquet(name: str, rows: list[dict]) -> str:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), name, row_group_size=50)
    return name


def test_parquet_has_the_rows_of_its_columns(here):
    messages = [{"role": "user", "content": "hi"}]
    data = [{"messages": messages, "tokens": [i], "other": "x"} for i in range(150)]
    found = rows(write_parquet("a.parquet", data))
    assert [row.name for row in found] == [
        f"a.parquet, row {i + 1}" for i in range(150)
    ]
    expected = [{"messages": messages, "tokens": [i]} for i in range(150)]
    assert [row.value for row in found] == expected


def test_parquet_may_lack_all_columns_but_the_first(here):
    messages = [{"role": "user", "content": "hi"}]
    name = write_parquet("a.parquet", [{"messages": messages, "x": 1}])
    assert rows(name) == [Row("a.parquet, row 1", {"messages": messages})]
    name = write_parquet("a.parquet", [{"tokens": [1], "x": 1}])
    assert refusal(name) == "a.parquet has no column messages; it has tokens, x."


def test_spoilt_parquet_is_one_line(here):
    name = write_parquet("a.parquet", [{"messages": [json.dumps({"x": "y" * 999})]}])
    whole = Path(name).read_bytes()
    middle = len(whole) // 2
    for spoilt in (b"x", whole[:-9], b"PAR1" + b"\xff" * 64 + whole[68:]):
        message = refusal(write("b.parquet", spoilt))
        assert message.startswith("b.parquet cannot be read as Parquet (")
    assert middle > 68


def test_parquet_without_pyarrow_says_what_to_install(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(write("a.parquet", "x")) == (
        "a.parquet is a Parquet file, and reading it needs pyarrow: "
        f"`{install_command('train')}`."
    )
