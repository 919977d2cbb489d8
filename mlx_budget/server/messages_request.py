"""A request of Anthropic's Messages interface, as the body of a chat completion.

Knows the fields of both; nothing of replies, of HTTP or of models.
"""

from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .messages_tools import read_choice, read_tools
from .translation import in_turns, need, passed, refuse_fields, tool_call, unseal

WHERE = "the Messages interface"
# What chat completions call otherwise.
NAMES = {"stop": "stop_sequences", "response_format": "output_config.format"}
# What cannot be done here, each with values that ask for nothing. Taken and without
# effect are metadata, cache_control, service_tier and what else says nothing of the
# reply: docs/serving.md lists them.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "mcp_servers": ([],),
    "compaction": (),
    "fallbacks": ([],),
    "speed": ("standard",),
    # What chat completions have in place of fields of this interface, or besides.
    "stop": (),
    "max_completion_tokens": (),
    "response_format": (),
    "n": (1,),
    "logprobs": (False,),
}
# Edits of the conversation that chat templates do in their own way.
_EDIT_OF_THINKING = "clear_thinking_"
# By which Anthropic's client knows that it is to send whole conversations.
_NO_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
# What Claude Code puts before its system prompt.
_BILLING = "x-anthropic-billing-header:"
_BLOCKS = "text, thinking, redacted_thinking, tool_use or tool_result"


def read_messages(body: Mapping[str, Any], needs_limit: bool = True) -> dict[str, Any]:
    """The body of the chat completion that a request asks for.

    Args:
        body (Mapping): Of the request.
        needs_limit (bool): Whether it must say ``max_tokens``.

    Raises:
        RequestError: Naming the field that is wrong or cannot be honoured.
    """
    refuse_fields(body, _REFUSED, WHERE)
    if "thread" in body:
        raise RequestError(
            f"thread of {WHERE} is not served here: leave it out.",
            "thread",
            details=_NO_THREADS,
        )
    _check_edits(body.get("context_management"))
    if needs_limit and "max_tokens" not in body:
        raise RequestError("The request has no max_tokens.", "max_tokens")
    chat = passed(body, "max_tokens")
    messages = _system(body.get("system")) + _messages(body.get("messages"))
    chat["messages"] = in_turns(messages)
    _read_objects(chat)
    if (form := _read_format(body)) is not None:
        chat["response_format"] = form
    if "stop_sequences" in body:
        words = need(body["stop_sequences"], list, "stop_sequences", "a list of texts")
        if not all(isinstance(word, str) and word for word in words):
            raise RequestError(
                "stop_sequences must be a list of texts, none of them empty.",
                "stop_sequences",
            )
        chat["stop"] = words
    tools, choice = read_tools(body), read_choice(body)
    if tools:
        chat["tools"] = tools
    if choice not in ("auto", "none"):
        chat["tool_choice"] = choice
    if body.get("stream") is True:
        chat["stream_options"] = {"include_usage": True}
    return chat


def display_of(body: Mapping[str, Any]) -> str:
    """How thinking is to be told: ``summarized``, which is as it is, or ``omitted``."""
    thinking = body.get("thinking")
    display = thinking.get("display") if isinstance(thinking, dict) else None
    if display not in (None, "summarized", "omitted"):
        raise RequestError(
            f"thinking.display must be summarized or omitted; not {display!r}.",
            "thinking.display",
        )
    return display or "summarized"


def _read_objects(chat: dict[str, Any]) -> None:
    """Leaves of the objects that say more what is asked of thinking."""
    for name, other in (("thinking", "display"), ("output_config", "format")):
        place = chat.get(name)
        if not isinstance(place, dict) or other not in place:
            continue
        chat[name] = {k: v for k, v in place.items() if k != other}


def _read_format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a chat completion calls the format that is asked for, if one is."""
    place = body.get("output_config")
    form, field = body.get("output_format"), "output_format"
    if isinstance(place, dict) and place.get("format") is not None:
        form, field = place["format"], "output_config.format"
    if form is None:
        return None
    kind = need(form, dict, field, "an object").get("type")
    if kind != "json_schema":
        raise RequestError(
            f"{field}.type must be json_schema; {kind!r} is not served here.", field
        )
    schema = need(form.get("schema"), dict, f"{field}.schema", "an object")
    return {"type": kind, "json_schema": {"schema": schema}}


def _check_edits(management: Any) -> None:
    if management is None:
        return
    field = "context_management"
    edits = need(management, dict, field, "an object").get("edits") or []
    for i, edit in enumerate(need(edits, list, f"{field}.edits", "a list")):
        kind = edit.get("type") if isinstance(edit, dict) else edit
        if not str(kind).startswith(_EDIT_OF_THINKING):
            raise RequestError(
                f"{field}.edits[{i}]: {kind!r} is not served here: leave it out.",
                f"{field}.edits[{i}]",
            )


def _system(system: Any) -> list[dict[str, Any]]:
    if isinstance(system, list):
        # It differs between requests that are the same, and would spoil the cache.
        system = [block for block in system if not _is_billing(block)]
    if not system:
        return []
    return [{"role": "system", "content": _text(system, "system", "\n\n")}]


def _is_billing(block: Any) -> bool:
    text = block.get("text") if isinstance(block, dict) else None
    return isinstance(text, str) and text.startswith(_BILLING)


def _text(content: Any, field: str, between: str = "") -> str:
    """The text of a content that may have nothing else."""
    if isinstance(content, str):
        return content
    blocks = need(content, list, field, "a text or a list of blocks")
    texts = []
    for i, block in enumerate(blocks):
        where = f"{field}[{i}]"
        kind = need(block, dict, where, "a block").get("type")
        if kind != "text":
            raise RequestError(
                f"{where}: {kind!r} is not served here, only text.", where
            )
        texts.append(need(block.get("text"), str, f"{where}.text", "a text"))
    return between.join(texts)


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            "messages must be a list of one or more messages.", "messages"
        )
    read: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    last = max((i for i, m in enumerate(messages) if _is_users(m)), default=-1)
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        role = need(message, dict, field, "an object").get("role")
        content = message.get("content")
        if role == "assistant":
            told = _assistant(content, f"{field}.content")
            calls = told.get("tool_calls", ())
            names.update((c["id"], c["function"]["name"]) for c in calls)
            read.append(told)
        elif role == "user":
            read += _user(content, f"{field}.content", names)
        elif role == "system":
            _check_settings(message, field)
            if message.get("clear_at") == "next_user_message" and i < last:
                continue
            blocks = content
            if isinstance(content, list):
                # What they change of the tools is read with the tools.
                blocks = [block for block in content if not _is_of_tools(block)]
            if text := _text(blocks or "", f"{field}.content", "\n\n"):
                read.append({"role": "system", "content": text})
        else:
            raise RequestError(
                f"{field}.role must be user or assistant; not {role!r}.",
                f"{field}.role",
            )
    if not read:
        raise RequestError("The messages have no text.", "messages")
    if read[-1]["role"] == "assistant":
        raise RequestError(
            "The last message must not be the assistant's: a reply that goes on with a "
            "given beginning is not served here.",
            "messages",
        )
    return read


def _is_users(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def _is_of_tools(block: Any) -> bool:
    kinds = ("tool_addition", "tool_removal", "tool_reference")
    return isinstance(block, dict) and block.get("type") in kinds


def _check_settings(message: Mapping[str, Any], field: str) -> None:
    if message.get("output_config"):
        raise RequestError(
            f"{field}.output_config is not served here, only that of the request.",
            f"{field}.output_config",
        )


def _assistant(content: Any, field: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    thoughts, texts, calls = [], [], []
    for i, block in enumerate(need(content, list, field, "a text or a list of blocks")):
        where = f"{field}[{i}]"
        kind = need(block, dict, where, "a block").get("type")
        if kind == "text":
            texts.append(need(block.get("text"), str, f"{where}.text", "a text"))
        elif kind == "thinking":
            thought = need(block.get("thinking"), str, f"{where}.thinking", "a text")
            thoughts.append(thought or unseal(block.get("signature")))
        elif kind == "redacted_thinking":
            thoughts.append(unseal(block.get("data")))
        elif kind == "tool_use":
            arguments = need(block.get("input"), dict, f"{where}.input", "an object")
            calls.append(
                tool_call(block.get("id"), block.get("name"), arguments, where)
            )
        else:
            raise _not_served(kind, where)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thinking := "\n".join(filter(None, thoughts)):
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return message


def _user(content: Any, field: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    read: list[dict[str, Any]] = []
    texts = []
    for i, block in enumerate(need(content, list, field, "a text or a list of blocks")):
        where = f"{field}[{i}]"
        kind = need(block, dict, where, "a block").get("type")
        if kind == "text":
            texts.append(need(block.get("text"), str, f"{where}.text", "a text"))
        elif kind == "tool_result":
            read.append(_result(block, where, names))
        else:
            raise _not_served(kind, where)
    if texts or not read:
        read.append({"role": "user", "content": "\n\n".join(texts)})
    return read


def _result(
    block: Mapping[str, Any], where: str, names: Mapping[str, str]
) -> dict[str, Any]:
    id = need(block.get("tool_use_id"), str, f"{where}.tool_use_id", "a text")
    content = block.get("content") or ""
    if isinstance(content, list):
        content = [_as_text(part) for part in content]
    text = _text(content, f"{where}.content", "\n")
    if block.get("is_error") is True and not text.lower().startswith("error"):
        text = f"Error: {text}"  # chat templates know no other way to say so
    message = {"role": "tool", "tool_call_id": id, "content": text}
    return {**message, "name": names[id]} if id in names else message


def _as_text(part: Any) -> Any:
    """A reference to a tool as a text that says so; what else is, as it is."""
    if not _is_of_tools(part):
        return part
    return {"type": "text", "text": f"The tool {part.get('tool_name')} is there now."}


def _not_served(kind: Any, where: str) -> RequestError:
    return RequestError(f"{where}: {kind!r} is not served here, only {_BLOCKS}.", where)
