"""Requests and responses over HTTP: mlx-lm's handler, with budgets in and counts out.

Knows HTTP and the fields of OpenAI's interface; nothing of models or samplers.
"""

import copy
import io
import json
import logging
from collections.abc import Callable
from typing import Any, Literal, cast

from mlx_lm import server

from .answer_fields import AskedAnswer, read_answer
from .bodies import check_body
from .budgets import (
    BudgetPolicy,
    asked_floor,
    budget_source,
    limit_of,
    read_thinking,
)
from .choice_fields import AskedChoices, read_choices
from .choice_form import complete, keep_one_call, name_thinking
from .choices import Choices
from .error_forms import error_content
from .errors import PromptCounted, RequestError
from .exchange import Exchange
from .guard import Access, Guard
from .interfaces import CHAT, RESPONSES, TEXT, TRANSLATED
from .limits import Limits
from .models_list import ModelsHandler
from .response_store import ResponseStore
from .steering import Steering
from .telling import Teller
from .unserved import refuse_unserved


def make_handler(
    policy: BudgetPolicy,
    model: str,
    max_tokens: int | None,
    guard: Guard | None = None,
    limits: Limits | None = None,
    **seen: Any,
) -> type:
    """A handler class for `mlx_lm.server`.

    Args:
        policy (BudgetPolicy): How thinking is treated.
        model (str): The default model, as it was named.
        max_tokens (int, optional): Of requests that set none; by default mlx-lm's
            default without a budget, and room for an answer behind the budget with one.
        guard (Guard, optional): Who may ask; by default this machine.
        limits (Limits, optional): Of requests.
        seen: What `PagesHandler` tells of: ``ledger``, ``metrics`` and ``slots``.
    """
    own = {
        "policy": policy,
        "model": model,
        "default_max_tokens": max_tokens,
        "guard": guard or Guard(Access()),
        "limits": limits or Limits(),
        "store": ResponseStore(),
        **seen,
    }
    return type("Handler", (BudgetHandler,), own)


class BudgetHandler(ModelsHandler):
    """`mlx_lm.server.APIHandler` with thinking budgets; see `make_handler`."""

    policy: BudgetPolicy
    default_max_tokens: int | None
    store: ResponseStore
    response_generator: Any  # the server's, and then `_exchange` in its place
    _exchange: Exchange | None = None
    _asked_answer: AskedAnswer | None = None
    _choices = AskedChoices()
    _is_cancelled = _has_called = False
    _asked_path = ""
    _status = 200

    def setup(self) -> None:
        super().setup()
        self._teller = Teller(self.wfile, self._refusal_told, self._prompt)
        self.wfile = cast(io.BufferedIOBase, self._teller)

    def do_POST(self) -> None:
        asked = self._asked_path = self.path.partition("?")[0]
        if asked not in TRANSLATED and not asked.endswith("/completions"):
            self._refuse_path()
            return
        self.path = asked
        try:
            self._take(self._read_body())
            super().do_POST()
        except RequestError as e:  # mlx-lm 0.32 answers those of its own calls
            self._refuse(e)
        except ConnectionError:
            raise
        except Exception as e:
            logging.exception("A request failed.")
            self._refuse(RequestError(str(e), status=500))

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
            # Its limit is 11; ours was checked.
            top, self.top_logprobs = self.top_logprobs, -1
            super().validate_model_parameters()
            self.top_logprobs = top
        except (ValueError, TypeError, OverflowError) as e:
            raise RequestError(str(e)) from None
        thinking = self._thinking
        asked = ("max_completion_tokens", "max_tokens")
        is_given = any(name in self.body for name in asked)
        if not is_given and self.default_max_tokens is None:
            is_open = self._teller.translation is not None
            self.max_tokens = limit_of(thinking, is_open) or self.max_tokens
        template = self.chat_template_kwargs
        if template and "thinking_budget" in template:
            # A template that writes the budget down shall write the one that holds.
            template.pop("thinking_budget")
            if thinking.ceiling is not None:
                template["thinking_budget"] = thinking.ceiling

    def handle_completion(
        self, request: server.CompletionRequest, stop_words: list[str]
    ) -> None:
        asked = self._choices
        if asked.count == 1:
            self._complete(request, stop_words, 0)
            return

        def make(index: int) -> Callable[["BudgetHandler"], None]:
            # Its messages are changed on the way to a prompt.
            own = copy.deepcopy(request)
            return lambda one: one._complete(own, stop_words, index)

        Choices(self, [make(i) for i in range(asked.count)], asked.n).tell()

    def _complete(
        self, request: server.CompletionRequest, stop_words: list[str], index: int
    ) -> None:
        """Generates the choice with an index, and tells it."""
        translation, asked = self._teller.translation, self._choices
        steering = Steering(self._thinking, asked_floor(self.body), self.connection)
        steering.answer = self._asked_answer
        is_count = translation is not None and translation.only_counts
        steering.only_counts = is_count or asked.only_prompt
        prompt = asked.prompt(index)
        if isinstance(prompt, str):
            request.prompt = prompt
        else:
            steering.prompt_ids = prompt
        if asked.echoes and asked.logprobs:
            steering.scores = asked.top_logprobs
        self.seed = asked.seed(self.seed, index)
        self._exchange = Exchange(
            self.response_generator,
            steering,
            self.own_names(),
            self.policy.stop_in_thinking,
            self.record,
            asked,
        )
        self.response_generator = self._exchange
        steering.is_over = self._is_cancelled
        try:
            super().handle_completion(request, stop_words)
        except PromptCounted as counted:
            if translation is not None:
                self.answer(translation.counted(counted.tokens))
            else:
                self._tell_prompt(counted.tokens)

    def cancel(self) -> None:
        """Ends the reply, if it is not yet there."""
        self._is_cancelled = True
        if self._exchange is not None:
            self._exchange.steering.is_over = True

    @property
    def refusal(self) -> RequestError | None:
        """Why the request cannot be honoured, once that is known."""
        return self._exchange.refusal if self._exchange is not None else None

    def _tell_prompt(self, tokens: int) -> None:
        """Tells a reply of no tokens."""
        told = self.generate_response("", "length", tokens, 0, 0)
        if not self.stream:
            self.answer(told)
            return
        self._set_stream_headers(200)
        self.end_headers()
        chunks = [told]
        if (self.stream_options or {}).get("include_usage"):
            chunks.append(self.completion_usage_response(tokens, 0, 0))
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

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
        if finish_reason == "stop" and self._exchange is not None:
            if self._exchange.stops.found is not None:
                choice["stop_reason"] = self._exchange.stops.found
        told = self._with_details(response)
        translation = self._teller.translation
        if translation is None:
            if self._exchange is not None:
                complete(choice, self._exchange, self.object_type != "text_completion")
            if self.body.get("parallel_tool_calls") is False:
                self._has_called = keep_one_call(choice, self._has_called)
            name_thinking(choice, self.policy.reasoning_field)
        if translation is None or self.stream:
            return told
        return translation.whole(told)

    def completion_usage_response(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._with_details(super().completion_usage_response(*args, **kwargs))

    def do_GET(self) -> None:
        if (id := self._stored_id()) is None:
            super().do_GET()
        elif (stored := self.store.get(id)) is None:
            self._refuse_id(id)
        else:
            self.answer(stored.response)

    def do_DELETE(self) -> None:
        if (id := self._stored_id()) is None:
            self._refuse_path()
        elif not self.store.delete(id):
            self._refuse_id(id)
        else:
            self.answer({"id": id, "object": "response", "deleted": True})

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # mlx-lm answers 404 to whatever keeps a request from being generated.
        refusal = self.refusal
        if status_code == 404 and refusal is not None:
            status_code = refusal.status
        self._status = status_code
        super()._set_completion_headers(status_code)

    def _reply_thinking(self) -> dict[str, Any] | None:
        return None if self._exchange is None else self._exchange.thinking()

    def _with_details(self, response: dict[str, Any]) -> dict[str, Any]:
        details = None if self._exchange is None else self._exchange.token_details()
        if "usage" in response and details is not None:
            response["usage"]["completion_tokens_details"] = details
        return response

    def _take(self, body: dict[str, Any]) -> None:
        """Takes what a request asks for, and leaves it to mlx-lm's handler to read."""
        if self.path in TRANSLATED:
            translation = TRANSLATED[self.path](body, self.store)
            self._teller.translation = translation
            body = translation.chat
            self.path = CHAT
        is_chat = self.path != TEXT
        if self._teller.translation is None:
            refuse_unserved(body, is_chat)
        self._choices = read_choices(body, is_chat)
        check_body(body)
        self._asked_answer = read_answer(body) if is_chat else None
        self._thinking = read_thinking(body, self.policy)
        source = budget_source(body, self.policy)
        teller = self._teller
        names = {} if teller.translation is None else teller.translation.names
        self.record.source = names.get(source, source)
        raw = json.dumps(body).encode()
        self.headers.replace_header("Content-Length", str(len(raw)))
        self.rfile = io.BytesIO(raw)

    def _read_body(self) -> dict[str, Any]:
        """The request's JSON object.

        Fields that are null are left out, as not given.

        Raises:
            RequestError: If it is no JSON object.
        """
        asked = ("messages", "prompt")
        body = {
            k: v for k, v in self.read_json().items() if v is not None or k in asked
        }
        if isinstance(body.get("stream_options"), dict):
            body["stream_options"].setdefault("include_usage", False)
        return body

    def _require(self, field: str) -> None:
        if field not in self.body:
            raise RequestError(f"The request has no {field}.", field)

    def _refuse(self, error: RequestError) -> None:
        """Says that a reply cannot be had, in a stream behind what has come of it."""
        self.record.fail(error)
        if not self.has_begun:
            self.refuse(error)
        elif self._teller.translation is not None:
            self._teller.fail(error)
        else:
            self.wfile.write(b"data: " + self.told(error) + b"\n\ndata: [DONE]\n\n")

    def _refuse_id(self, id: str) -> None:
        self.refuse(RequestError(f"There is no response {id[:80]!r}.", None, 404))

    def _refuse_path(self) -> None:
        self.refuse(RequestError(f"There is nothing at {self.path:.80}.", None, 404))

    def told(self, error: RequestError) -> bytes:
        translation = self._teller.translation
        if translation is not None:
            error = error.named(translation.names)
        return error_content(error, self._asked_path or self.path)

    def answer(self, answer: dict[str, Any]) -> None:
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def _refusal_told(self, message: str) -> bytes:
        """What a client is told where mlx-lm has written a message."""
        refusal = self.refusal
        field = refusal.field if refusal is not None else None
        self.record.fail(message)
        return self.told(RequestError(message, field, self._status))

    def _prompt(self) -> tuple[int, int]:
        return self._exchange.prompt if self._exchange is not None else (0, 0)

    def _stored_id(self) -> str | None:
        """The id of the stored response that a path names, if it names one."""
        parent, _, id = self.path.partition("?")[0].rpartition("/")
        return id if parent == RESPONSES and id else None
