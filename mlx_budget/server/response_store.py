"""Replies of the Responses interface that are kept, to be asked for or gone on with.

They are in memory, the oldest go first, and none outlives the server. Knows nothing of
what is in them.
"""

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Stored:
    """One reply.

    Attributes:
        response: As it was told.
        messages: The conversation up to and with it, as chat completions have it,
            without the instructions.
    """

    response: dict[str, Any]
    messages: list[dict[str, Any]]

    @property
    def size(self) -> int:
        """Bytes, as text."""
        return len(json.dumps([self.response, self.messages]))


class ResponseStore:
    """Keeps replies by their id.

    Args:
        most (int): Replies to keep.
        most_bytes (int): That they may take together.
    """

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES):
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[Stored, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, id: str, stored: Stored) -> None:
        """Keeps a reply, and lets go of the oldest if there are too many."""
        size = stored.size
        with self._lock:
            self._kept[id] = stored, size
            self._bytes += size
            while len(self._kept) > self._most or self._bytes > self._most_bytes:
                _, (_, oldest) = self._kept.popitem(last=False)
                self._bytes -= oldest

    def get(self, id: str) -> Stored | None:
        """A reply, or None if it is not there, or no more."""
        with self._lock:
            stored, _ = self._kept.get(id, (None, 0))
            return stored

    def delete(self, id: str) -> bool:
        """Lets go of a reply; whether it was there."""
        with self._lock:
            _, size = self._kept.pop(id, (None, None))
            self._bytes -= size or 0
            return size is not None
