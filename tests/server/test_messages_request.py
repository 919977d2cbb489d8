"""What a request of the Messages interface is as a chat completion."""

import pytest

from mlx_budget.server.errors import RequestError
from mlx_budget.server.messages_request import display_of, read_messages
from mlx_budget.server.messages_tools import calls_at_once
from mlx_budget.server.translation import seal, unseal

USER = [{"role": "user", "content": "Add 2 and 3."}]
TOOL = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
CALL = {"type": "tool_use", "id": "call_1", "name": "add", "input": {"a": 2}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1"}


def read(**body) -> dict:
    return read_messages({"max_tokens": 100, "messages": USER, **body})


def told(*contents) -> list[dict]:
    """The messages of a conversation of blocks, the user first."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
    return read(messages=turns)["messages"]


def refused_field(**body) -> str:
    with pytest.raises(RequestError) as refused:
        read(**body)
    assert "\n" not in str(refused.value)
    return refused.value.field


def test_fields_are_called_as_chat_completions_call_them():
    chat = read(
        model="demo",
        system="Be brief.",
        stop_sequences=["END"],
        stream=True,
        temperature=0.5,
        top_k=3,
        tools=[TOOL],
        tool_choice={"type": "auto"},
        thinking={"type": "enabled", "budget_tokens": 40, "display": "omitted"},
    )
    assert chat == {
        "model": "demo",
        "max_tokens": 100,
        "messages": [{"role": "system", "content": "Be brief."}, *USER],
        "stop": ["END"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_k": 3,
        "thinking": {"type": "enabled", "budget_tokens": 40},
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "add",
                    "description": "Adds.",
                    "parameters": TOOL["input_schema"],
                },
            }
        ],
    }


def test_a_system_prompt_may_come_in_blocks():
    cached = {"type": "text", "text": "A.", "cache_control": {"type": "ephemeral"}}
    chat = read(system=[cached, {"type": "text", "text": "B."}])
    assert chat["messages"][0] == {"role": "system", "content": "A.\n\nB."}
    assert read(system="")["messages"] == read(system=[])["messages"] == USER


def test_what_changes_with_each_request_is_left_out_of_the_system_prompt():
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; x"}
    chat = read(system=[billing, {"type": "text", "text": "B."}])
    assert chat["messages"][0] == {"role": "system", "content": "B."}
    assert read(system=[billing])["messages"] == USER


def test_what_the_system_says_later_is_the_users():
    later = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    once = {**later, "clear_at": "next_user_message"}
    user = {"role": "user", "content": "Add 2 and 3.\n\nBe brief."}
    for message in (later, once):
        assert read(system="A.", messages=[*USER, message])["messages"] == [
            {"role": "system", "content": "A."},
            user,
        ]
    reply = {"role": "assistant", "content": "5"}
    assert read(messages=[*USER, later, reply, *USER])["messages"][0] == user
    assert read(messages=[*USER, once, reply, *USER])["messages"][:1] == USER


def test_a_turn_with_a_tool_is_read():
    messages = told(
        "Add.",
        [
            {"type": "thinking", "thinking": "I add.", "signature": "s"},
            {"type": "text", "text": "Wait."},
            CALL,
        ],
        [{**RESULT, "content": "5"}, {"type": "text", "text": "And?"}],
    )
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "I add.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 2}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "5", "name": "add"},
        {"role": "user", "content": "And?"},
    ]


def test_a_result_may_be_empty_in_blocks_or_an_error():
    def result(**block) -> str:
        return told("Add.", [CALL], [{**RESULT, **block}])[2]["content"]

    text = [{"type": "text", "text": "5"}]
    assert [result(), result(content=text)] == ["", "5"]
    assert result(content="No.", is_error=True) == "Error: No."
    assert result(content="Error: no.", is_error=True) == "Error: no."


def test_thinking_that_was_not_told_comes_back_in_its_signature():
    block = {"type": "thinking", "thinking": "", "signature": seal("I add.")}
    assert told("Add.", [block], "So?")[1]["reasoning_content"] == "I add."
    assert unseal(seal("é\n")) == "é\n"
    # Another server's is taken, and says nothing.
    for foreign in ("", "EqQBCgIYAhIM", "not base64", None, "aGVsbG8="):
        blocks = [{**block, "signature": foreign}, {"type": "text", "text": "5"}]
        assert told("Add.", blocks, "So?")[1] == {"role": "assistant", "content": "5"}
    redacted = {"type": "redacted_thinking", "data": "EmwKAhgB"}
    assert told("Add.", [redacted], "So?")[1]["content"] == ""


def test_no_tool_is_offered_where_none_may_be_called():
    assert "tools" not in read(tools=[TOOL], tool_choice={"type": "none"})
    assert calls_at_once({"tool_choice": {"type": "auto"}})
    one = {"type": "auto", "disable_parallel_tool_use": True}
    assert not calls_at_once({"tool_choice": one})


def test_tools_that_are_held_back_come_when_the_conversation_brings_them():
    held = {**TOOL, "name": "held", "defer_loading": True}

    def offered(*changes: dict) -> list[str]:
        turns = [*USER, {"role": "system", "content": list(changes)}]
        chat = read(tools=[TOOL, held], messages=turns)
        assert chat["messages"] == USER
        return [tool["function"]["name"] for tool in chat["tools"]]

    def change(kind: str, name: str) -> dict:
        return {"type": kind, "tool": {"type": "tool_reference", "name": name}}

    assert offered() == ["add"]
    assert offered(change("tool_addition", "held")) == ["add", "held"]
    assert offered(change("tool_addition", "held"), change("tool_removal", "add")) == [
        "held"
    ]
    new = {"type": "tool_definition", "definition": {**TOOL, "name": "new"}}
    assert offered({"type": "tool_addition", "tool": new}) == ["add", "new"]
    with pytest.raises(RequestError, match="there is no tool 'gone'"):
        offered(change("tool_addition", "gone"))
    with pytest.raises(RequestError, match="mcp_tool_reference"):
        offered({"type": "tool_addition", "tool": {"type": "mcp_tool_reference"}})
    found = {**RESULT, "content": [{"type": "tool_reference", "tool_name": "held"}]}
    turns = [
        *USER,
        {"role": "assistant", "content": [CALL]},
        {"role": "user", "content": [found]},
    ]
    chat = read(tools=[TOOL, held], messages=turns)
    assert len(chat["tools"]) == 2
    assert chat["messages"][2]["content"] == "The tool held is there now."


def test_what_says_nothing_of_the_reply_is_taken():
    plain = read()
    assert plain == read(
        metadata={"user_id": "x"},
        service_tier="auto",
        speed="standard",
        betas=["b"],
        cache_control={"type": "ephemeral"},
        context_management={"edits": [{"type": "clear_thinking_20251015"}]},
        mcp_servers=[],
    )


def test_a_format_and_a_tool_to_call_are_what_chat_completions_call_them():
    schema = {"type": "object"}
    form = {"type": "json_schema", "schema": schema}
    expected = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert read(output_format=form)["response_format"] == expected
    chat = read(output_config={"format": form, "effort": "low"})
    assert chat["response_format"] == expected
    assert chat["output_config"] == {"effort": "low"}
    assert read(tools=[TOOL], tool_choice={"type": "any"})["tool_choice"] == "required"
    one = {"type": "tool", "name": "add"}
    assert read(tools=[TOOL], tool_choice=one)["tool_choice"] == {
        "type": "function",
        "function": {"name": "add"},
    }


def test_a_request_needs_a_limit_and_messages():
    with pytest.raises(RequestError, match="no max_tokens"):
        read_messages({"messages": USER})
    read_messages({"messages": USER}, needs_limit=False)
    for messages in (None, [], "Hello", [{"content": "Hello"}], ["Hello"]):
        field = refused_field(messages=messages)
        assert field.startswith("messages")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"type": "image", "source": {"type": "base64", "data": ""}}, "image"),
        ({"type": "document", "source": {}}, "document"),
        ({"type": "search_result"}, "search_result"),
        ({"type": "container_upload"}, "container_upload"),
        ({**RESULT, "content": [{"type": "image"}]}, "image"),
        ({"text": "Hello"}, "None"),
    ],
)
def test_what_is_no_text_is_refused_by_name(content, kind):
    with pytest.raises(RequestError, match=kind) as refused:
        told([content])
    assert refused.value.field.startswith("messages[0].content[0]")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"fallbacks": [{"model": "x"}]}, "fallbacks"),
        ({"speed": "fast"}, "speed"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"stop": ["END"]}, "stop"),
        ({"n": 2}, "n"),
        ({"output_format": {"type": "text"}}, "output_format"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        (
            {"output_config": {"format": {"type": "json_schema"}}},
            "output_config.format.schema",
        ),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits[0]",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"name": "add", "input_schema": 5}]}, "tools[0].input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"system": 5}, "system"),
        ({"messages": [*USER, {"role": "assistant", "content": "It"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0].role"),
        ({"messages": [{"role": "system", "content": ""}]}, "messages"),
        (
            {"messages": [{"role": "system", "output_config": {"effort": "low"}}]},
            "messages[0].output_config",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(body, field):
    assert refused_field(**body) == field


def test_thinking_is_told_in_one_of_two_ways():
    assert display_of({"thinking": {"type": "adaptive"}}) == "summarized"
    assert display_of({"thinking": {"display": "omitted"}}) == "omitted"
    with pytest.raises(RequestError, match="thinking.display must be summarized"):
        display_of({"thinking": {"display": "full"}})


def test_a_request_as_claude_code_makes_it_is_served():
    """Fields and kinds as version 2.1.332 sends them; the texts are our own."""
    cached = {"cache_control": {"type": "ephemeral"}}
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1;"}
    held = {**TOOL, "name": "held", "defer_loading": True}
    asked = {"type": "text", "text": "Add 2 and 3.", **cached}
    called = {"type": "thinking", "thinking": "", "signature": seal("I add.")}
    chat = read_messages(
        {
            "model": "demo",
            "messages": [
                {"role": "user", "content": [asked]},
                {"role": "system", "content": "You are on Linux."},
                {"role": "assistant", "content": [called, CALL]},
                {
                    "role": "user",
                    "content": [
                        {**RESULT, "content": "5", "is_error": False, **cached}
                    ],
                },
            ],
            "system": [billing, {"type": "text", "text": "Be brief.", **cached}],
            "tools": [TOOL, held],
            "metadata": {"user_id": "{}"},
            "max_tokens": 32000,
            "thinking": {"type": "adaptive", "display": "omitted"},
            "context_management": {
                "edits": [{"type": "clear_thinking_20251015", "keep": "all"}]
            },
            "output_config": {"effort": "high"},
            "stream": True,
        }
    )
    assert [message["role"] for message in chat["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    assert chat["messages"][0]["content"] == "Be brief."
    assert chat["messages"][1]["content"] == "Add 2 and 3.\n\nYou are on Linux."
    assert chat["messages"][2]["reasoning_content"] == "I add."
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["add"]
    assert chat["thinking"] == {"type": "adaptive"}
    assert chat["output_config"] == {"effort": "high"}
