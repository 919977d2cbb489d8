"""The one door of all interfaces: a request is read and judged before anything is done.

Knows HTTP, limits and the guard; nothing of what the interfaces answer.
"""

import io
import json
import logging
import math
import re
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

from mlx_lm import server

from .error_forms import error_content
from .errors import RequestError
from .guard import Guard, check_content_type
from .ledger import Ledger, Record, interface_of
from .limits import Limits, check_json
from .reading import RequestReader


class GuardedHandler(server.APIHandler):
    """`mlx_lm.server.APIHandler` that sees only requests that may be answered.

    Their bodies are read and parsed already: ``read_json`` has the value, and ``rfile``
    the bytes.
    """

    guard: Guard
    limits: Limits
    ledger: Ledger
    record: Record
    model: str
    server: Any  # a `Listener`
    # So that whatever ends a connection early finds them.
    command = requestline = ""
    path = "/"
    has_begun = False
    _json: Any = None
    _unread: RequestReader | None = None

    def handle_one_request(self) -> None:
        """Reads a request, judges it, and answers it; a record tells of it."""
        self.close_connection = True
        self.request_version = "HTTP/1.1"
        self.headers = HTTPMessage()
        self.record = self.ledger.open()
        try:
            self._handle()
        except (ConnectionError, TimeoutError):
            self.record.fail("the client has hung up")
            raise
        except Exception as e:
            self.record.fail(e)
            raise
        finally:
            self.ledger.close(self.record)
        if self._unread is not None:
            self._unread.read_over()

    def _handle(self) -> None:
        reader = RequestReader(self.connection, self.limits)
        is_read = False
        try:
            try:
                reader.read_head()
            finally:
                self.command, self.headers = reader.method, reader.headers
                self.path = f"/{reader.target.lstrip('/')}"
            if self.command == "POST":
                self.record.interface = interface_of(self.path)
            is_preflight = self.command == "OPTIONS"
            self.guard.check(self.headers, self.path.partition("?")[0], is_preflight)
            if self.command == "POST":
                check_content_type(self.headers)
                raw = reader.read_body()
                is_read = True
                self._take_body(raw)
                del raw
        except RequestError as e:
            self.connection.settimeout(self.limits.send_seconds)
            self.refuse(e)
            self._unread = None if is_read else reader
            return
        self.connection.settimeout(self.limits.send_seconds)
        if not self.server.connections.answer(self.connection):
            raise ConnectionAbortedError("the connection was given to another client")
        respond = getattr(self, f"do_{self.command}", None)
        if respond is None:
            self.refuse(RequestError(f"{self.command} is not served here.", None, 405))
        else:
            respond()

    def read_json(self) -> dict[str, Any]:
        """The object that is the request's body. It can be taken once.

        Raises:
            RequestError: If the body is no JSON object.
        """
        body, self._json = self._json, None
        if not isinstance(body, dict):
            raise RequestError("The request's body must be a JSON object.")
        return body

    def own_names(self) -> set[str]:
        """The names of the model that is served by default."""
        return {self.model, str(Path(self.model).resolve())}

    def refuse(self, error: RequestError) -> None:
        """Answers with an error, in the form of the interface that was asked."""
        content = self.told(error)
        self.record.fail(error)
        self._headers_buffer: list[bytes] = []
        self._set_completion_headers(error.status)
        if error.status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if error.status == 503:
            self.send_header("Retry-After", "5")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def told(self, error: RequestError) -> bytes:
        """An error in the form of the interface that was asked."""
        return error_content(error, self.path)

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self._set_cors_headers()
        self.end_headers()

    def send_response(self, code: int, message: str | None = None) -> None:
        super().send_response(code, message)
        self.record.status = code

    def end_headers(self) -> None:
        super().end_headers()
        self.has_begun = True

    def version_string(self) -> str:
        return "mlx-budget"

    def log_message(self, format: str, *args: Any) -> None:
        logging.debug(format, *args)

    def _set_cors_headers(self) -> None:
        for name, value in self.guard.cross_origin_headers(self.headers).items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")

    def _take_body(self, raw: bytes) -> None:
        check_json(raw)
        try:
            body = json.loads(
                raw.decode(),
                parse_int=_read_integer,
                parse_float=_read_float,
                parse_constant=_read_float,
            )
        except (ValueError, RecursionError) as e:
            raise RequestError(f"The request's body is not valid JSON: {e}.") from None
        if isinstance(body, dict):
            self.guard.check_fields(body, self.own_names())
        self._json = body
        self.rfile = io.BytesIO(raw)


def _read_integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        shown = re.sub(r"(?s)(.{20}).+", r"\1...", text)
        raise ValueError(f"{shown} is no finite number")
    return value
