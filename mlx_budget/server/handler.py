"""Requests and responses over HTTP: mlx-lm's handler, with budgets in and counts out.

Knows HTTP and the fields of OpenAI's interface; nothing of models or samplers.
"""

import io
import json
import logging
import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from mlx_lm import server

from .budgets import BudgetPolicy, asked_floor, read_thinking, room_for
from .errors import RequestError
from .exchange import Exchange
from .steering import Steering

MAX_BODY = 64 * 1024 * 1024
_SECONDS_TO_READ = 60


class _ErrorWriter:
    """Writes to a client; a refusal in mlx-lm's form becomes one in OpenAI's."""

    def __init__(self, out: io.BufferedIOBase, field: Callable[[], str | None]):
        self._out = out
        self._field = field

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, data: bytes) -> int:
        if data.startswith(b'{"error": "'):
            data = error_body(json.loads(data)["error"], self._field())
        return self._out.write(data)


def error_body(message: str, field: str | None = None) -> bytes:
    """An error as OpenAI's interface tells it."""
    content = {
        "message": message,
        "type": "invalid_request_error",
        "param": field,
        "code": None,
    }
    return json.dumps({"error": content}).encode()


def make_handler(policy: BudgetPolicy, model: str, max_tokens: int | None) -> type:
    """A handler class for `mlx_lm.server`.

    Args:
        policy (BudgetPolicy): How thinking is treated.
        model (str): The default model, as it was named.
        max_tokens (int, optional): Of requests that set none; by default mlx-lm's
            default without a budget, and room for an answer behind the budget with one.
    """
    return type(
        "Handler",
        (BudgetHandler,),
        {"policy": policy, "model": model, "default_max_tokens": max_tokens},
    )


class BudgetHandler(server.APIHandler):
    """`mlx_lm.server.APIHandler` with thinking budgets; see `make_handler`."""

    policy: BudgetPolicy
    model: str
    default_max_tokens: int | None
    response_generator: Any  # the server's, and then `_exchange` in its place
    _exchange: Exchange | None = None

    def setup(self) -> None:
        super().setup()
        writer = _ErrorWriter(self.wfile, self._wrong_field)
        self.wfile = cast(io.BufferedIOBase, writer)

    def do_POST(self) -> None:
        if not self.path.endswith("/completions"):
            super().do_POST()  # says that there is nothing
            return
        try:
            body = self._read_body()
            if body is not None:
                check_body(body)
                self._thinking = read_thinking(body, self.policy)
            super().do_POST()
        except RequestError as e:  # mlx-lm 0.32 answers those of its own calls
            self._refuse(e)
        except ConnectionError:
            raise
        except Exception as e:
            logging.exception("A request failed.")
            self._fail(e)

    def handle_chat_completions(self) -> server.CompletionRequest:
        self._require("messages")
        return super().handle_chat_completions()

    def handle_text_completions(self) -> server.CompletionRequest:
        self._require("prompt")
        return super().handle_text_completions()

    def validate_model_parameters(self) -> None:
        try:
            for name in ("xtc_probability", "xtc_threshold"):
                if type(value := getattr(self, name)) is int:
                    setattr(self, name, float(value))  # mlx-lm refuses a 0 or a 1
            super().validate_model_parameters()
        except (ValueError, TypeError, OverflowError) as e:
            raise RequestError(str(e)) from None
        thinking = self._thinking
        asked = ("max_completion_tokens", "max_tokens")
        is_given = any(name in self.body for name in asked)
        if not is_given and self.default_max_tokens is None and not thinking.is_free:
            self.max_tokens = room_for(thinking)
        template = self.chat_template_kwargs
        if template and "thinking_budget" in template:
            # A template that writes the budget down shall write the one that holds.
            template.pop("thinking_budget")
            if thinking.ceiling is not None:
                template["thinking_budget"] = thinking.ceiling

    def handle_completion(
        self, request: server.CompletionRequest, stop_words: list[str]
    ) -> None:
        self._exchange = Exchange(
            self.response_generator,
            Steering(self._thinking, asked_floor(self.body), self.connection),
            self._default_names(),
            self.policy.stop_in_thinking,
        )
        self.response_generator = self._exchange
        super().handle_completion(request, stop_words)

    def handle_health_check(self) -> None:
        is_healthy = self.response_generator.is_healthy
        self._set_completion_headers(200 if is_healthy else 503)
        self.end_headers()
        status = "ok" if is_healthy else "unavailable"
        self.wfile.write(json.dumps({"status": status}).encode())

    def generate_response(
        self,
        text: str,
        finish_reason: Literal["length", "stop"] | None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        response = super().generate_response(text, finish_reason, *args, **kwargs)
        (choice,) = response["choices"]
        if self.object_type == "text_completion" and kwargs.get("reasoning_text"):
            choice["reasoning"] = kwargs["reasoning_text"]
        thinking = self._reply_thinking()
        if finish_reason is not None and thinking is not None:
            choice["thinking"] = thinking
            if self._exchange is not None and self._exchange.left_out_by is not None:
                choice["left_out_by_template"] = self._exchange.left_out_by
        return self._with_details(response)

    def completion_usage_response(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._with_details(super().completion_usage_response(*args, **kwargs))

    def handle_models_request(self) -> None:
        # Its answer is caught on its way out, for the default model to be put in.
        client, self.wfile = self.wfile, io.BytesIO()
        super().handle_models_request()
        caught, self.wfile = self.wfile.getvalue(), client
        head, _, body = caught.partition(b"\r\n\r\n")
        answer = json.loads(body)
        names = self._default_names()
        others = [entry for entry in answer["data"] if entry["id"] not in names]
        own = {"id": self.model, "object": "model", "created": self.created}
        wanted = self.path.removeprefix("/v1/models").strip("/")
        answer["data"] = [own] * (wanted in ("", self.model)) + others
        self.wfile.write(head + b"\r\n\r\n" + json.dumps(answer).encode())

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # mlx-lm answers 404 to whatever keeps a request from being generated.
        refusal = self._refusal()
        if status_code == 404 and refusal is not None:
            status_code = refusal.status
        super()._set_completion_headers(status_code)

    def _reply_thinking(self) -> dict[str, Any] | None:
        return None if self._exchange is None else self._exchange.thinking()

    def _with_details(self, response: dict[str, Any]) -> dict[str, Any]:
        details = None if self._exchange is None else self._exchange.token_details()
        if "usage" in response and details is not None:
            response["usage"]["completion_tokens_details"] = details
        return response

    def _read_body(self) -> dict[str, Any] | None:
        """The request's JSON object, left to be read again; None if it has no length.

        Fields that are null are left out, as not given.

        Raises:
            RequestError: If it is too long, cut off or no JSON object.
        """
        length = self.headers.get("Content-Length")
        if length is None:
            return None  # mlx-lm's answer says what is missing
        if not re.fullmatch("[0-9]{1,18}", length):
            raise RequestError("Content-Length must be a number of bytes.")
        if int(length) > MAX_BODY:
            raise RequestError(
                f"The request has {int(length):,} bytes, more than {MAX_BODY:,}.",
                status=413,
            )
        self.connection.settimeout(_SECONDS_TO_READ)
        try:
            raw = self.rfile.read(int(length))
        except TimeoutError:
            raise RequestError("The request's body did not come.", status=408) from None
        finally:
            self.connection.settimeout(None)
        try:
            body = json.loads(
                raw.decode(),
                parse_int=_read_integer,
                parse_float=_read_float,
                parse_constant=_read_float,
            )
        except (ValueError, RecursionError) as e:
            raise RequestError(f"The request's body is not valid JSON: {e}.") from None
        if not isinstance(body, dict):
            raise RequestError("The request's body must be a JSON object.")
        asked = ("messages", "prompt")
        body = {k: v for k, v in body.items() if v is not None or k in asked}
        if isinstance(body.get("stream_options"), dict):
            body["stream_options"].setdefault("include_usage", False)
        raw = json.dumps(body).encode()
        self.headers.replace_header("Content-Length", str(len(raw)))
        self.rfile = io.BytesIO(raw)
        return body

    def _default_names(self) -> set[str]:
        return {self.model, str(Path(self.model).resolve())}

    def _require(self, field: str) -> None:
        if field not in self.body:
            raise RequestError(f"The request has no {field}.", field)

    def _refuse(self, error: RequestError) -> None:
        """Answers with an error in the form of OpenAI's."""
        self._set_completion_headers(error.status)
        self.end_headers()
        self.wfile.write(error_body(str(error), error.field))
        if error.status == 413:
            self._read_over()

    def _fail(self, error: Exception) -> None:
        """Says that a reply cannot be had, in a stream behind what has come of it."""
        is_begun = not getattr(self, "_headers_buffer", None)
        if is_begun:
            event = b"data: " + error_body(str(error)) + b"\n\n"
            self.wfile.write(event)
        else:
            self._headers_buffer: list[bytes] = []
            self._refuse(RequestError(str(error), status=500))

    def _read_over(self) -> None:
        """Takes what a client still sends, for it to come to read the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1)
        read = 0
        try:
            while read < 2 * MAX_BODY and (data := self.connection.recv(1 << 16)):
                read += len(data)
        except OSError:
            pass

    def _refusal(self) -> RequestError | None:
        return self._exchange.refusal if self._exchange is not None else None

    def _wrong_field(self) -> str | None:
        refusal = self._refusal()
        return refusal.field if refusal is not None else None


def _read_integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def check_body(body: dict[str, Any]) -> None:
    """Checks the fields whose types mlx-lm takes for granted.

    Args:
        body (dict): Of a request.

    Raises:
        RequestError: Naming the field that is wrong, and what it must be.
    """
    for field, is_right, what in _FIELDS:
        value = body.get(field)
        if field in body and not is_right(value):
            raise RequestError(f"{field} must be {what}.", field)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and all(_is_content(m.get("content")) for m in value)
    )


def _is_content(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(part, dict) and _is_part(part) for part in value)
    return value is None or isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_part(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return isinstance(part.get("text"), str) if kind == "text" else _is_text(kind)


def _is_stop(value: object) -> bool:
    words = value if isinstance(value, list) else [value]
    return all(isinstance(word, str) and word for word in words)


_FIELDS = (
    ("messages", _are_messages, "a list of one or more messages with role and content"),
    ("prompt", _is_text, "a text"),
    ("stop", _is_stop, "a text or a list of texts, none of them empty"),
    ("max_tokens", _is_count, "a whole number of 1 or more"),
    ("max_completion_tokens", _is_count, "a whole number of 1 or more"),
    ("tools", lambda v: isinstance(v, list), "a list"),
    ("model", _is_text, "a text"),
    ("chat_template_kwargs", lambda v: isinstance(v, dict), "an object"),
    ("role_mapping", lambda v: isinstance(v, dict), "an object"),
    (
        "stream_options",
        lambda v: isinstance(v, dict) and isinstance(v.get("include_usage"), bool),
        "an object with include_usage true or false",
    ),
)
