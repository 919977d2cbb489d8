"""Records are appended whole or not at all, and a line cut off is mended."""

import os

import pytest

from mlx_budget.files.records import open_records, to_line

FIRST, SECOND = {"id": "a", "text": "x\u2028y"}, {"id": "b", "text": "z" * 99}


@pytest.fixture
def path(tmp_path):
    """A file of one record."""
    with open_records(tmp_path / "new" / "records.jsonl") as file:
        file.append(FIRST)
    return tmp_path / "new" / "records.jsonl"


def read(path) -> list[dict]:
    def refuse(record, place: str) -> None:
        if record is None:
            raise ValueError(f"{place} is no record")

    with open_records(path) as file:
        return list(file.read(refuse))


def test_what_is_appended_is_read(path):
    assert path.read_bytes() == to_line(FIRST)
    with open_records(path) as file:
        file.append(SECOND)
    assert read(path) == [FIRST, SECOND]


@pytest.mark.parametrize("size", [1, 9, 50, -1])
def test_a_line_cut_off_is_removed_but_for_a_missing_newline(path, size):
    with path.open("ab") as file:
        file.write(to_line(SECOND)[:size])
    whole = [FIRST, SECOND] if size == -1 else [FIRST]
    assert read(path) == whole
    assert path.read_bytes() == b"".join(map(to_line, whole))


def test_what_is_no_record_is_named_and_kept(path):
    with path.open("ab") as file:
        file.write(b"something else")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="records.jsonl, line 2, is no record"):
        read(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_half_way_leaves_nothing(path, monkeypatch, error):
    write, calls = os.write, []

    def failing(descriptor: int, text: bytes) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return write(descriptor, text[:20])

    with open_records(path) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing)
            with pytest.raises(error):
                file.append(SECOND)
    assert read(path) == [FIRST]


def test_an_interrupt_after_the_line_is_whole_keeps_it(path, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with open_records(path) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                file.append(SECOND)
    assert path.read_bytes() == to_line(FIRST) + to_line(SECOND)


def test_a_file_is_for_one_program_at_a_time(path):
    with open_records(path):
        with pytest.raises(ValueError, match="Another program is writing .*--output"):
            read(path)
    assert read(path) == [FIRST]


def test_a_text_that_is_no_unicode_is_refused():
    with pytest.raises(ValueError, match="surrogates not allowed"):
        to_line({"id": "a", "text": "\ud83d"})
