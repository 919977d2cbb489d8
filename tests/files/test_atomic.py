"""Files and folders appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from mlx_budget.files.atomic import appearing_folder


def test_a_folder_appears_when_its_block_has_ended(tmp_path):
    path = tmp_path / "new" / "deep" / "out"
    with appearing_folder(path) as folder:
        (folder / "file").write_text("x")
        assert not path.exists()
    assert [f.name for f in path.parent.iterdir()] == ["out"]
    assert (path / "file").read_text() == "x"
    (path.parent / "other").mkdir()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_whose_block_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        with appearing_folder(tmp_path / "new" / "deep" / "out") as folder:
            (folder / "file").touch()
            raise error
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_beside_it_is_left_alone(tmp_path):
    others = tmp_path / "new" / "others"
    with pytest.raises(ValueError, match="my own"):
        with appearing_folder(tmp_path / "new" / "out"):
            others.mkdir()
            raise ValueError("my own")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", others]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_path_is_never_touched(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="out exists already.*--mlx-path"):
        with appearing_folder(path):
            pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_made_in_the_meantime_wins(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ValueError, match="Another program has made"):
        with appearing_folder(path) as folder:
            (folder / "ours").touch()
            path.mkdir()
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, number):
    with pytest.raises(ValueError, match="out could not be written.*free some space"):
        with appearing_folder(tmp_path / "out") as folder:
            (folder / "file").touch()
            raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_keep_their_names(tmp_path):
    with pytest.raises(PermissionError):
        with appearing_folder(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied", "/source")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "out[1]"
    killed = f"""
import os, signal
from pathlib import Path
from mlx_budget.files.atomic import appearing_folder
with appearing_folder(Path({str(path)!r})) as folder:
    (folder / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", killed], check=False)
    assert run.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out[1].") and left.name.endswith(".incomplete")
    with appearing_folder(path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_folders_of_other_names_are_left_alone(tmp_path):
    names = ("mine", ".out.kept", "out.x.incomplete", ".other.x.incomplete")
    for name in (*names, ".out.x.incomplete"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with appearing_folder(tmp_path / "out"):
        pass
    assert {f.name for f in tmp_path.iterdir()} == {*names, "out"}
    assert all((tmp_path / name / "file").exists() for name in names)


def test_a_run_still_at_work_keeps_its_folder(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ValueError, match="Another program"):
        with appearing_folder(path) as first:
            with appearing_folder(path) as second:
                assert first.exists() and second.exists() and first != second
    assert list(tmp_path.iterdir()) == [path]
