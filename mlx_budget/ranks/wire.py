"""The connections between rank 0 and another rank, and whether the other is there.

MLX's collectives carry the arrays of a model. They have no time limit, and a rank that
waits in one hears nothing else: so these are connections of their own. One carries what
the ranks say in order, and is read by who waits for it; the other is watched by threads
all the time. Knows bytes and time; nothing of what messages mean.
"""

import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

# A rank that says nothing for so long is taken for dead: each beats once a second.
SILENCE_SECONDS = 8.0
_BEAT_SECONDS = 1.0


class Wire:
    """Sends and receives messages, from any thread.

    Args:
        talk (Connection): To the other rank, for what is said in order.
        watch (Connection): To the other rank, for what cannot wait.
        take (Callable): Is given each message that cannot wait, in a thread of its own.
        lose (Callable): Is told why, in that thread, when the other rank is gone.
        look (Callable): Is called once a second, in another thread.
    """

    def __init__(
        self,
        talk: Connection,
        watch: Connection,
        take: Callable[[bytes], None],
        lose: Callable[[str], None],
        look: Callable[[], None],
    ):
        self._talk, self._watch = talk, watch
        self._take, self._lose, self._look = take, lose, look
        self._talking, self._watching = threading.Lock(), threading.Lock()
        self._is_over = threading.Event()
        _send_at_once(talk)
        for run in (self._read, self._beat):
            threading.Thread(target=run, daemon=True).start()

    def say(self, message: bytes) -> None:
        """Sends a message; one to a rank that is gone is lost, as `lose` tells."""
        try:
            with self._talking:
                self._talk.send_bytes(message)
        except (OSError, ValueError):
            pass

    def cry(self, message: bytes) -> None:
        """Sends a message that cannot wait."""
        try:
            with self._watching:
                self._watch.send_bytes(message)
        except (OSError, ValueError):
            pass

    def hear(self, seconds: float) -> bytes | None:
        """The next message that was said; None if none comes in time, or none ever."""
        try:
            return self._talk.recv_bytes() if self._talk.poll(seconds) else None
        except (EOFError, OSError):
            # The threads know that the other is gone, or will within moments.
            self._is_over.wait(min(seconds, 0.05))
            return None

    def close(self) -> None:
        """Ends the connection; the other rank is not said to be gone."""
        self._is_over.set()

    def _read(self) -> None:
        why = "has ended"
        try:
            while True:
                if not self._watch.poll(SILENCE_SECONDS):
                    why = f"has not been heard of for {SILENCE_SECONDS:.0f} seconds"
                    break
                if message := self._watch.recv_bytes():
                    self._take(message)
        except (EOFError, OSError):
            pass
        if not self._is_over.is_set():
            self._lose(why)

    def _beat(self) -> None:
        while not self._is_over.wait(_BEAT_SECONDS):
            self.cry(b"")
            self._look()


def _send_at_once(connection: Connection) -> None:
    """Small messages must not wait for each other."""
    with socket.socket(fileno=connection.fileno()) as other:
        try:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        finally:
            other.detach()
