"""Requests and responses over HTTP: mlx-lm's handler, with budgets in and counts out.

Knows HTTP and the fields of OpenAI's interface; nothing of models or samplers.
"""

import io
import json
import select
import socket
from collections.abc import Callable, Iterator
from typing import BinaryIO

from mlx_lm import server

from .budgets import BudgetPolicy, RequestError, ThinkingRequest, read_thinking
from .generation import BudgetResponseGenerator, Steering

MAX_BODY = 64 * 1024 * 1024
_SECONDS_TO_READ = 60


class Exchange:
    """The generator as one request sees it: its reply followed, its client watched.

    Args:
        generator (BudgetResponseGenerator): Of the server.
        connection (socket.socket): To the client.
        thinking (ThinkingRequest): What the request gets.

    Attributes:
        steering: Of the request.
        status: Of HTTP, once the request was refused.
        field: The request's field that is wrong, if it is one.
    """

    def __init__(
        self,
        generator: BudgetResponseGenerator,
        connection: socket.socket,
        thinking: ThinkingRequest,
    ):
        self._generator = generator
        self._connection = connection
        self.steering = Steering(thinking)
        self.status: int | None = None
        self.field: str | None = None

    def __getattr__(self, name: str):
        return getattr(self._generator, name)

    def generate(
        self,
        request: server.CompletionRequest,
        generation_args: server.GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[server.GenerationContext, Iterator[server.Response]]:
        """As `mlx_lm.server.ResponseGenerator.generate`.

        Raises:
            RequestError: If the request cannot be honoured.
            RuntimeError: If the generation thread has died.
        """
        request.steering = self.steering

        def progress(processed: int, total: int) -> None:
            self._check_client()
            if progress_callback is not None:
                progress_callback(processed, total)

        try:
            context, responses = self._generator.generate(
                request, generation_args, progress_callback=progress
            )
        except RequestError as e:
            self.status, self.field = e.status, e.field
            raise
        except RuntimeError:
            self.status = 503
            raise
        return context, self._follow(responses)

    def thinking(self) -> dict | None:
        """How the reply's thinking went, or None if the model does not think."""
        tracker = self.steering.tracker
        if tracker is None:
            return None
        return {
            "budget": self.steering.record.budget,
            "tokens": tracker.thinking_tokens,
            "closed_by": tracker.closed_by,
        }

    def _follow(self, responses: Iterator[server.Response]) -> Iterator:
        for step, response in enumerate(responses):
            self._check_client()
            self.steering.follow(step, response)
            yield response

    def _check_client(self) -> None:
        """Raises a ConnectionAbortedError, which frees the slot, if nobody listens."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if poll.poll(0) and not self._connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError("the client has hung up")


class _ErrorWriter:
    """Writes to a client; a refusal in mlx-lm's form becomes one in OpenAI's."""

    def __init__(self, out: BinaryIO, field: Callable[[], str | None]):
        self._out = out
        self._field = field

    def __getattr__(self, name: str):
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
    _exchange: Exchange | None = None

    def setup(self) -> None:
        super().setup()
        self.wfile = _ErrorWriter(self.wfile, self._wrong_field)

    def do_POST(self) -> None:
        try:
            body = self._read_body()
            if body is not None:
                check_body(body)
                self._thinking = read_thinking(body, self.policy)
            super().do_POST()
        except RequestError as e:  # mlx-lm 0.32 answers those of its own calls
            self._refuse(e)

    def handle_chat_completions(self) -> server.CompletionRequest:
        self._require("messages")
        return super().handle_chat_completions()

    def handle_text_completions(self) -> server.CompletionRequest:
        self._require("prompt")
        return super().handle_text_completions()

    def validate_model_parameters(self) -> None:
        try:
            super().validate_model_parameters()
        except ValueError as e:
            raise RequestError(str(e)) from None
        thinking = self._thinking
        asked = ("max_completion_tokens", "max_tokens")
        given = any(self.body.get(name) is not None for name in asked)
        if given or self.default_max_tokens is not None:
            self._thinking = thinking.leaving_room(self.max_tokens)
        elif thinking.budget is not None:
            self.max_tokens = thinking.default_max_tokens

    def handle_completion(
        self, request: server.CompletionRequest, stop_words: list[str]
    ) -> None:
        self._exchange = Exchange(
            self.response_generator, self.connection, self._thinking
        )
        self.response_generator = self._exchange
        super().handle_completion(request, stop_words)

    def generate_response(
        self, text: str, finish_reason: str | None, *args, **kwargs
    ) -> dict:
        response = super().generate_response(text, finish_reason, *args, **kwargs)
        (choice,) = response["choices"]
        if self.object_type == "text_completion" and kwargs.get("reasoning_text"):
            choice["reasoning"] = kwargs["reasoning_text"]
        thinking = self._exchange.thinking()
        if finish_reason is not None and thinking is not None:
            choice["thinking"] = thinking
        return self._with_details(response)

    def completion_usage_response(self, *args, **kwargs) -> dict:
        return self._with_details(super().completion_usage_response(*args, **kwargs))

    def handle_models_request(self) -> None:
        # Its answer is caught on its way out, for the default model to be put in.
        client, self.wfile = self.wfile, io.BytesIO()
        super().handle_models_request()
        caught, self.wfile = self.wfile.getvalue(), client
        head, _, body = caught.partition(b"\r\n\r\n")
        answer = json.loads(body)
        wanted = self.path.removeprefix("/v1/models").strip("/")
        if wanted in ("", self.model):
            names = {entry["id"] for entry in answer["data"]}
            if self.model not in names:
                entry = {"id": self.model, "object": "model", "created": self.created}
                answer["data"].insert(0, entry)
        self.wfile.write(head + b"\r\n\r\n" + json.dumps(answer).encode())

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # mlx-lm answers 404 to whatever keeps a request from being generated.
        if status_code == 404 and self._exchange is not None and self._exchange.status:
            status_code = self._exchange.status
        super()._set_completion_headers(status_code)

    def _with_details(self, response: dict) -> dict:
        thinking = self._exchange.thinking()
        if "usage" in response and thinking is not None:
            response["usage"]["completion_tokens_details"] = {
                "reasoning_tokens": thinking["tokens"]
            }
        return response

    def _read_body(self) -> dict | None:
        """The request's JSON object, left to be read again; None if it has no length.

        Raises:
            RequestError: If it is too long, cut off or no JSON object.
        """
        length = self.headers.get("Content-Length", "")
        if not length.strip().isdigit():
            if length.strip().startswith("-"):
                raise RequestError("Content-Length must not be negative.")
            return None  # mlx-lm's answer says what is wrong
        if int(length) > MAX_BODY:
            self.close_connection = True
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
            body = json.loads(raw.decode())
        except (ValueError, RecursionError) as e:
            raise RequestError(f"The request's body is not valid JSON: {e}.") from None
        if not isinstance(body, dict):
            raise RequestError("The request's body must be a JSON object.")
        self.rfile = io.BytesIO(raw)
        return body

    def _require(self, field: str) -> None:
        if field not in self.body:
            raise RequestError(f"The request has no {field}.", field)

    def _refuse(self, error: RequestError) -> None:
        """Answers with an error in the form of OpenAI's."""
        self._set_completion_headers(error.status)
        self.end_headers()
        self.wfile.write(error_body(str(error), error.field))

    def _wrong_field(self) -> str | None:
        return self._exchange.field if self._exchange is not None else None


def check_body(body: dict) -> None:
    """Checks the fields whose types mlx-lm takes for granted.

    Args:
        body (dict): Of a request; null counts as not given, but for what is asked.

    Raises:
        RequestError: Naming the field that is wrong, and what it must be.
    """
    for field, is_right, what in _FIELDS:
        value = body.get(field)
        is_asked = field in ("messages", "prompt") and field in body
        if (value is not None or is_asked) and not is_right(value):
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
        return all(isinstance(p, dict) and _is_text(p.get("type")) for p in value)
    return value is None or isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


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
