"""A file or folder is one program's alone, until that ends, however it ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from mlx_budget.files.locks import in_use
from mlx_budget.files.records import open_records


def use_folder(path: Path) -> AbstractContextManager:
    path.mkdir(exist_ok=True)
    return in_use(path)


USES = pytest.mark.parametrize(
    ("use", "refusal"),
    [
        (use_folder, "Another program is at work in .*out"),
        (open_records, "Another program is writing .*out: wait for its end"),
    ],
)
Use = Callable[[Path], AbstractContextManager]


@USES
def test_a_second_program_is_refused_until_the_first_has_ended(
    tmp_path: Path, use: Use, refusal: str
) -> None:
    path = tmp_path / "out"
    with use(path):
        with pytest.raises(ValueError, match=refusal):
            with use(path):
                pytest.fail("the block ran")
    with use(path):
        pass
    assert list(tmp_path.rglob("*")) == [path]


@USES
def test_a_killed_program_frees_what_it_had(
    tmp_path: Path, use: Use, refusal: str
) -> None:
    path = tmp_path / "out"
    with use(path):
        pass
    hold = f"""
import sys
from pathlib import Path
from mlx_budget.files.locks import in_use
from mlx_budget.files.records import open_records
with {"in_use" if use is use_folder else "open_records"}(Path({str(path)!r})):
    print(flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", hold]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as child:
        assert child.stdout.readline() == b"\n"
        with pytest.raises(ValueError, match=refusal):
            with use(path):
                pytest.fail("the block ran")
        child.send_signal(signal.SIGKILL)
    with use(path):
        pass
    assert list(tmp_path.rglob("*")) == [path]


@USES
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Use,
    refusal: str,
    number: int,
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with use(tmp_path / "out"), use(tmp_path / "out"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_a_folder_that_cannot_be_written_can_be_in_use(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with in_use(tmp_path), pytest.raises(ValueError, match="at work"):
        with in_use(tmp_path):
            pytest.fail("the block ran")
    tmp_path.chmod(0o700)
