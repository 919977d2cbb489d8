"""Small text files: one clear error, whole or not at all."""

from pathlib import Path

import pytest

from mlx_budget.files import atomic
from mlx_budget.files.texts import read_json, write_json, write_text


def test_what_is_written_as_json_is_read_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "name": "Zoë"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "missing") == value
    assert (tmp_path / "a.json").read_text().startswith('{\n  "a": [')
    assert (tmp_path / "a.json").read_text().endswith("\n}\n")


def test_a_missing_file_is_told_in_the_callers_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^There is no letter.$"):
        read_json(tmp_path / "letter.json", "There is no letter.")


@pytest.mark.parametrize("data", [b"", b"{", b"[1,]", b"\xff", b"a\nb", b"[" * 9**6])
def test_a_file_that_is_not_json_is_one_line(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_json(file, "missing")
    assert str(caught.value).startswith(f"{file} is not valid JSON: ")
    assert "\n" not in str(caught.value)


def test_a_text_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_text(file, "new")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("a.txt", "old")]
