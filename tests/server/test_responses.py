"""The Responses interface as the real `openai` client sees it, over loopback."""

import openai
import pytest

from serve_scripted import QUESTION as QUESTION_FOR_TOOLS
from serve_scripted import TOOLS
from served import QUESTION, ask, told

TOOL = {"type": "function", "strict": False, **TOOLS[0]["function"]}


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def calling(scripted):
    with scripted.client() as client:
        yield client


def create(client, budget: int | None = 20, **options):
    extra = options.pop("extra_body", {})
    if budget is not None:
        extra = {"thinking_budget": budget, **extra}
    options = {"input": QUESTION, "model": "demo", **options}
    return client.responses.create(**options, extra_body=extra)


def texts(reply) -> tuple[str, str]:
    """Thinking and answer of a reply."""
    thought, message = reply.output
    assert (thought.type, message.type) == ("reasoning", "message")
    parts = thought.content or thought.summary
    return "".join(part.text for part in parts), reply.output_text


@pytest.mark.parametrize("budget", [20, 60])
def test_a_reply_is_that_of_a_chat_completion(client, budget):
    reply = create(client, budget)
    chat = ask(client, thinking_budget=budget)
    expected = told(chat)
    assert texts(reply) == (expected["reasoning"], expected["content"])
    assert reply.thinking == expected["thinking"]
    used, told_use = reply.usage, chat.usage
    assert used.input_tokens == told_use.prompt_tokens
    assert used.output_tokens == told_use.completion_tokens
    assert used.total_tokens == told_use.total_tokens
    assert used.output_tokens_details.reasoning_tokens == reply.thinking["tokens"]
    assert (reply.object, reply.status, reply.model) == (
        "response",
        "completed",
        "demo",
    )
    assert reply.id.startswith("resp_") and reply.incomplete_details is None
    assert {item.status for item in reply.output} == {"completed"}


def test_thinking_of_no_tokens_is_no_item(client):
    (message,) = create(client, 0).output
    assert message.type == "message" and message.content[0].text


@pytest.mark.parametrize("summary", [None, "auto"])
def test_a_stream_says_the_same(client, summary):
    reasoning = {} if summary is None else {"reasoning": {"summary": summary}}
    whole = create(client, **reasoning)
    options = {
        "input": QUESTION,
        "model": "demo",
        "extra_body": {"thinking_budget": 20},
    }
    with client.responses.stream(**options, **reasoning) as stream:
        events = list(stream)
        reply = stream.get_final_response()
    assert texts(reply) == texts(whole)
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    told_as, part = "response.reasoning_text", "response.content_part"
    if summary:
        told_as, part = (
            "response.reasoning_summary_text",
            "response.reasoning_summary_part",
        )
        assert reply.output[0].content is None
    thought = "".join(e.delta for e in events if e.type == f"{told_as}.delta")
    answer = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert (thought, answer) == texts(whole)
    for index, (delta, added) in enumerate(
        [(told_as, part), ("response.output_text", "response.content_part")]
    ):
        kinds = [e.type for e in events if getattr(e, "output_index", None) == index]
        assert kinds[:2] == ["response.output_item.added", f"{added}.added"]
        assert {*kinds[2:-3]} == {f"{delta}.delta"}
        assert kinds[-3:] == [
            f"{delta}.done",
            f"{added}.done",
            "response.output_item.done",
        ]


def test_a_conversation_goes_on_with_what_is_stored(client):
    first = create(client, instructions="Be brief.")
    second = create(client, input="What is 2 + 3?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    turns = [
        {"role": "user", "content": QUESTION},
        *first.output,
        {"role": "user", "content": "What is 2 + 3?"},
    ]
    # The instructions are not gone on with.
    same = create(client, input=turns)
    assert second.usage.input_tokens == same.usage.input_tokens
    assert texts(second) == texts(same)


def test_replies_are_kept_until_they_are_deleted(client):
    kept = create(client)
    assert client.responses.retrieve(kept.id) == kept
    client.responses.delete(kept.id)
    for use in (
        lambda id: client.responses.retrieve(id),
        lambda id: client.responses.delete(id),
    ):
        with pytest.raises(openai.NotFoundError, match="There is no response"):
            use(kept.id)
    with pytest.raises(openai.BadRequestError, match="no response") as refused:
        create(client, previous_response_id=kept.id)
    assert refused.value.param == "previous_response_id"
    unkept = create(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_streams_are_kept_as_well(client):
    *_, last = create(client, stream=True)
    assert last.type == "response.completed"
    assert client.responses.retrieve(last.response.id) == last.response


def test_a_client_that_keeps_its_own_history_gets_thinking_sealed(client):
    reply = create(client, store=False, include=["reasoning.encrypted_content"])
    sealed = reply.output[0].encrypted_content
    assert sealed and "It is" not in sealed
    bare = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    more = {"role": "user", "content": "And 1 + 1?"}
    asked = {"role": "user", "content": QUESTION}
    counts = [
        create(client, 0, input=[asked, item, reply.output[1], more]).usage.input_tokens
        for item in (bare, reply.output[0])
    ]
    assert counts[0] == counts[1]


def test_the_ways_to_ask_for_thinking_hold(client):
    def budget(**options):
        return create(client, None, **options).thinking["budget"]

    low = budget(reasoning={"effort": "low"})
    assert 0 < low < budget(reasoning={"effort": "high", "summary": "detailed"})
    assert budget(reasoning={"effort": "none"}) == 0
    extra = {"thinking": {"type": "enabled", "budget_tokens": 33}}
    assert budget(reasoning={"effort": "low"}, extra_body=extra) == 33


def test_a_reply_that_is_cut_off_is_incomplete(client):
    reply = create(client, None, max_output_tokens=12)
    assert reply.status == "incomplete" and reply.usage.output_tokens == 12
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[-1].status == "incomplete"
    *_, last = create(client, None, max_output_tokens=12, stream=True)
    assert last.type == "response.incomplete"


def test_tokens_of_an_input_are_counted(client):
    counted = client.responses.input_tokens.count(model="demo", input=QUESTION)
    assert counted.object == "response.input_tokens"
    reply = create(client, max_output_tokens=1)
    assert counted.input_tokens == reply.usage.input_tokens
    after = client.responses.input_tokens.count(
        model="demo", input="And 1 + 1?", previous_response_id=reply.id
    )
    assert after.input_tokens > counted.input_tokens


def test_a_tool_is_called_and_its_result_read(calling):
    options = {"input": QUESTION_FOR_TOOLS, "tools": [TOOL]}
    reply = create(calling, 4, **options)
    thought, call = reply.output
    assert thought.type == "reasoning" and call.type == "function_call"
    assert call.name == "add" and call.arguments == '{"a": 2, "b": 3}'
    events = list(create(calling, 4, **options, stream=True))
    kinds = [event.type for event in events if "function_call" in event.type]
    assert kinds == [
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
    ]
    assert events[-1].response.output[1].arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    after = create(
        calling, 4, input=[result], previous_response_id=reply.id, tools=[TOOL]
    )
    assert after.usage.input_tokens > reply.usage.input_tokens


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        ({"extra_body": {"thinkingBudget": 4}}, "thinkingBudget"),
        ({"temperature": -1}, None),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        (
            {"extra_body": {"min_thinking_tokens": 400}, "max_output_tokens": 9},
            "max_output_tokens",
        ),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_refused_by_name(client, options, field, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, None, stream=stream, **options)
    assert refused.value.param == field
    assert (field or "temperature").partition("[")[0] in str(refused.value)
