"""Anthropic's Messages interface: its replies and streams, told of chat completions.

Knows the wire forms of both; nothing of HTTP or of models.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from .error_forms import anthropic_error
from .errors import RequestError
from .messages_request import NAMES, display_of, read_messages
from .messages_tools import calls_at_once
from .translation import THINKING, Event, Translation, cached_tokens, seal

_STOP_REASONS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}


class Messages(Translation):
    """One request of ``POST /v1/messages``, and its reply.

    Args:
        body (Mapping): Of the request.

    Raises:
        RequestError: If it cannot be honoured.
    """

    names = NAMES

    def __init__(self, body: Mapping[str, Any]):
        super().__init__(calls_at_once(body))
        self._is_omitted = display_of(body) == "omitted"
        self.chat = read_messages(body)
        self._content: list[dict[str, Any]] = []
        self._thought = ""
        self._message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": self.chat.get("model", "default_model"),
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def begin(self, prompt_tokens: int, cached_tokens: int) -> Iterator[Event]:
        self._message["usage"] = {
            "input_tokens": prompt_tokens - cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached_tokens,
            "output_tokens": 0,
        }
        message = {**self._message, "content": []}
        yield Event("message_start", {"type": "message_start", "message": message})

    def reply(self) -> dict[str, Any]:
        return self._message

    def failed(self, error: RequestError) -> Iterator[Event]:
        yield Event("error", anthropic_error(error))

    def keep_alive(self) -> bytes:
        return Event("ping", {"type": "ping"}).encode()

    @property
    def _index(self) -> int:
        return len(self._content) - 1

    def _open(self, part: str) -> Iterator[Event]:
        block: dict[str, Any] = {"type": "text", "text": ""}
        if part == THINKING:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            self._thought = ""
        yield self._start(block)

    def _start(self, block: dict[str, Any]) -> Event:
        self._content.append(block)
        return Event(
            "content_block_start",
            {
                "type": "content_block_start",
                "index": self._index,
                "content_block": dict(block),
            },
        )

    def _delta(self, kind: str, field: str, value: str) -> Event:
        delta = {"type": kind, field: value}
        data = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return Event("content_block_delta", data)

    def _add(self, text: str) -> Iterator[Event]:
        block = self._content[-1]
        if block["type"] == "text":
            block["text"] += text
            yield self._delta("text_delta", "text", text)
            return
        self._thought += text
        if not self._is_omitted:
            block["thinking"] += text
            yield self._delta("thinking_delta", "thinking", text)

    def _ended(self) -> Iterator[Event]:
        block = self._content[-1]
        if block["type"] == "thinking":
            # Thinking that is not told comes back in its signature.
            block["signature"] = seal(self._thought if self._is_omitted else "")
            yield self._delta("signature_delta", "signature", block["signature"])
        stop = {"type": "content_block_stop", "index": self._index}
        yield Event("content_block_stop", stop)

    def _call(self, id: str, name: str, arguments: str) -> Iterator[Event]:
        block = {"type": "tool_use", "id": id, "name": name, "input": {}}
        yield self._start(block)
        block["input"] = json.loads(arguments)
        yield self._delta("input_json_delta", "partial_json", arguments)
        yield from self._ended()

    def _end(self, usage: Mapping[str, Any]) -> Iterator[Event]:
        finish = self._finish
        reason = _STOP_REASONS.get(finish.get("finish_reason", "stop"), "end_turn")
        if reason == "tool_use" and not self._has_called:
            reason = "end_turn"  # what it called could not be read
        word = finish.get("stop_reason")
        if word is not None and reason == "end_turn":
            reason = "stop_sequence"
        cached = cached_tokens(usage)
        details = usage.get("completion_tokens_details") or {}
        told = {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {
                "thinking_tokens": details.get("reasoning_tokens", 0)
            },
        }
        delta = {"stop_reason": reason, "stop_sequence": word}
        self._message |= {**delta, "usage": told}
        data: dict[str, Any] = {"type": "message_delta", "delta": delta, "usage": told}
        if "thinking" in finish:
            # What became of the budget, as chat completions tell it.
            self._message["thinking"] = data["thinking"] = finish["thinking"]
        yield Event("message_delta", data)
        yield Event("message_stop", {"type": "message_stop"})


class CountTokens(Messages):
    """One request of ``POST /v1/messages/count_tokens``."""

    only_counts = True

    def __init__(self, body: Mapping[str, Any]):
        super().__init__({"max_tokens": 1, **body, "stream": False})
