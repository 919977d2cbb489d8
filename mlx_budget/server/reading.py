"""Reads one request from a connection, strictly and within limits.

Knows HTTP/1.1's syntax, by h11, and times; nothing of who may ask or what a request
says.
"""

import re
import socket
from http.client import HTTPMessage

import h11

from .errors import RequestError
from .limits import Deadline, Limits

MOST_HEAD = 32 * 1024
_HEAD_TOO_LONG = f"The request's headers have more than {MOST_HEAD:,} bytes."
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:(.*)$")
_METHODS = ("GET", "POST", "OPTIONS", "DELETE")


class RequestReader:
    """Reads a request's head, and then its body.

    Args:
        connection (socket.socket): From the client.
        limits (Limits): Of sizes and times.

    Attributes:
        method: Once the head is read, as all that follow.
        target: Path and query.
        headers: Of the request.
    """

    def __init__(self, connection: socket.socket, limits: Limits):
        self._connection = connection
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        self._received = b""
        self.method = ""
        self.target = "/"
        self.headers = HTTPMessage()

    def read_head(self) -> None:
        """Reads the request's line and headers.

        Raises:
            RequestError: If they are not HTTP/1.0 or 1.1, too long, too slow, or leave
                open where the request ends.
            ConnectionError: If the client has gone.
        """
        event = self._next(Deadline(self._limits.head_seconds), "headers")
        if not isinstance(event, h11.Request):
            raise ConnectionAbortedError("the client has sent nothing")
        self.method = event.method.decode("ascii")
        self.target = event.target.decode("ascii")
        for name, value in event.headers:
            self.headers[name.decode("ascii")] = value.decode("latin-1")
        if event.http_version not in (b"1.0", b"1.1"):
            raise RequestError("Only HTTP/1.0 and HTTP/1.1 are spoken here.", None, 505)
        if self.method not in _METHODS:
            raise RequestError(f"{self.method} is not served here.", status=405)
        if not self.target.startswith("/") and self.target != "*":
            raise RequestError("The request must name a path that begins with a slash.")
        head = self._received.partition(b"\r\n\r\n")[0]
        if len(head) > MOST_HEAD:
            raise RequestError(_HEAD_TOO_LONG, status=431)
        lengths, self._received = _LENGTH.findall(head), b""
        if len(lengths) > 1 or b"," in b"".join(lengths):
            raise RequestError("The request has more than one Content-Length.")
        length = self.headers.get("Content-Length")
        if length is not None and "Transfer-Encoding" in self.headers:
            raise RequestError(
                "Content-Length and Transfer-Encoding say where the body ends: give "
                "one of them."
            )
        if length is None and self.method == "POST":
            if "Transfer-Encoding" not in self.headers:
                raise RequestError("Content-Length header is required.", status=411)
        if length is not None and int(length) > self._limits.body:
            raise self._too_long(f"{int(length):,} bytes")

    @property
    def has_body(self) -> bool:
        """Whether the request has a body, or may have one."""
        return (
            "Transfer-Encoding" in self.headers
            or self.headers.get("Content-Length", "0") != "0"
        )

    def read_body(self) -> bytes:
        """Reads the request's body; the headers say its length from then on.

        Raises:
            RequestError: If it is too long, too slow or cut off.
        """
        if self._http.they_are_waiting_for_100_continue:
            self._connection.settimeout(self._limits.send_seconds)
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
        deadline = Deadline(self._limits.body_seconds)
        pieces, length = [], 0
        while isinstance(event := self._next(deadline, "body"), h11.Data):
            length += len(event.data)
            if length > self._limits.body:
                raise self._too_long("more bytes")
            pieces.append(bytes(event.data))
        del self.headers["Transfer-Encoding"], self.headers["Content-Length"]
        self.headers["Content-Length"] = str(length)
        return b"".join(pieces)

    def read_over(self) -> None:
        """Takes what a client still sends, for it to come to read the answer."""
        deadline, read = Deadline(1.0), 0
        try:
            self._connection.shutdown(socket.SHUT_WR)
            while data := deadline.receive(self._connection):
                read += len(data)
                if read > 8 * self._limits.body:
                    break
        except OSError:
            pass

    def _next(self, deadline: Deadline, what: str) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = deadline.receive(self._connection)
                if not self.method:
                    self._received += data
                self._http.receive_data(data)
        except TimeoutError:
            raise RequestError(
                f"The request's {what} did not come in time.", status=408
            ) from None
        except h11.RemoteProtocolError as e:
            why = f"The request is no valid HTTP: {e}."
            if e.error_status_hint == 431:
                why = _HEAD_TOO_LONG
            raise RequestError(why, status=e.error_status_hint) from None
        return event

    def _too_long(self, has: str) -> RequestError:
        return RequestError(
            f"The request's body has {has}, more than {self._limits.body:,}.",
            status=413,
        )
