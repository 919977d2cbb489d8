"""A file of JSON lines that a run appends to, safe to stop at any moment.

Knows lines and locks; nothing of what a record means.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .locks import claim

# What a line holds: texts, numbers, lists and objects by name, as JSON has them.
Record = dict[str, Any]

# How every line begins that is written here.
_BEGINNING = b'{"id": "'


@contextmanager
def open_records(path: Path) -> Iterator["RecordFile"]:
    """Opens or makes a file of records, for this program alone.

    Raises:
        ValueError: If another program has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        claim(
            descriptor,
            f"Another program is writing {path}: wait for its end, or choose another "
            "--output.",
        )
        yield RecordFile(path, descriptor)
    finally:
        os.close(descriptor)


def has_records(path: Path) -> bool:
    """Whether there is anything in a file of records."""
    return path.exists() and path.stat().st_size > 0


class RecordFile:
    """An open file of records: a JSON object on each line, with its id first."""

    def __init__(self, path: Path, descriptor: int):
        self._path = path
        self._descriptor = descriptor

    def read(self, check: Callable[[object, str], None]) -> Iterator[Record]:
        """The records that are there; in the end the last line is mended.

        A line that a killed program left incomplete is cut off.

        Args:
            check (Callable): Given what a line holds (None if it is not JSON) and the
                line's place in words; raises a ValueError if it is no record of the
                run.

        Yields:
            dict: The records.
        """
        whole, is_ended = 0, True
        for line, record in _whole_lines(self._path, check):
            if record is not None:
                yield record
            whole += len(line)
            is_ended = line.endswith(b"\n")
        os.ftruncate(self._descriptor, whole)
        if not is_ended:
            os.write(self._descriptor, b"\n")

    def append(self, record: Record) -> None:
        """Appends a whole line or nothing, and waits until it is on the disk."""
        line, end = to_line(record), os.fstat(self._descriptor).st_size
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)
        except BaseException:
            if line:
                os.ftruncate(self._descriptor, end)
            raise


def read_finished(path: Path, check: Callable[[object, str], None]) -> list[Record]:
    """The whole records of a file, even of one that a program is writing just now.

    Args:
        path (Path): The file, which is left as it is.
        check (Callable): As for `RecordFile.read`.
    """
    return [record for _, record in _whole_lines(path, check) if record is not None]


def _whole_lines(
    path: Path, check: Callable[[object, str], None]
) -> Iterator[tuple[bytes, Record | None]]:
    """The lines of a file with their records, but for a last one that is incomplete."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            record = None
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    if not line.endswith(b"\n") and _is_begun(line):
                        return
                check(record, f"{path}, line {number},")
            yield line, record


def to_line(record: Record) -> bytes:
    """The line of a record.

    Raises:
        ValueError: If a text in it is not one: half of a surrogate pair.
    """
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _is_begun(line: bytes) -> bool:
    """Whether a piece of a line is of a record; a crash may leave zeros behind it."""
    return _BEGINNING.startswith(line[: len(_BEGINNING)].rstrip(b"\0"))
