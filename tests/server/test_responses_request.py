"""What a request of the Responses interface is as a chat completion."""

import pytest

from mlx_budget.server.errors import RequestError
from mlx_budget.server.response_store import ResponseStore, Stored
from mlx_budget.server.responses_request import read_responses, wants_summary
from mlx_budget.server.translation import seal

USER = {"role": "user", "content": "Add 2 and 3."}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}
CALL = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "add",
    "arguments": '{"a": 2}',
}
CALLED = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 2}'},
}


def read(earlier=(), **body) -> dict:
    return read_responses({"input": "Add 2 and 3.", **body}, list(earlier))[0]


def test_a_format_and_a_tool_to_call_are_what_chat_completions_call_them():
    form = {"name": "sum", "schema": {"type": "object"}, "strict": True}
    text = {"format": {"type": "json_schema", **form}}
    expected = {"type": "json_schema", "json_schema": form}
    assert read(text=text)["response_format"] == expected
    text = {"format": {"type": "json_object"}}
    assert read(text=text)["response_format"] == {"type": "json_object"}
    assert read(tools=[TOOL], tool_choice="required")["tool_choice"] == "required"
    one = {"type": "function", "name": "add"}
    assert read(tools=[TOOL], tool_choice=one)["tool_choice"] == {
        "type": "function",
        "function": {"name": "add"},
    }


def told(*items, earlier=()) -> list[dict]:
    return read(earlier, input=list(items))["messages"]


def text(kind: str, *texts: str) -> list[dict]:
    return [{"type": kind, "text": text} for text in texts]


def test_fields_are_called_as_chat_completions_call_them():
    chat = read(
        model="demo",
        instructions="Be brief.",
        max_output_tokens=100,
        stream=True,
        temperature=0.5,
        reasoning={"effort": "low", "summary": "auto"},
        thinking_budget=40,
        tools=[{**TOOL, "description": "Adds.", "strict": True}],
    )
    assert chat == {
        "model": "demo",
        "max_tokens": 100,
        "messages": [{"role": "system", "content": "Be brief."}, USER],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "reasoning": {"effort": "low"},
        "thinking_budget": 40,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "add",
                    "description": "Adds.",
                    "parameters": {"type": "object"},
                },
            }
        ],
    }


def test_messages_are_read_however_they_are_written():
    for content in ("Add 2 and 3.", text("input_text", "Add 2 and 3.")):
        assert told({"role": "user", "content": content}) == [USER]
        assert told({"type": "message", "role": "user", "content": content}) == [USER]
    (parts,) = told({"role": "user", "content": text("input_text", "Add.", "2 and 3.")})
    assert parts["content"] == "Add.\n\n2 and 3."
    assert told({"role": "user", "content": "Add."}, USER)[0]["content"] == (
        "Add.\n\nAdd 2 and 3."
    )
    developer = {"role": "developer", "content": "Be brief."}
    assert told(developer, USER)[0] == {"role": "system", "content": "Be brief."}


def test_what_the_system_says_first_is_one_message():
    chat = read(
        instructions="A.",
        input=[
            {"role": "system", "content": "B."},
            {"role": "developer", "content": text("input_text", "C.")},
            USER,
        ],
    )
    assert chat["messages"] == [{"role": "system", "content": "A.\n\nB.\n\nC."}, USER]


def test_the_items_of_a_turn_are_one_message():
    messages = told(
        USER,
        {"type": "reasoning", "summary": [], "content": text("reasoning_text", "I.")},
        {"role": "assistant", "type": "message", "content": text("output_text", "W.")},
        CALL,
        {**CALL, "call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "5"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": text("input_text", "6"),
        },
        {"role": "assistant", "content": "5 and 6."},
        {"role": "user", "content": "So?"},
    )
    turn = {
        "role": "assistant",
        "content": "W.",
        "reasoning_content": "I.",
        "tool_calls": [CALLED, {**CALLED, "id": "call_2"}],
    }
    result = {"role": "tool", "name": "add"}
    assert messages == [
        USER,
        turn,
        {**result, "tool_call_id": "call_1", "content": "5"},
        {**result, "tool_call_id": "call_2", "content": "6"},
        {"role": "assistant", "content": "5 and 6."},
        {"role": "user", "content": "So?"},
    ]


def test_thinking_is_taken_from_wherever_it_was_told():
    def thought(**item) -> str | None:
        item = {"type": "reasoning", "summary": [], **item}
        return told(USER, item, USER)[1].get("reasoning_content")

    assert thought(summary=text("summary_text", "A.", "B.")) == "A.\nB."
    assert thought(encrypted_content=seal("C.")) == "C."
    assert thought(encrypted_content="gAAAA") is None
    assert thought() is None


def test_a_request_goes_on_with_an_earlier_one():
    earlier = [USER, {"role": "assistant", "content": "", "tool_calls": [CALLED]}]
    output = {"type": "function_call_output", "call_id": "call_1", "output": "5"}
    chat, messages = read_responses(
        {"input": [output], "instructions": "Be brief."}, earlier
    )
    result = {"role": "tool", "tool_call_id": "call_1", "content": "5", "name": "add"}
    assert messages == [*earlier, result]
    assert chat["messages"] == [{"role": "system", "content": "Be brief."}, *messages]


def test_tools_of_a_namespace_are_told_apart():
    space = {"type": "namespace", "name": "maths", "tools": [TOOL]}
    chat = read(tools=[TOOL, space])
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["add", "maths__add"]
    (turn,) = told({**CALL, "namespace": "maths"}, USER)[:1]
    assert turn["tool_calls"][0]["function"]["name"] == "maths__add"
    for within in ([{"type": "custom", "name": "x"}], [{"type": "function"}], [5]):
        with pytest.raises(RequestError) as refused:
            read(tools=[{**space, "tools": within}])
        assert refused.value.field.startswith("tools[0].tools[0]")


def test_no_tool_is_offered_where_none_may_be_called():
    assert "tools" not in read(tools=[TOOL], tool_choice="none")
    assert "tools" in read(tools=[TOOL], tool_choice="auto")


def test_what_says_nothing_of_the_reply_is_taken():
    assert read() == read(
        metadata={"a": "b"},
        user="u",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        include=["reasoning.encrypted_content"],
        truncation="disabled",
        parallel_tool_calls=True,
        service_tier="auto",
        safety_identifier="s",
        background=False,
        text={"format": {"type": "text"}, "verbosity": "medium"},
        top_logprobs=0,
        max_tool_calls=3,
        stream_options={"include_obfuscation": False},
        store=False,
    )
    assert not wants_summary({}) and wants_summary({"reasoning": {"summary": "auto"}})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [USER]}, "messages"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "mcp"}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": 5}]}, "tools[0].parameters"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"instructions": 5}, "instructions"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{**CALL, "arguments": "{"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0]",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(body, field):
    with pytest.raises(RequestError) as refused:
        read(**body)
    assert refused.value.field == field
    assert field.partition("[")[0] in str(refused.value)


def test_a_store_lets_go_of_the_oldest():
    def stored(size: int = 1) -> Stored:
        return Stored({"text": "x" * size}, [])

    store = ResponseStore(most=2)
    for id in "abc":
        store.put(id, stored())
    assert store.get("a") is None and store.get("b") and store.get("c")
    store = ResponseStore(most_bytes=300)
    store.put("a", stored(100))
    store.put("b", stored(100))
    assert store.get("a") and store.get("b")
    store.put("c", stored(100))
    assert store.get("a") is None and store.get("c")
    # What is too large alone is not kept, and leaves the count right.
    store.put("d", stored(1000))
    assert store.get("d") is None
    store.put("e", stored(100))
    store.put("f", stored(100))
    assert store.get("e") and store.get("f")


def test_a_reply_is_let_go_of_once():
    store = ResponseStore()
    store.put("a", Stored({}, []))
    assert store.delete("a") and not store.delete("a")
    assert store.get("a") is None


def test_a_request_as_codex_makes_it_is_served():
    """Fields and kinds as version 0.169.0 sends them; the texts are our own."""
    space = {"type": "namespace", "name": "agents", "description": "", "tools": [TOOL]}
    sent = {"type": "message", "id": "msg_1"}
    chat = read(
        model="demo",
        stream=True,
        input=[
            {**sent, "role": "developer", "content": text("input_text", "Be brief.")},
            {**sent, "role": "developer", "content": text("input_text", "No.", "Yes.")},
            {**sent, "role": "user", "content": text("input_text", "On Linux.")},
            {**sent, "role": "user", "content": text("input_text", "Add 2 and 3.")},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": text("summary_text", "I add."),
                "content": None,
                "encrypted_content": seal("I add."),
            },
            {**CALL, "id": "fc_1", "status": "completed"},
            {
                "type": "function_call_output",
                "id": "fco_1",
                "call_id": "call_1",
                "output": "5",
            },
        ],
        tools=[{**TOOL, "strict": False}, space],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        client_metadata={"session_id": "s"},
    )
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief.\n\nNo.\n\nYes."},
        {"role": "user", "content": "On Linux.\n\nAdd 2 and 3."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I add.",
            "tool_calls": [CALLED],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "5", "name": "add"},
    ]
    names = [tool["function"]["name"] for tool in chat["tools"]]
    assert names == ["add", "agents__add"]
