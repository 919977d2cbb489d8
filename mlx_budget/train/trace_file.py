"""The file of records that `traces` appends to, safe to stop at any moment.

Knows lines, locks and what a record is told by; nothing of models or replies.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ID = re.compile("([0-9]+)-([0-9]+)")
# How every line begins that is written here.
_BEGINNING = b'{"id": "'


@contextmanager
def open_traces(path: Path) -> Iterator["TraceFile"]:
    """Opens or makes a file of records, for this program alone.

    Raises:
        ValueError: If another program has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"Another program is writing {path}: wait for its end, or choose "
                "another --output."
            ) from None
        except OSError:
            pass  # not every file system has locks
        yield TraceFile(path, descriptor)
    finally:
        os.close(descriptor)


class TraceFile:
    """An open file of records: a JSON object on each line, with its id first."""

    def __init__(self, path: Path, descriptor: int):
        self._path = path
        self._descriptor = descriptor

    def read(
        self, chats: list[list[dict]], settings: str
    ) -> Iterator[tuple[tuple[int, int], dict]]:
        """The records that are there; in the end the last line is mended.

        A line that a killed program left incomplete is cut off.

        Args:
            chats (list): The messages to reply to, by the index of their prompt.
            settings (str): What the settings of the records must be.

        Yields:
            tuple: Indices of prompt and sample, and the record.

        Raises:
            ValueError: Naming the line that is no record, or one of another run.
        """
        whole, is_ended = 0, True
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        if not line.endswith(b"\n") and _is_begun(line):
                            break
                        record = None
                    where = f"{self._path}, line {number},"
                    yield _indices(record, where, chats, settings), record
                whole += len(line)
                is_ended = line.endswith(b"\n")
        os.ftruncate(self._descriptor, whole)
        if not is_ended:
            os.write(self._descriptor, b"\n")

    def append(self, record: dict) -> None:
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


def to_line(record: dict) -> bytes:
    """The line of a record.

    Raises:
        ValueError: If a text in it is not one: half of a surrogate pair.
    """
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _is_begun(line: bytes) -> bool:
    """Whether a piece of a line is of a record; a crash may leave zeros behind it."""
    return _BEGINNING.startswith(line[: len(_BEGINNING)].rstrip(b"\0"))


def _indices(
    record: object, where: str, chats: list[list[dict]], settings: str
) -> tuple[int, int]:
    """Indices of prompt and sample of a record, if it is one of this run."""
    if not isinstance(record, dict) or not _is_trace(record):
        raise ValueError(
            f"{where} is no record of traces: choose another --output, or remove the "
            "line."
        )
    index, sample = map(int, _ID.fullmatch(record["id"]).groups())
    if record.get("settings") != settings:
        raise ValueError(
            f"{where} was made with another model, or other options of sampling, "
            "prompt, markers or length: choose another --output, or set them as before."
        )
    if index >= len(chats) or record["messages"][:-1] != chats[index]:
        raise ValueError(
            f"{where} does not belong to prompt {index} of these (the first is 0): "
            "choose another --output, or give the prompts as before."
        )
    return index, sample


def _is_trace(record: dict) -> bool:
    name = record.get("id")
    return (
        isinstance(name, str)
        and _ID.fullmatch(name) is not None
        and isinstance(record.get("messages"), list)
        and isinstance(record.get("thinking_tokens"), int)
        and "closed_by" in record
    )
