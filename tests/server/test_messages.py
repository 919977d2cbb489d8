"""The Messages interface as the real `anthropic` client sees it, over loopback."""

import anthropic
import openai
import pytest

from serve_failing import running_failing
from serve_scripted import QUESTION as QUESTION_FOR_TOOLS
from serve_scripted import TOOLS
from served import QUESTION, SECONDS, ask, told

MESSAGES = [{"role": "user", "content": QUESTION}]
TOOL = {
    "name": "add",
    "input_schema": TOOLS[0]["function"]["parameters"],
}


def client_of(server) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=server.url, api_key="none", timeout=SECONDS, max_retries=0
    )


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def calling(scripted):
    with client_of(scripted) as client:
        yield client


def create(client, **options):
    options = {"max_tokens": 500, "messages": MESSAGES, "model": "demo", **options}
    return client.messages.create(**options)


def thinking(tokens: int, **more) -> dict:
    return {"type": "enabled", "budget_tokens": tokens, **more}


@pytest.mark.parametrize("tokens", [20, 60])
def test_a_reply_is_that_of_a_chat_completion(client, server, tokens):
    reply = create(client, thinking=thinking(tokens))
    with server.client() as other:
        chat = ask(other, thinking_budget=tokens, max_tokens=500)
    expected = told(chat)
    thought, answer = reply.content
    assert thought.thinking == expected["reasoning"]
    assert answer.type == "text" and answer.text == expected["content"]
    assert reply.thinking == expected["thinking"]
    assert reply.thinking["budget"] == tokens
    usage = reply.usage
    assert usage.output_tokens == chat.usage.completion_tokens
    assert usage.output_tokens_details.thinking_tokens == reply.thinking["tokens"]
    prompt = usage.input_tokens + usage.cache_read_input_tokens
    assert prompt == chat.usage.prompt_tokens
    assert (reply.stop_reason, reply.stop_sequence) == ("end_turn", None)
    assert reply.type == "message" and reply.role == "assistant"
    assert reply.model == "demo" and reply.id.startswith("msg_")


def test_a_stream_says_the_same(client):
    whole = create(client, thinking=thinking(60))
    options = {"max_tokens": 500, "messages": MESSAGES, "model": "demo"}
    with client.messages.stream(**options, thinking=thinking(60)) as stream:
        kinds = [event.type for event in stream]
        reply = stream.get_final_message()
    assert [b.model_dump(exclude={"parsed_output"}) for b in reply.content] == [
        block.model_dump() for block in whole.content
    ]
    assert reply.stop_reason == "end_turn"
    assert reply.usage.output_tokens == whole.usage.output_tokens
    assert reply.usage.output_tokens_details == whole.usage.output_tokens_details
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    assert {"thinking", "signature", "text", "message_delta"} <= {*kinds}


def test_raw_events_come_in_their_order(client):
    events = list(create(client, thinking=thinking(20), stream=True))
    start, *blocks, delta, stop = events
    assert start.message.content == [] and start.message.usage.input_tokens > 0
    assert delta.delta.stop_reason == "end_turn" and stop.type == "message_stop"
    assert delta.thinking["budget"] == 20
    for index, kinds in enumerate(
        [{"thinking_delta", "signature_delta"}, {"text_delta"}]
    ):
        first, *middle, last = [e for e in blocks if e.index == index]
        assert first.type == "content_block_start"
        assert last.type == "content_block_stop"
        assert {event.delta.type for event in middle} == kinds
    assert [e.delta.type for e in blocks if e.type == "content_block_delta"].count(
        "signature_delta"
    ) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_that_is_not_to_be_told_comes_back_in_its_signature(client, stream):
    whole = create(client, thinking=thinking(60))
    options = {"max_tokens": 500, "messages": MESSAGES, "model": "demo"}
    options["thinking"] = thinking(60, display="omitted")
    if stream:
        with client.messages.stream(**options) as events:
            reply = events.get_final_message()
    else:
        reply = client.messages.create(**options)
    block, answer = reply.content
    assert block.thinking == "" and answer.text == whole.content[1].text
    # What the client hands back is the thinking to the chat template.
    turn = [*MESSAGES, {"role": "assistant", "content": reply.content}]
    told_turn = [*MESSAGES, {"role": "assistant", "content": whole.content}]
    more = {"role": "user", "content": "And 1 + 1?"}
    counted = [
        client.messages.count_tokens(model="demo", messages=[*m, more]).input_tokens
        for m in (turn, told_turn)
    ]
    assert counted[0] == counted[1]


def test_the_ways_to_ask_for_thinking_hold(client):
    def budget(**options):
        return create(client, **options).thinking["budget"]

    assert budget(thinking={"type": "disabled"}) == 0
    assert budget(thinking={"type": "adaptive"}, max_tokens=5) is None
    effort = {"effort": "low"}
    low = budget(thinking={"type": "adaptive"}, output_config=effort)
    high = budget(output_config={"effort": "high"})
    assert 0 < low < high
    assert budget(thinking=thinking(33), output_config=effort) == 33
    assert budget(thinking={"type": "disabled"}, output_config=effort) == 0
    assert budget(extra_body={"thinking_budget": 44}) == 44


def test_why_a_reply_has_ended_is_told(client):
    short = {"thinking": thinking(20)}
    reply = create(client, **short, stop_sequences=["nothing", "guess is"])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "guess is")
    assert reply.content[-1].text.strip() == "My"
    events = list(create(client, **short, stop_sequences=["guess"], stream=True))
    assert events[-2].delta.stop_sequence == "guess"
    reply = create(client, max_tokens=12, thinking=thinking(-1))
    assert reply.stop_reason == "max_tokens" and reply.usage.output_tokens == 12


def test_tokens_of_a_prompt_are_counted(client):
    counted = client.messages.count_tokens(model="demo", messages=MESSAGES)
    usage = create(client, max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    more = client.messages.count_tokens(
        model="demo", messages=MESSAGES, system="Be brief."
    )
    assert more.input_tokens > counted.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="must be a list"):
        client.messages.count_tokens(model="demo", messages=[])


def test_a_tool_is_called_and_its_result_read(calling):
    question = [{"role": "user", "content": QUESTION_FOR_TOOLS}]
    options = {"messages": question, "tools": [TOOL], "thinking": thinking(4)}
    reply = create(calling, **options)
    thought, call = reply.content
    assert thought.type == "thinking" and reply.stop_reason == "tool_use"
    assert (call.type, call.name, call.input) == ("tool_use", "add", {"a": 2, "b": 3})
    with calling.messages.stream(**options, model="demo", max_tokens=500) as events:
        kinds = [event.type for event in events]
        streamed = events.get_final_message()
    assert streamed.content[1].input == call.input
    assert streamed.stop_reason == "tool_use" and "input_json" in kinds
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "5"}
    turns = [
        *question,
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": [result]},
    ]
    counted = calling.messages.count_tokens(model="demo", messages=turns, tools=[TOOL])
    assert counted.input_tokens > reply.usage.input_tokens


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"thinking": thinking(-4)}, "thinking.budget_tokens must be -1"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type must be enabled"),
        ({"extra_body": {"budget_tokens": 4}}, "budget_tokens is not known here"),
        ({"extra_body": {"temperature": -1}}, "temperature must be at least 0"),
        ({"max_tokens": 0}, "max_tokens must be a whole number"),
        ({"stop_sequences": [""]}, "stop_sequences must be"),
        ({"extra_body": {"min_thinking_tokens": 400}, "max_tokens": 9}, "max_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_refused_in_the_clients_form(
    client, options, told, stream
):
    with pytest.raises(anthropic.BadRequestError, match=told) as refused:
        create(client, stream=stream, **options)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["type"] == "invalid_request_error"


def test_the_clients_own_tool_loop_runs(calling):
    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Adds."""
        return str(a + b)

    # It asks for a thread first, and takes it that there is none.
    turns = calling.beta.messages.tool_runner(
        model="demo",
        max_tokens=500,
        tools=[add],
        messages=[{"role": "user", "content": QUESTION_FOR_TOOLS}],
        max_iterations=1,
        thinking=thinking(4),
    )
    (reply,) = turns
    assert [block.type for block in reply.content] == ["thinking", "tool_use"]


def test_a_query_and_a_beta_header_change_nothing(client):
    reply = client.beta.messages.create(
        model="demo",
        max_tokens=500,
        messages=MESSAGES,
        thinking=thinking(20),
        betas=["interleaved-thinking-2025-05-14"],
    )
    assert (
        reply.content[1].text == create(client, thinking=thinking(20)).content[1].text
    )


def test_a_failure_of_generation_is_told_in_the_clients_form():
    with running_failing() as server, client_of(server) as client:
        unlucky = {"extra_body": {"seed": 13}}
        with pytest.raises(anthropic.InternalServerError, match="unlucky") as failed:
            create(client, **unlucky)
        assert failed.value.body["error"]["type"] == "api_error"
        with pytest.raises(anthropic.APIStatusError, match="unlucky"):
            list(create(client, stream=True, **unlucky))
        with server.client() as other:
            asked = {"input": QUESTION, "model": "demo", **unlucky}
            with pytest.raises(openai.InternalServerError, match="unlucky"):
                other.responses.create(**asked)
            events = list(other.responses.create(**asked, stream=True))
        kinds = [event.type for event in events]
        assert kinds[0] == "response.created" and kinds[-1] == "response.failed"
        assert "unlucky" in events[-1].response.error.message
        assert create(client, thinking=thinking(20)).stop_reason == "end_turn"
