"""Where a run writes: checked before it begins, taken away if nothing comes of it.

Knows paths; nothing of what is written or when it is worth keeping.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_output_file(path: Path) -> None:
    """Checks that a file can be written, without making it.

    Raises:
        ValueError: If it is a folder, or it or its folder may not be written.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it with --output.")
    _check_writable(path)


def check_output_folder(path: Path, option: str = "--output") -> None:
    """Checks that files can be made in a folder, without making it.

    Args:
        path (Path): The folder, there or not.
        option (str): What names it on the command line.

    Raises:
        ValueError: If it is a file, or it or the folder above it may not be written.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{path} is a file: name a folder with {option}.")
    _check_writable(path, option)


def _check_writable(path: Path, option: str = "--output") -> None:
    missing = not os.path.lexists(path)
    there = next(p for p in (path, *path.parents, Path()) if os.path.lexists(p))
    if missing and not there.is_dir():
        raise ValueError(
            f"{path} cannot be made, since {there} is a file: choose another {option}."
        )
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise ValueError(
            f"{path} cannot be written, since {there} is read-only: choose another "
            f"{option}, or make it writable."
        )


@contextmanager
def taken_back(
    *paths: Path, is_worth_keeping: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Takes away what the block makes if it fails and nothing has come of it yet.

    Args:
        paths (Path): Files and folders that the block may make. Those that are there
            already stay. Folders above them go too if they are new and nothing else is
            in them.
        is_worth_keeping (Callable): Whether there is a result, asked after a failure.
    """
    above = [p for path in paths for p in path.parents]
    new = [p for p in paths if not os.path.lexists(p)]
    new_above = [p for p in dict.fromkeys(above) if not os.path.lexists(p)]
    try:
        yield
    except BaseException:
        if not is_worth_keeping():
            for path in new:
                _remove(path)
            for folder in sorted(new_above, key=lambda p: len(p.parts), reverse=True):
                with suppress(OSError):  # not made, or something of others is in it
                    folder.rmdir()
        raise


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
