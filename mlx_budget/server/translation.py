"""What the interfaces beside chat completions share: they are translations of it.

A request is made the body of a chat completion, and what comes of that is told in the
interface's own form, in a stream event by event. Knows chat completions as they are on
the wire; nothing of HTTP or of models.
"""

import base64
import binascii
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .budget_fields import is_budget_field
from .errors import RequestError

# What every interface takes besides its own fields: those of mlx-lm's server.
PASSED = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "logit_bias",
    "repetition_penalty",
    "repetition_context_size",
    "presence_penalty",
    "presence_context_size",
    "frequency_penalty",
    "frequency_context_size",
    "xtc_probability",
    "xtc_threshold",
    "chat_template_kwargs",
    "adapters",
    "draft_model",
    "num_draft_tokens",
)
THINKING, ANSWER = "thinking", "answer"
_SEAL = "mlx-budget "


@dataclass(frozen=True)
class Event:
    """One event of a stream: its name, and what it tells."""

    name: str
    data: dict[str, Any]

    def encode(self) -> bytes:
        """As it is sent."""
        return f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n".encode()


class Translation(ABC):
    """One request of an interface, and its reply.

    Attributes:
        chat: The body of the chat completion that is generated.
        names: What fields of a chat completion are called here.
        only_counts: Whether only the tokens of the prompt are asked for.
    """

    names: ClassVar[Mapping[str, str]] = {}
    only_counts: ClassVar[bool] = False
    chat: dict[str, Any]

    def __init__(self, calls_at_once: bool = True):
        """Begins a reply.

        Args:
            calls_at_once (bool): Whether it may call more than one tool.
        """
        self._calls_at_once = calls_at_once
        # The part that the last text belongs to, which begins with the first text that
        # is more than white space; what was held back until then.
        self._part: str | None = None
        self._is_open = False
        self._held = ""
        self._has_called = False
        self._finish: dict[str, Any] = {}

    def begin(self, prompt_tokens: int, cached_tokens: int) -> Iterator[Event]:
        """What a stream begins with, once the prompt is known."""
        yield from ()

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """What a piece of a chat completion's stream comes to."""
        for choice in chunk.get("choices", ()):
            yield from self._take_delta(choice.get("delta") or {})
            if choice.get("finish_reason") is not None:
                self._finish = choice
        if "usage" in chunk:
            yield from self._close()
            yield from self._end(chunk["usage"])

    def whole(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        """What a whole chat completion comes to."""
        (choice,) = completion["choices"]
        usage = completion["usage"]
        for _ in self.begin(usage["prompt_tokens"], cached_tokens(usage)):
            pass
        chunk = {**completion, "choices": [{**choice, "delta": choice["message"]}]}
        for _ in self.take(chunk):
            pass
        return self.reply()

    @abstractmethod
    def reply(self) -> dict[str, Any]:
        """The reply as it is so far."""

    def counted(self, tokens: int) -> dict[str, Any]:
        """What is told where only the tokens of the prompt are asked for."""
        return {"input_tokens": tokens}

    @abstractmethod
    def failed(self, error: RequestError) -> Iterator[Event]:
        """What a stream ends with that cannot go on."""

    def keep_alive(self) -> bytes:
        """What is sent while nothing can be told yet."""
        return b": keepalive\n\n"

    def _take_delta(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        for part, field in ((THINKING, "reasoning"), (ANSWER, "content")):
            if text := delta.get(field):
                yield from self._take_text(part, text)
        for call in delta.get("tool_calls") or ():
            if self._has_called and not self._calls_at_once:
                break
            self._has_called = True
            yield from self._close()
            function = call["function"]
            yield from self._call(call["id"], function["name"], function["arguments"])

    def _take_text(self, part: str, text: str) -> Iterator[Event]:
        if part != self._part:
            yield from self._close()
            self._part = part
        # A part that is white space alone is none.
        text = self._held + text
        if not text.strip() and not self._is_open:
            self._held = text
            return
        self._held = ""
        if not self._is_open:
            self._is_open = True
            yield from self._open(part)
        yield from self._add(text)

    def _close(self) -> Iterator[Event]:
        """Ends the part that is open, if one is."""
        is_open, self._is_open = self._is_open, False
        self._part, self._held = None, ""
        if is_open:
            yield from self._ended()

    @abstractmethod
    def _open(self, part: str) -> Iterable[Event]:
        """Begins a part of the reply."""

    @abstractmethod
    def _add(self, text: str) -> Iterable[Event]:
        """Goes on with the part that is open."""

    @abstractmethod
    def _ended(self) -> Iterable[Event]:
        """Ends the part that was open."""

    @abstractmethod
    def _call(self, id: str, name: str, arguments: str) -> Iterable[Event]:
        """Calls a tool."""

    @abstractmethod
    def _end(self, usage: Mapping[str, Any]) -> Iterable[Event]:
        """Ends the reply."""


def cached_tokens(usage: Mapping[str, Any]) -> int:
    """Tokens of the prompt that were taken from the cache."""
    return (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def passed(body: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """What a chat completion takes as it is: common fields, and those of a budget."""
    names = (*PASSED, *others)
    return {k: v for k, v in body.items() if k in names or is_budget_field(k)}


def refuse_fields(
    body: Mapping[str, Any], refused: Mapping[str, Collection[Any]], where: str
) -> None:
    """Refuses what cannot be done, by its name.

    Args:
        body (Mapping): Of the request.
        refused (Mapping): Fields, each with those of its values that ask for nothing.
        where (str): What the interface is called.

    Raises:
        RequestError: Naming the first.
    """
    for field, harmless in refused.items():
        if field in body and body[field] not in harmless:
            raise RequestError(
                f"{field} of {where} is not served here: leave it out.", field
            )


def need(value: Any, kind: type | tuple[type, ...], field: str, what: str) -> Any:
    """A value that must be of a type.

    Raises:
        RequestError: Naming the field, and what it must be.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RequestError(f"{field} must be {what}.", field)
    return value


def in_turns(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a conversation as every chat template takes them.

    What the system says first is one message; what it says later is the user's, since
    many templates know no other place for it. What the user says at once is one.

    Args:
        messages (Iterable[dict]): With texts as their contents.
    """
    told: list[dict[str, Any]] = []
    texts: list[list[str]] = []  # of each message that is told
    is_begun = False
    for message in messages:
        role = message["role"]
        if role == "system" and is_begun:
            role = "user"
        is_begun |= role != "system"
        if told and role == told[-1]["role"] and role in ("system", "user"):
            texts[-1].append(message["content"])
        else:
            told.append({**message, "role": role})
            texts.append([message["content"]])
    for message, parts in zip(told, texts, strict=True):
        message["content"] = "\n\n".join(parts)
    return told


def function_tool(
    tool: Mapping[str, Any], field: str, schema: str = "parameters"
) -> dict[str, Any]:
    """A tool as chat completions have it.

    Args:
        tool (Mapping): Its name, description and schema.
        field (str): Where it stands.
        schema (str): What its schema is called.

    Raises:
        RequestError: Naming what is wrong of it.
    """
    parameters = tool.get(schema)
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    function = {
        "name": need(tool.get("name"), str, f"{field}.name", "a text"),
        "parameters": need(parameters, dict, f"{field}.{schema}", "an object"),
    }
    if (told := tool.get("description")) is not None:
        function["description"] = need(told, str, f"{field}.description", "a text")
    return {"type": "function", "function": function}


def tool_call(id: Any, name: Any, arguments: Any, field: str) -> dict[str, Any]:
    """A call of a tool as it stands in the messages of a chat completion.

    Args:
        id, name (Any): Of the call, which must be texts.
        arguments (Any): A text of JSON, or what such a text says.
        field (str): Where it stands.
    """
    need(id, str, f"{field}.id", "a text")
    need(name, str, f"{field}.name", "a text")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    try:
        json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        raise RequestError(
            f"{field}: the arguments are not valid JSON.", field
        ) from None
    function = {"name": name, "arguments": arguments or "{}"}
    return {"id": id, "type": "function", "function": function}


def seal(text: str) -> str:
    """Thinking as a text that clients hand back and need not understand.

    It is coded, not encrypted.
    """
    return base64.urlsafe_b64encode((_SEAL + text).encode()).decode()


def unseal(sealed: Any) -> str:
    """The thinking in such a text; empty if it is another's."""
    try:
        text = base64.b64decode(sealed, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError, TypeError):
        return ""
    return text.removeprefix(_SEAL) if text.startswith(_SEAL) else ""
