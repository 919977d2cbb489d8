"""Keeps a file or folder for one program at a time.

Knows the locks of the system, which end with the program that holds them, however that
ends; nothing of what is kept.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The package filelock (4.3) cannot lock a folder, and many earlier releases of it empty
# or delete the file that they lock. Each lock would need a file of its own, which stays
# beside the user's.


def lock(descriptor: int) -> None:
    """Locks an open file or folder until it is closed.

    Raises:
        BlockingIOError: If another program has it.
        OSError: If its file system has no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def claim(descriptor: int, refusal: str) -> None:
    """Keeps an open file or folder for this program alone, until it is closed.

    Not every file system has locks; where there are none, nobody is kept out.

    Raises:
        ValueError: With ``refusal``, if another program has it.
    """
    try:
        lock(descriptor)
    except BlockingIOError:
        raise ValueError(refusal) from None
    except OSError:
        pass


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keeps a folder for this program alone, until the block or the program ends.

    Raises:
        ValueError: If another program has it.
    """
    with opened(folder) as descriptor:
        claim(descriptor, f"Another program is at work in {folder}.")
        yield


@contextmanager
def waited_for(folder: Path) -> Iterator[None]:
    """Keeps a folder for this program alone, as soon as no other has it.

    Where a file system has no locks nobody is kept out.
    """
    with opened(folder) as descriptor:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A folder, opened so that it can be locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
