"""Several replies to one request, told as the choices of one completion.

Each is generated as a request of its own, in the same batch. Knows mlx-lm's handler and
the form of completions; nothing of fields or of models.
"""

import copy
import functools
import json
import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

from .errors import RequestError


class _OneChoice:
    """What makes of a handler one that tells a choice, and sends no headers."""

    wfile: Any
    _headers_buffer: list[bytes]

    def _quiet(self, *_: Any, **__: Any) -> None:
        """Tells nothing."""

    send_response = send_header = end_headers = flush_headers = _quiet
    _set_completion_headers = _set_stream_headers = _set_cors_headers = _quiet


class _Pipe:
    """Takes what a choice has to tell, in the thread that generates it."""

    def __init__(self, put: Callable[[bytes], None]):
        self._put = put

    def write(self, data: bytes) -> int:
        self._put(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


# Choices of one request that are generated, or wait to be, at a time.
_AT_A_TIME = 32
_kinds: dict[type, type] = {}


def one_of(handler: Any, put: Callable[[bytes], None]) -> Any:
    """A handler for one choice of a handler's request."""
    kind = type(handler)
    if kind not in _kinds:
        _kinds[kind] = type("OneChoice", (_OneChoice, kind), {})
    one = copy.copy(handler)
    one.__class__ = _kinds[kind]
    one.wfile = _Pipe(put)
    return one


class Choices:
    """The replies to one request, while they are generated.

    Args:
        handler (Any): Of the request.
        run (list[Callable]): For each choice what lets a handler generate it.
        n (int): Choices for each prompt.
    """

    def __init__(self, handler: Any, run: list[Callable[[Any], None]], n: int):
        self._handler = handler
        self._n = n
        self._queue: Queue[tuple[int, bytes | BaseException | None]] = Queue()
        self._ones = [
            one_of(handler, functools.partial(self._put, i)) for i in range(len(run))
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(i, one, make), daemon=True)
            for i, (one, make) in enumerate(zip(self._ones, run, strict=True))
        ]
        self._begun = 0
        self._told: dict[int, dict[str, Any]] = {}
        self._usage: dict[int, dict[str, Any]] = {}
        self._has_begun = False

    def tell(self) -> None:
        """Generates all of them, and tells them to the client.

        Raises:
            RequestError: If one of them cannot be generated.
            ConnectionError: If the client has hung up.
        """
        for _ in range(_AT_A_TIME):
            self._begin_next()
        try:
            left = len(self._ones)
            while left:
                index, told = self._queue.get()
                if told is None:
                    left -= 1
                    self._begin_next()
                elif isinstance(told, BaseException):
                    raise told
                else:
                    self._take(index, told)
        finally:
            # The others look at the connection, which is closed after this.
            for one in self._ones:
                one.cancel()
            for thread in self._threads[: self._begun]:
                thread.join()
        self._end()

    def _begin_next(self) -> None:
        """Begins a choice, if there is one more."""
        if self._begun < len(self._threads):
            self._threads[self._begun].start()
            self._begun += 1

    def _put(self, index: int, data: bytes) -> None:
        self._queue.put((index, data))

    def _run(self, index: int, one: Any, make: Callable[[Any], None]) -> None:
        try:
            make(one)
        except BaseException as e:
            self._queue.put((index, e))
        finally:
            self._queue.put((index, None))

    def _take(self, index: int, data: bytes) -> None:
        if data.startswith(b'{"error": '):
            message = json.loads(data)["error"]
            raise self._ones[index].refusal or RequestError(str(message))
        if data.startswith(b"data: [DONE]"):
            return
        if data.startswith(b": "):
            if self._has_begun and index == 0:
                self._handler.wfile.write(data)
            return
        is_chunk = data.startswith(b"data: ")
        told = json.loads(data.removeprefix(b"data: "))
        for choice in told["choices"]:
            choice["index"] = index
        if "usage" in told and (not is_chunk or not told["choices"]):
            self._usage[index] = told
        if not is_chunk:
            self._told[index] = told
        elif told["choices"]:
            self._write(told)

    def _write(self, chunk: dict[str, Any]) -> None:
        handler = self._handler
        if not self._has_begun:
            handler._set_stream_headers(200)
            handler.end_headers()
            self._has_begun = True
        handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        handler.wfile.flush()

    def _end(self) -> None:
        if self._told:
            choices = [c for i in sorted(self._told) for c in self._told[i]["choices"]]
            whole = {**self._told[0], "choices": choices, "usage": self._sum()}
            self._handler.answer(whole)
            return
        if self._usage:
            self._write({**self._usage[0], "choices": [], "usage": self._sum()})
        self._handler.wfile.write(b"data: [DONE]\n\n")

    def _sum(self) -> dict[str, Any]:
        """The usage of all choices; each prompt counts once."""
        summed: dict[str, Any] = {}
        for index, told in sorted(self._usage.items()):
            is_first = index % self._n == 0
            for name, value in told["usage"].items():
                if name == "total_tokens":
                    continue
                if name.startswith("prompt") and not is_first:
                    continue
                summed[name] = _added(summed.get(name), value)
        summed["total_tokens"] = summed["prompt_tokens"] + summed["completion_tokens"]
        return summed


def _added(one: Any, other: Any) -> Any:
    if isinstance(other, dict):
        return {k: _added((one or {}).get(k), v) for k, v in other.items()}
    return other if one is None else one + other
