"""What was typed in earlier chats, for the arrow keys: a private file of the user's.

Knows the file; nothing of the chat. Without the file there is just no history.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path

from prompt_toolkit.history import FileHistory

from ..files.atomic import appearing_file
from ..files.user_cache import user_cache

# Entries that are remembered, bytes of one, and of a file before it is cut.
MOST_ENTRIES = 1000
MOST_BYTES = 64 << 10
MOST_BYTES_IN_FILE = 1 << 20


class PrivateHistory(FileHistory):
    """A history in a file that nobody but the user may read.

    It has the form of prompt_toolkit's `FileHistory`. A file that cannot be read or
    written is passed over.

    Args:
        file (Path, optional): The file; by default ``chat_history`` in the user's
            cache. It appears with the first entry.
    """

    def __init__(self, file: Path | None = None):
        self._file = file or user_cache() / "chat_history"
        super().__init__(str(self._file))
        with suppress(OSError):
            if self._file.stat().st_size > MOST_BYTES_IN_FILE:
                self._cut()

    def load_history_strings(self) -> Iterable[str]:
        """The latest entries, newest first."""
        try:
            return list(islice(super().load_history_strings(), MOST_ENTRIES))
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Adds an entry, in one write, so that none is ever written by half."""
        entry = _entry(string)
        if len(entry) > MOST_BYTES:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            descriptor = os.open(self._file, flags, 0o600)
            try:
                os.write(descriptor, entry)
            finally:
                os.close(descriptor)

    def _cut(self) -> None:
        """Leaves the latest entries in the file, in half the bytes that it may have."""
        kept: list[bytes] = []
        for string in self.load_history_strings():
            entry = _entry(string)
            if sum(map(len, kept)) + len(entry) > MOST_BYTES_IN_FILE // 2:
                break
            kept.append(entry)
        with appearing_file(self._file, is_private=True) as f:
            f.writelines(reversed(kept))


def _entry(text: str) -> bytes:
    lines = "".join(f"+{line}\n" for line in text.split("\n"))
    return f"\n# {datetime.now()}\n{lines}".encode("utf-8", "replace")
