"""How large, how slow and how many requests may be.

Knows sizes, times and connections; nothing of HTTP or of what a request says.
"""

import resource
import socket
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

from ..engine.fields import check_numbers, setting
from .errors import RequestError

MEGABYTE = 1 << 20
# What Python makes of a small body of JSON may be huge: "[]," alone is 64 bytes.
MOST_VALUES = 1_000_000
MOST_DEPTH = 100
_MOST_LEAVING, _SECONDS_TO_LEAVE = 64, 0.5
# Files of models, libraries and logs.
_OTHER_FILES = 512


@dataclass(frozen=True)
class Limits:
    """What a client may take of the server.

    Attributes:
        connections: Most connections at a time.
        body: Most bytes of a request's body.
        head_seconds: In which a request's headers must be there.
        body_seconds: In which its body must be there, from then on.
        send_seconds: In which a client must take what is sent to it.
        grace_seconds: In which replies may end by themselves when the server ends.
    """

    GROUP: ClassVar[str] = "Limits"

    connections: int = setting(
        256,
        "Most connections at a time. Where there are more, the one that has waited "
        "longest without a whole request is closed.",
        keyword="max_connections",
        least=1,
    )
    body: int = setting(
        16 * MEGABYTE,
        "Most bytes of a request's body, such as 4MB.",
        keyword="max_body_bytes",
        least=1,
        shown="16MB",
    )
    head_seconds: float = setting(
        10.0,
        "Seconds in which a request's headers must have come.",
        keyword="header_timeout",
        least=0,
    )
    body_seconds: float = setting(
        60.0,
        "Seconds in which its body must have come, from then on.",
        keyword="body_timeout",
        least=0,
    )
    send_seconds: float = setting(
        60.0,
        "Seconds in which a client must take a piece of its reply.",
        keyword="send_timeout",
        least=0,
    )
    grace_seconds: float = setting(
        6.0,
        "Seconds that replies get to end by themselves when the server is stopped.",
        keyword="grace",
        least=0,
        most=3600,
    )

    def __post_init__(self) -> None:
        check_numbers(self)


def allow_files(connections: int) -> None:
    """Lets this process have so many connections open besides its files.

    mlx-lm asks for 2,048 of both together, of which macOS gives 256 by itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Deadline:
    """A moment by which something must have happened.

    Args:
        seconds (float): From now.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(self._end - time.monotonic(), 0.0)

    def receive(self, connection: socket.socket, size: int = 1 << 16) -> bytes:
        """What a connection sends next; nothing if it has come to its end.

        Raises:
            TimeoutError: If nothing came in time.
        """
        if not (left := self.left):
            raise TimeoutError
        connection.settimeout(left)
        return connection.recv(size)


class Connections:
    """The connections that are open, of which those without a request give way.

    A client that opens many, or sends slowly, cannot lock others out: where there is no
    place left, the connection is closed that has waited longest for its request to be
    whole.

    Args:
        most (int): At a time.
    """

    def __init__(self, most: int):
        self._most = most
        # In the order in which they came.
        self._reading: dict[socket.socket, None] = {}
        self._answering: set[socket.socket] = set()
        # Given up, and not closed yet by the threads that read them.
        self._leaving: set[socket.socket] = set()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._reading) + len(self._answering)

    def take(self, connection: socket.socket) -> bool:
        """Takes a new connection in; whether there is a place for it."""
        with self._changed:
            if len(self) >= self._most:
                if not self._reading:
                    return False
                self._give_up(next(iter(self._reading)))
                # Connections and threads are not to pile up however fast new ones come.
                self._changed.wait_for(
                    lambda: len(self._leaving) < _MOST_LEAVING, _SECONDS_TO_LEAVE
                )
            self._reading[connection] = None
            return True

    def answer(self, connection: socket.socket) -> bool:
        """Says that a request is whole; whether it still has its connection."""
        with self._changed:
            if connection not in self._reading:
                return False
            del self._reading[connection]
            self._answering.add(connection)
            return True

    def drop(self, connection: socket.socket) -> None:
        """Says that a connection is about to be closed."""
        with self._changed:
            self._reading.pop(connection, None)
            self._answering.discard(connection)
            self._leaving.discard(connection)
            self._changed.notify_all()

    def give_up_idle(self) -> None:
        """Closes those that have no request yet."""
        with self._changed:
            for connection in list(self._reading):
                self._give_up(connection)

    def wait_until_none(self, seconds: float) -> bool:
        """Waits for all requests to be answered; whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._answering, seconds)

    def _give_up(self, connection: socket.socket) -> None:
        del self._reading[connection]
        self._leaving.add(connection)
        try:
            # The thread that reads it finds its end, and closes it.
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def check_json(raw: bytes) -> None:
    """Checks how many values a JSON text has and how deep they lie, before it is read.

    What is not JSON may pass.

    Raises:
        RequestError: If there are too many, or one lies too deep.
    """
    # Behind pairs of backslashes a backslash escapes what follows.
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MOST_VALUES:
        raise _too_many()
    outside = b"".join(bare.split(b'"')[::2])
    if sum(map(outside.count, (b",", b":", b"[", b"{"))) > MOST_VALUES:
        raise _too_many()
    depth = 0
    for bracket in outside.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MOST_DEPTH:
            raise RequestError(
                "The request's body is not valid JSON for this server: it is nested "
                f"more than {MOST_DEPTH} deep."
            )


_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _too_many() -> RequestError:
    return RequestError(
        f"The request's body has more than {MOST_VALUES:,} values.", status=413
    )
