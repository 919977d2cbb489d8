"""How what mlx-lm's handler writes is told in the forms of other interfaces."""

import io
import json

import pytest

from mlx_budget.server.errors import RequestError
from mlx_budget.server.messages import Messages
from mlx_budget.server.response_store import ResponseStore
from mlx_budget.server.responses import Responses
from mlx_budget.server.telling import Teller

USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
CALLS = [
    {"id": id, "type": "function", "function": {"name": "add", "arguments": "{}"}}
    for id in ("one", "two")
]


def messages(**body) -> Messages:
    asked = [{"role": "user", "content": "Hello"}]
    return Messages({"messages": asked, "max_tokens": 9, "stream": True, **body})


def responses(**body) -> Responses:
    return Responses({"input": "Hello", "stream": True, **body}, ResponseStore())


def chunk(finish_reason: str | None = None, **delta) -> dict:
    return {"choices": [{"delta": delta, "finish_reason": finish_reason}]}


def teller(translation) -> tuple[Teller, io.BytesIO]:
    out = io.BytesIO()
    teller = Teller(out, str.encode, lambda: (9, 4))
    teller.translation = translation
    return teller, out


def told(out: io.BytesIO) -> list[tuple[str, dict]]:
    """The events of a stream: names and data."""
    events = []
    for event in out.getvalue().decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data[6:])))
    assert all(name == data["type"] for name, data in events)
    return events


def written(translation, *chunks: dict) -> list[tuple[str, dict]]:
    """What a stream of chat completions comes to."""
    writer, out = teller(translation)
    for piece in (*chunks, {"choices": [], "usage": USAGE}):
        writer.write(f"data: {json.dumps(piece)}\n\n".encode())
    writer.write(b"data: [DONE]\n\n")
    return told(out)


def blocks(*chunks: dict, **body) -> list[dict]:
    """The blocks of a message."""
    translation = messages(**body)
    written(translation, *chunks)
    return translation.reply()["content"]


def test_white_space_alone_is_no_part_of_a_reply():
    parts = blocks(
        chunk(reasoning="\n"),
        chunk(content="\n"),
        chunk(content="\n"),
        chunk(content="Yes.\n"),
        chunk(tool_calls=CALLS[:1]),
        chunk("tool_calls", content="\n"),
    )
    assert [part["type"] for part in parts] == ["text", "tool_use"]
    assert parts[0]["text"] == "\n\nYes.\n"
    assert blocks(chunk(reasoning="\n"), chunk("stop", content="\n")) == []


def test_parts_come_in_their_order():
    parts = blocks(
        chunk(reasoning="A", content="B"), chunk(reasoning="C"), chunk("stop")
    )
    assert [part.get("thinking", part.get("text")) for part in parts] == [*"ABC"]


@pytest.mark.parametrize(
    ("translation", "calls"),
    [
        (messages(), 2),
        (messages(tool_choice={"type": "auto", "disable_parallel_tool_use": True}), 1),
        (responses(), 2),
        (responses(parallel_tool_calls=False), 1),
    ],
)
def test_no_more_tools_are_called_than_may_be_at_once(translation, calls):
    written(translation, chunk("tool_calls", tool_calls=CALLS))
    reply = translation.reply()
    assert len(reply.get("content", reply.get("output"))) == calls
    assert reply.get("stop_reason", "tool_use") == "tool_use"


def test_a_call_that_could_not_be_read_is_none():
    translation = messages()
    written(translation, chunk(content="Hm"), chunk("tool_calls"))
    assert translation.reply()["stop_reason"] == "end_turn"


def test_a_call_of_a_tool_of_a_namespace_says_so():
    tool = {"type": "function", "name": "add"}
    space = {"type": "namespace", "name": "maths", "tools": [tool]}
    function = {"name": "maths__add", "arguments": "{}"}
    translation = responses(tools=[space])
    call = {**CALLS[0], "function": function}
    written(translation, chunk("tool_calls", tool_calls=[call]))
    (item,) = translation.reply()["output"]
    assert (item["namespace"], item["name"]) == ("maths", "add")


def test_a_stream_begins_with_the_first_that_is_written():
    writer, out = teller(messages())
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
    assert not writer.is_begun
    writer.write(b": keepalive 0/9\n\n")
    head, _, rest = out.getvalue().partition(b"\r\n\r\n")
    assert head == b"HTTP/1.0 200 OK"
    (start, message), (ping, _) = told(io.BytesIO(rest))
    assert (start, ping) == ("message_start", "ping")
    usage = message["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 4)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_stream_that_cannot_go_on_says_so(has_begun):
    for translation, first, last in (
        (messages(), "message_start", "error"),
        (responses(), "response.created", "response.failed"),
    ):
        writer, out = teller(translation)
        if has_begun:
            piece = json.dumps(chunk(content="The"))
            writer.write(f"data: {piece}\n\n".encode())
        writer.fail(RequestError("It broke.", None, 500))
        events = told(out)
        assert (events[0][0], events[-1][0]) == (first, last)
        data = events[-1][1]
        error = data.get("error") or data["response"]["error"]
        assert error["message"] == "It broke."
        assert [name for name, _ in events].count(first) == 1


def test_a_refusal_is_told_in_its_own_form():
    writer, out = teller(None)
    writer.write(b'{"error": "no"}')
    writer.write(b"data: {}\n\n")
    assert out.getvalue() == b"nodata: {}\n\n"


def test_a_field_is_called_as_its_interface_calls_it():
    error = RequestError("max_tokens is low.", "max_tokens").named(responses().names)
    assert (error.field, str(error)) == (
        "max_output_tokens",
        "max_output_tokens is low.",
    )
    assert RequestError("No.", None).named(responses().names).field is None
