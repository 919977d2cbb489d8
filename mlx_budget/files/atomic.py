"""Files and folders that appear whole or not at all.

Knows names, locks and full disks; nothing of what the files hold.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .locks import in_use, lock, opened
from .outputs import check_output_folder

_UNFINISHED = ".incomplete"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def appearing_file(file: Path, is_private: bool = False) -> Iterator[IO[bytes]]:
    """A file to fill, which appears only once the block has ended well.

    Args:
        file (Path): The file, there or not.
        is_private (bool): Whether nobody but the user may read it.
    """
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=f".{file.name}.", suffix=_UNFINISHED, delete=False
    ) as f:
        try:
            yield f
            f.flush()
            if not is_private:  # as it was made
                os.fchmod(f.fileno(), 0o666 & ~_umask())
            os.replace(f.name, file)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise


@contextmanager
def appearing_folder(path: Path, option: str = "--mlx-path") -> Iterator[Path]:
    """A folder to fill, which appears at ``path`` only once the block has ended well.

    What a killed run left behind is removed by the next one for the same path.

    Args:
        path (Path): The folder.
        option (str): What names another place for it.

    Raises:
        ValueError: If ``path`` exists already or cannot be made, or the disk is full.
    """
    if os.path.lexists(path):
        raise ValueError(
            f"The output folder {path} exists already: choose another with {option}, "
            "or remove it first."
        )
    check_output_folder(path, option)
    missing = [parent for parent in path.parents if not parent.exists()]
    hidden = f".{path.name}.", _UNFINISHED
    try:
        with full_disk_in_one_line(path, f"or choose another disk with {option}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked_folder(path.parent, *hidden) as partial:
                yield partial
                if os.path.lexists(path):
                    raise ValueError(f"Another program has made {path} meanwhile.")
                partial.rename(path)
    finally:
        for parent in missing:
            with suppress(OSError):  # it holds the folder, or what others have made
                parent.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Removes the files that programs were killed at, where none is at work now."""
    for file in folder.glob(f".*{_UNFINISHED}"):
        file.unlink()


@contextmanager
def full_disk_in_one_line(
    path: Path, advice: str | Callable[[], str]
) -> Iterator[None]:
    """Turns the error of a full disk into a ValueError with ``advice``.

    Advice that depends on how far the block came is asked for then.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in _DISK_FULL:
            raise
        way_out = advice if isinstance(advice, str) else advice()
        raise ValueError(
            f"{path} could not be written ({e.strerror}): free some space, {way_out}."
        ) from None


@contextmanager
def _locked_folder(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """A new folder that is removed in the end, by the next run if this one is killed.

    Process ids come again, locks end with their process.
    """
    for left in parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith(suffix):
            with suppress(OSError), opened(left) as descriptor:
                lock(descriptor)
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(suffix, prefix, parent))
    try:
        folder.chmod(0o777 & ~_umask())
        with in_use(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
