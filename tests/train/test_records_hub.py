"""Datasets on the Hub are read like files, and downloaded only as far as needed.

The client reads its address when it is imported: each test runs it in a child process,
against a fake Hub on loopback.
"""

import json
import os
import subprocess
import sys

import pytest

from conversions import REFERENCE
from fake_hub import FakeHub

READ = """
import json, sys
from pathlib import Path
from mlx_budget.train.records import SkippedRecords, read_records
from mlx_lm.tokenizer_utils import load
tokenizer = load(Path(sys.argv[1]))
for options in map(json.loads, sys.argv[2:]):
    skipped = SkippedRecords()
    try:
        records = read_records(tokenizer=tokenizer, skipped=skipped, **options)
        print([record.name for record in records], skipped.summary())
    except ValueError as e:
        print(f"ValueError: {e}")
"""
NAME = "owner/name"
DATASET = f"datasets/{NAME}"
ONE, TWO = f"{NAME}/one.jsonl, line ", f"{NAME}/two.jsonl, line "
RECORD = {
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<think>x</think>y"},
    ]
}


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "dataset"
    (folder / "more").mkdir(parents=True)
    line = json.dumps(RECORD) + "\n"
    (folder / "one.jsonl").write_text(line * 2)
    (folder / "two.jsonl").write_text("{\n" + line)
    (folder / "more" / "three.json").write_text(f"[{line}]")
    (folder / "README.md").write_text("about")
    (folder / "info.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("about")
    repositories = {DATASET: folder, "datasets/owner/empty": tmp_path / "empty"}
    with FakeHub({**repositories, "owner/model": folder}) as hub:
        yield hub


@pytest.fixture
def read(hub, tmp_path):
    """Reads records in a child process; each call of it prints one line."""

    def read(*calls: dict, **environment: str) -> list[str]:
        child = subprocess.run(
            [sys.executable, "-c", READ, str(REFERENCE), *map(json.dumps, calls)],
            env={**os.environ, **hub.environment(tmp_path / "home"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stderr == ""
        return child.stdout.splitlines()

    return read


def test_a_dataset_is_its_data_files_in_their_order(hub, read):
    (line,) = read({"data": NAME})
    names = [f"{ONE}1", f"{ONE}2", f"{TWO}2"]
    assert line == f"{names} {[f'1 record skipped, not JSON: {TWO}1']}"
    assert hub.downloaded(DATASET) == {"one.jsonl", "two.jsonl"}


def test_only_what_the_limit_needs_is_downloaded(hub, read):
    (line,) = read({"data": NAME, "limit": 2})
    assert line == f"{[f'{ONE}1', f'{ONE}2']} []"
    assert hub.downloaded(DATASET) == {"one.jsonl"}


def test_one_file_may_be_named(hub, read):
    expected = f"{[f'{NAME}/more/three.json, record 1']} []"
    assert read({"data": f"{NAME}/more/three.json"}) == [expected]
    assert hub.downloaded(DATASET) == {"more/three.json"}


def test_what_was_downloaded_serves_without_a_network(read):
    named = {"data": f"{NAME}/one.jsonl"}
    expected = read(named)
    assert expected == [f"{[f'{ONE}1', f'{ONE}2']} []"]
    line, other = read(named, {"data": NAME}, HF_HUB_OFFLINE="1")
    assert [line] == expected
    assert other == (
        "ValueError: There is no file owner/name here, and the Hub cannot be reached "
        "to look it up. Check the path or the network."
    )


def test_a_folder_in_a_dataset_may_be_named(hub, read, tmp_path):
    (tmp_path / "dataset" / "more" / "four.jsonl").write_text(json.dumps(RECORD))
    hub.add(DATASET, tmp_path / "dataset")
    expected = f"{[f'{NAME}/more/four.jsonl, line 1']} []"
    assert read({"data": f"{NAME}/more"}, {"data": f"{NAME}/more/"}) == [expected] * 2
    assert hub.downloaded(DATASET) == {"more/four.jsonl"}


def test_what_is_here_is_not_looked_up(hub, read, tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "dataset").rename(tmp_path / "owner" / "name")
    (line,) = read({"data": NAME, "limit": 1})
    assert line == "['one.jsonl, line 1'] []"
    assert hub.requests == []


def test_what_the_hub_lacks_is_one_line(read):
    nowhere = (
        "and no such name on the Hub (or it is private: log in with `hf auth login`)."
    )
    no_files = (
        "on the Hub holds no .jsonl, .parquet, .csv or .tsv files. Name the file or "
        "the folder in "
        "the dataset, as owner/name/path."
    )
    lines = {
        "owner/none": f"There is no file owner/none here {nowhere}",
        # A model is no dataset.
        "owner/model": f"There is no file owner/model here {nowhere}",
        "x/y/z.jsonl": f"There is no file x/y/z.jsonl here {nowhere}",
        f"{NAME}/no.jsonl": f"There is no file {NAME}/no.jsonl on the Hub. Check the "
        "path behind owner/name.",
        f"{NAME}/no": f"{NAME}/no {no_files}",
        "owner/empty": f"owner/empty {no_files}",
        "a b/c": "'a b/c' is neither a local file nor a Hub name (owner/name).",
    }
    assert read(*({"data": name} for name in lines)) == [
        f"ValueError: {line}" for line in lines.values()
    ]


def test_parquet_is_read_from_the_hub(hub, read, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.Table.from_pylist([RECORD] * 3)
    parquet.write_table(table, tmp_path / "dataset" / "a.parquet")
    hub.add(DATASET, tmp_path / "dataset")
    (line,) = read({"data": NAME, "limit": 2})
    assert line == f"{[f'{NAME}/a.parquet, row {i}' for i in (1, 2)]} []"
    assert hub.downloaded(DATASET) == {"a.parquet"}
