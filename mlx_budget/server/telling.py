"""What mlx-lm's handler writes to a client, told as the client's interface has it.

Knows the bytes of mlx-lm's replies; nothing of HTTP or of models.
"""

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

from .errors import RequestError
from .translation import Event, Translation


class Teller:
    """Writes to a client; refusals and streams of mlx-lm's in another's form.

    Args:
        out (io.BufferedIOBase): To the client.
        refusal (Callable): Makes of the message of a refusal what the client is told.
        prompt (Callable): Tokens of the prompt of the reply that is told, and those of
            them that were in the cache.

    Attributes:
        translation: Of the request; None if it is one of mlx-lm's own.
        is_begun: Whether a stream has begun.
    """

    def __init__(
        self,
        out: io.BufferedIOBase,
        refusal: Callable[[str], bytes],
        prompt: Callable[[], tuple[int, int]],
    ):
        self._out = out
        self._refusal = refusal
        self._prompt = prompt
        self.translation: Translation | None = None
        self.is_begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, data: bytes) -> int:
        """Writes what mlx-lm has to tell."""
        if data.startswith(b'{"error": "'):
            data = self._refusal(json.loads(data)["error"])
        elif self.translation is not None:
            data = self._translated(data, self.translation)
        return self._out.write(data) if data else 0

    def fail(self, error: RequestError) -> None:
        """Ends a stream of another interface that cannot go on."""
        if self.translation is not None:
            begun = self._begun(self.translation)
            self._out.write(begun + _encode(self.translation.failed(error)))

    def _translated(self, data: bytes, translation: Translation) -> bytes:
        if data.startswith(b"data: [DONE]"):
            return b""
        if data.startswith(b": keepalive"):
            return self._begun(translation) + translation.keep_alive()
        if not data.startswith(b"data: "):
            return data
        chunk = json.loads(data.removeprefix(b"data: "))
        return self._begun(translation) + _encode(translation.take(chunk))

    def _begun(self, translation: Translation) -> bytes:
        if self.is_begun:
            return b""
        self.is_begun = True
        return _encode(translation.begin(*self._prompt()))


def _encode(events: Iterable[Event]) -> bytes:
    return b"".join(event.encode() for event in events)
