"""Answers by a JSON schema and tools that must be called, by the clients' own means."""

import concurrent.futures
import json

import anthropic
import openai
import pydantic
import pytest
from llguidance import LLMatcher

from mlx_budget.server.answer_fields import AskedAnswer, read_answer
from mlx_budget.server.errors import RequestError
from mlx_budget.server.unserved import CHAT_ONLY, TEXT_ONLY, refuse_unserved
from serve_scripted import QUESTION as SUM
from serve_scripted import TOOLS
from served import QUESTION, SECONDS, ask

USER = [{"role": "user", "content": QUESTION}]


class Answer(pydantic.BaseModel):
    answer: int = pydantic.Field(ge=-99, le=99)


SCHEMA = {**Answer.model_json_schema(), "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.mark.parametrize("budget", [0, 20, -1, "auto"])
def test_parse_gives_an_object_behind_free_thinking(client, budget):
    reply = client.chat.completions.parse(
        model="demo",
        messages=USER,
        response_format=Answer,
        max_tokens=600,
        extra_body={"thinking_budget": budget},
    )
    (choice,) = reply.choices
    assert isinstance(choice.message.parsed, Answer)
    assert choice.finish_reason == "stop"
    free = ask(client, thinking_budget=budget, max_tokens=600)
    thoughts = [
        getattr(c.message, "reasoning", None) for c in (choice, free.choices[0])
    ]
    assert thoughts[0] == thoughts[1]
    assert choice.thinking == free.choices[0].thinking


def test_a_stream_parses_as_well(client):
    with client.chat.completions.stream(
        model="demo",
        messages=USER,
        response_format=Answer,
        max_tokens=600,
        extra_body={"thinking_budget": 20},
    ) as stream:
        reply = stream.get_final_completion()
    assert isinstance(reply.choices[0].message.parsed, Answer)


def test_a_json_object_is_one(client):
    reply = ask(
        client,
        thinking_budget=10,
        response_format={"type": "json_object"},
        max_tokens=40,
    )
    (choice,) = reply.choices
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        json.loads(choice.message.content)


def test_many_clients_at_once_get_their_own_formats(client):
    forms = [FORM, None, {"type": "text"}, FORM] * 3

    def content(form):
        extra = {} if form is None else {"response_format": form}
        reply = ask(client, thinking_budget=15, max_tokens=200, **extra)
        return reply.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(len(forms)) as pool:
        contents = list(pool.map(content, forms))
    for form, text in zip(forms, contents, strict=True):
        if form is FORM:
            Answer.model_validate_json(text)
        else:
            assert text.strip().startswith("My guess is")


def test_an_object_that_is_cut_off_says_so(client):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="demo",
            messages=USER,
            response_format=Answer,
            max_tokens=6,
            extra_body={"thinking_budget": 0},
        )


def test_responses_parse_as_well(client):
    response = client.responses.parse(
        model="demo",
        input=QUESTION,
        text_format=Answer,
        max_output_tokens=600,
        extra_body={"thinking_budget": 20},
    )
    assert isinstance(response.output_parsed, Answer)


@pytest.mark.parametrize("place", ["output_config", "output_format"])
def test_messages_follow_a_schema_as_well(server, place):
    form = {"type": "json_schema", "schema": SCHEMA}
    extra = {place: {"format": form} if place == "output_config" else form}
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", timeout=SECONDS, max_retries=0
    ) as client:
        message = client.messages.create(
            model="demo",
            max_tokens=600,
            messages=USER,
            thinking={"type": "enabled", "budget_tokens": 20},
            extra_body=extra,
        )
    Answer.model_validate_json(message.content[-1].text)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objec"}, "Invalid type: objec"),
        ({"not": {}}, "Unimplemented keys"),
        (5, "must be a JSON schema"),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_with_the_reason(
    client, schema, reason
):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=reason) as refused:
        ask(client, response_format=form)
    assert refused.value.param == "response_format.json_schema.schema"


def call_of(client, **options):
    return client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": SUM}],
        tools=TOOLS,
        max_tokens=200,
        extra_body={"thinking_budget": 4},
        **options,
    ).choices[0]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "add"}}]
)
def test_a_tool_that_must_be_called_is_called(scripted, choice):
    with scripted.client() as client:
        told = call_of(client, tool_choice=choice)
    (call,) = told.message.tool_calls
    assert call.function.name == "add"
    assert set(json.loads(call.function.arguments)) <= {"a", "b"}
    assert told.finish_reason == "tool_calls"


def test_tools_that_may_not_be_called_are_not_shown(scripted):
    with scripted.client() as client:
        prompts = {
            choice: client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": SUM}],
                tools=TOOLS,
                tool_choice=choice,
                max_tokens=1,
            ).usage.prompt_tokens
            for choice in ("none", "auto")
        }
    assert prompts["none"] < prompts["auto"]


def test_a_model_whose_tools_are_not_known_refuses_to_promise_a_call(client):
    with pytest.raises(openai.BadRequestError, match="its tool format is none"):
        call_of(client, tool_choice="required")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text"}, "guided_json": {}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}, "tools": TOOLS}, "tool_choice"),
        (
            {
                "tool_choice": {"type": "function", "function": {"name": "sub"}},
                "tools": TOOLS,
            },
            "tool_choice",
        ),
    ],
)
def test_what_is_asked_of_an_answer_is_honoured_or_refused_by_name(body, field):
    with pytest.raises(RequestError) as refused:
        read_answer(dict(body))
    assert refused.value.field == field


def test_a_call_may_be_of_any_tool_and_keeps_its_references():
    tree = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}},
        "$defs": {"unused": {"type": "string"}},
    }

    class Tokenizer:
        has_tool_calling, tool_call_start, tool_call_end = True, "<a>", "</a>"

        @staticmethod
        def tool_parser(text):
            raise NotImplementedError

    Tokenizer.tool_parser.__module__ = "mlx_lm.tool_parsers.json_tools"
    asked = AskedAnswer(calls=(("grow", tree), ("add", {"type": "object"})))
    answer = asked.for_model(Tokenizer())
    grammar = LLMatcher.grammar_from_json_schema(answer.schema)
    assert LLMatcher.validate_grammar(grammar) == ""
    assert json.loads(answer.schema)["$defs"]["0"]["properties"]["kids"]["items"] == {
        "$ref": "#/$defs/0"
    }


@pytest.mark.parametrize("is_chat", [True, False])
def test_what_is_not_served_is_refused_by_name(is_chat):
    for field, harmless in (CHAT_ONLY if is_chat else TEXT_ONLY).items():
        for value in harmless:
            refuse_unserved({field: value}, is_chat)
        with pytest.raises(RequestError, match=f"^{field} of") as refused:
            refuse_unserved({field: {"any": "thing"}}, is_chat)
        assert refused.value.field == field


def test_the_client_is_told_what_is_not_served(client):
    with pytest.raises(openai.BadRequestError, match="web_search_options") as refused:
        ask(client, web_search_options={})
    assert refused.value.param == "web_search_options"
