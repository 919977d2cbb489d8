"""Where a run writes: refused before it begins, and left as it was if it fails."""

import os
from pathlib import Path

import pytest

from mlx_budget.files.outputs import (
    check_output_file,
    check_output_folder,
    taken_back,
)


def refusal(check, path) -> str:
    with pytest.raises(ValueError) as caught:
        check(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_there_already_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    check_output_file(file)
    check_output_folder(tmp_path)
    assert "is a file: name a folder with --output" in refusal(
        check_output_folder, file
    )
    assert "is a folder: name a file in it" in refusal(check_output_file, tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert "is a file" in refusal(check_output_folder, link)


@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_what_can_be_nowhere_is_refused_and_nothing_is_made(
    check, tmp_path, monkeypatch
):
    check(tmp_path / "new" / "deep" / "out")
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "deep" / "out"
    assert f"since {tmp_path / 'file'} is a file" in refusal(check, below)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    message = refusal(check, tmp_path / "new" / "out")
    assert f"since {tmp_path} is read-only" in message
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_relative_path_is_looked_up_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("out")
    check_output_folder(Path("out/new"))
    check_output_folder(Path("new"))
    check_output_folder(Path())


def fill(*paths, error=KeyboardInterrupt, **options) -> None:
    """Makes folders with a file in each, or files if they have a suffix; then fails."""
    with pytest.raises(error), taken_back(*paths, **options):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("new")
            else:
                (path / "deep").mkdir(parents=True, exist_ok=True)
                (path / "deep" / "file").touch()
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_all_that_is_new_goes_and_all_else_stays(tmp_path, error):
    there = tmp_path / "there"
    (there / "old").mkdir(parents=True)
    (there / "old.txt").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    fill(there / "new", there / "new.txt", tmp_path / "a" / "b" / "c.txt", error=error)
    assert sorted(tmp_path.rglob("*")) == before
    fill(there / "old", there / "old.txt", error=error)
    assert (there / "old.txt").exists() and (there / "old").exists()


def test_folders_of_others_stay(tmp_path):
    with pytest.raises(ValueError), taken_back(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "others").mkdir(parents=True)
        raise ValueError
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["others"]


def test_a_result_stays_and_so_does_what_ends_well(tmp_path):
    out = tmp_path / "a" / "out.txt"
    fill(out, is_worth_keeping=out.exists)
    assert out.read_text() == "new"
    with taken_back(tmp_path / "b"):
        (tmp_path / "b").mkdir()
    assert (tmp_path / "b").is_dir()
