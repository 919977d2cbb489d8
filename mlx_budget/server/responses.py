"""OpenAI's Responses interface: its replies and streams, told of chat completions.

Knows the wire forms of both, and the store of replies; nothing of HTTP or of models.
"""

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import RequestError
from .response_store import ResponseStore, Stored
from .responses_input import name_within
from .responses_request import NAMES, read_responses, read_tools, wants_summary
from .translation import THINKING, Event, Translation, cached_tokens, seal

# Fields of a request that its reply repeats, and what they are if it has none.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
_SEALED = "reasoning.encrypted_content"


@dataclass(frozen=True)
class _Kind:
    """How an item with text is told.

    Attributes:
        parts: The field that holds its part.
        empty: The part, but for its text.
        part_event, text_event: What events of the part and of its text are called.
        index: The field of events that counts parts.
        more: What events of the text hold besides.
    """

    parts: str
    empty: dict[str, Any]
    part_event: str
    text_event: str
    index: str = "content_index"
    more: dict[str, Any] = field(default_factory=dict)


_MESSAGE = _Kind(
    "content",
    {"type": "output_text", "annotations": [], "logprobs": []},
    "content_part",
    "output_text",
    more={"logprobs": []},
)
_REASONING = _Kind(
    "content", {"type": "reasoning_text"}, "content_part", "reasoning_text"
)
_SUMMARY = _Kind(
    "summary",
    {"type": "summary_text"},
    "reasoning_summary_part",
    "reasoning_summary_text",
    "summary_index",
)


class Responses(Translation):
    """One request of ``POST /v1/responses``, and its reply.

    Args:
        body (Mapping): Of the request.
        store (ResponseStore): Of the server.

    Raises:
        RequestError: If it cannot be honoured.
    """

    names = NAMES

    def __init__(self, body: Mapping[str, Any], store: ResponseStore):
        super().__init__(body.get("parallel_tool_calls") is not False)
        self._store = store
        self._is_stored = body.get("store") is not False
        earlier = self._earlier(body.get("previous_response_id"))
        self.chat, self._messages = read_responses(body, earlier)
        self._is_summary = wants_summary(body)
        # Names of tools as the model knows them, and where they belong.
        self._places = {
            tool["function"]["name"]: (space, name)
            for space, name, tool in read_tools(body.get("tools"))
        }
        self._is_sealed = _SEALED in (body.get("include") or ())
        self._numbers = 0
        self._kind = _MESSAGE
        self._output: list[dict[str, Any]] = []
        self._response: dict[str, Any] = {
            "id": _new("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.chat.get("model", "default_model"),
            "output": self._output,
            "service_tier": "default",
            "usage": None,
            **{name: body.get(name, value) for name, value in _REPEATED.items()},
        }

    def begin(self, prompt_tokens: int, cached_tokens: int) -> Iterator[Event]:
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response={**self._response, "output": []})

    def reply(self) -> dict[str, Any]:
        return self._response

    def failed(self, error: RequestError) -> Iterator[Event]:
        told = {"code": "server_error", "message": str(error)}
        self._response |= {"status": "failed", "error": told}
        yield self._event("response.failed", response=self._response)

    def _earlier(self, id: Any) -> list[dict[str, Any]]:
        if id is None:
            return []
        stored = self._store.get(id) if isinstance(id, str) else None
        if stored is None:
            raise RequestError(
                f"There is no response {id!r} to go on with: it was not stored, or the "
                "server holds it no more.",
                "previous_response_id",
            )
        return stored.messages

    def _event(self, name: str, **data: Any) -> Event:
        self._numbers += 1
        number = self._numbers - 1
        return Event(name, {"type": name, "sequence_number": number, **data})

    def _of_item(self, name: str, **data: Any) -> Event:
        """An event of the item that is open, by its name without the first word."""
        place = {"item_id": self._output[-1]["id"], "output_index": self._index}
        return self._event(f"response.{name}", **place, **data)

    @property
    def _is_cut(self) -> bool:
        """Whether the limit on tokens has ended the reply."""
        return self._finish.get("finish_reason") == "length"

    @property
    def _index(self) -> int:
        return len(self._output) - 1

    def _begin_item(self, item: dict[str, Any]) -> Event:
        told = {k: [] if isinstance(v, list) else v for k, v in item.items()}
        self._output.append(item)
        return self._event(
            "response.output_item.added", output_index=self._index, item=told
        )

    def _end_item(self) -> Event:
        item = self._output[-1]
        item["status"] = "incomplete" if self._is_cut else "completed"
        return self._event(
            "response.output_item.done", output_index=self._index, item=item
        )

    def _open(self, part: str) -> Iterator[Event]:
        item: dict[str, Any] = {"id": "", "status": "in_progress"}
        if part == THINKING:
            self._kind = _SUMMARY if self._is_summary else _REASONING
            item |= {"id": _new("rs"), "type": "reasoning", "summary": []}
        else:
            self._kind = _MESSAGE
            item |= {"id": _new("msg"), "type": "message", "role": "assistant"}
        item[self._kind.parts] = []
        yield self._begin_item(item)
        content = {**self._kind.empty, "text": ""}
        item[self._kind.parts].append(content)
        yield self._of_part(f"{self._kind.part_event}.added", part={**content})

    def _of_part(self, name: str, **data: Any) -> Event:
        """An event of the part that is open, of which an item has one."""
        return self._of_item(name, **{self._kind.index: 0}, **data)

    def _add(self, text: str) -> Iterator[Event]:
        (part,) = self._output[-1][self._kind.parts]
        part["text"] += text
        name = f"{self._kind.text_event}.delta"
        yield self._of_part(name, delta=text, **self._kind.more)

    def _ended(self) -> Iterator[Event]:
        item, kind = self._output[-1], self._kind
        (part,) = item[kind.parts]
        text = part["text"]
        yield self._of_part(f"{kind.text_event}.done", text=text, **kind.more)
        yield self._of_part(f"{kind.part_event}.done", part=part)
        if kind is not _MESSAGE and self._is_sealed:
            item["encrypted_content"] = seal(text)
        yield self._end_item()

    def _call(self, id: str, name: str, arguments: str) -> Iterator[Event]:
        item = {"id": _new("fc"), "type": "function_call", "status": "in_progress"}
        space, name = self._places.get(name, (None, name))
        if space is not None:
            item["namespace"] = space
        yield self._begin_item({**item, "call_id": id, "name": name, "arguments": ""})
        self._output[-1]["arguments"] = arguments
        yield self._of_item("function_call_arguments.delta", delta=arguments)
        yield self._of_item("function_call_arguments.done", arguments=arguments)
        yield self._end_item()

    def _end(self, usage: Mapping[str, Any]) -> Iterator[Event]:
        details = usage.get("completion_tokens_details") or {}
        cached = {"cached_tokens": cached_tokens(usage), "cache_write_tokens": 0}
        status = "incomplete" if self._is_cut else "completed"
        if self._is_cut:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        if "thinking" in self._finish:
            # What became of the budget, as chat completions tell it.
            self._response["thinking"] = self._finish["thinking"]
        self._response |= {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": cached,
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0, **details},
                "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"],
            },
        }
        if self._is_stored:
            messages = [*self._messages, self._message()]
            self._store.put(self._response["id"], Stored(self._response, messages))
        yield self._event(f"response.{status}", response=self._response)

    def _message(self) -> dict[str, Any]:
        """The reply as a message of a chat completion."""
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for item in self._output:
            if item["type"] == "function_call":
                name = name_within(item.get("namespace"), item["name"])
                function = {"name": name, "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
                continue
            is_thinking = item["type"] == "reasoning"
            role = "reasoning_content" if is_thinking else "content"
            parts = item.get("content") or item.get("summary") or ()
            message[role] = message.get(role, "") + "".join(p["text"] for p in parts)
        return message


class CountInput(Responses):
    """One request of ``POST /v1/responses/input_tokens``."""

    only_counts = True

    def __init__(self, body: Mapping[str, Any], store: ResponseStore):
        super().__init__({**body, "stream": False}, store)

    def counted(self, tokens: int) -> dict[str, Any]:
        return {"object": "response.input_tokens", "input_tokens": tokens}


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
