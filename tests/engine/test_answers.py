"""Answers by a JSON schema: thinking is free, and what follows it is valid JSON."""

import json
import sys
from functools import partial

import pytest

from mlx_budget import batch_generate, load, make_budget_sampler, stream_generate
from mlx_budget.engine.answers import AnswerFormat, _check
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.installing import install_command
from scripted import ScriptedModel
from vocabularies import make_tokenizer, tiny_vocabulary

QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer", "minimum": -99, "maximum": 99},
        "kind": {"enum": ["sum", "story"]},
    },
    "required": ["answer", "kind"],
    "additionalProperties": False,
}
BUDGETS = (None, 0, 12, 40, "auto", (20, 30))
TEMPS = (1.0, 0.0, 0.0, 1.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture(scope="module")
def prompt(demo) -> list[int]:
    return encode_chat(demo[1], QUESTION)


def run(model, prompt, **options):
    options = {"predictor": model[2], "max_tokens": 600, **options}
    *_, last = stream_generate(*model[:2], prompt, **options)
    return last


def check(answer: str) -> dict:
    """The object that an answer is, if it follows the schema."""
    found = json.loads(answer)
    assert set(found) == {"answer", "kind"}
    assert -99 <= found["answer"] <= 99 and found["kind"] in ("sum", "story")
    return found


@pytest.mark.parametrize(("budget", "temp"), [*zip(BUDGETS, TEMPS, strict=True)])
def test_thinking_is_free_and_the_answer_follows_the_schema(demo, prompt, budget, temp):
    options = {"thinking_budget": budget, "temp": temp, "seed": 4}
    options["answer_anyway"] = True
    free = run(demo, prompt, **options)
    held = run(demo, prompt, json_schema=SCHEMA, **options)
    assert held.reply.split()[0] == free.reply.split()[0]
    assert held.thinking_tokens == free.thinking_tokens
    assert held.closed_by == free.closed_by
    assert held.finish_reason == "stop"
    check(held.reply.split()[1])
    with pytest.raises(ValueError):
        check(free.reply.split()[1])


def test_replies_of_a_batch_have_schemas_of_their_own(demo, prompt):
    colour = {"type": "string", "enum": ["red", "green"]}
    wanted = [SCHEMA, None, colour, SCHEMA]
    options = {"thinking_budget": [None, 12, 0, "auto"], "predictor": demo[2]}
    replies = batch_generate(
        *demo[:2], [prompt] * 4, json_schema=wanted, max_tokens=600, **options
    ).replies
    for reply, schema, budget in zip(
        replies, wanted, options["thinking_budget"], strict=True
    ):
        alone = run(demo, prompt, json_schema=schema, thinking_budget=budget)
        assert reply.text == alone.reply.text
    check(replies[0].answer)
    check(replies[3].answer)
    assert json.loads(replies[2].answer) in ("red", "green")


def test_markers_of_many_tokens_are_left_whole(demo, prompt):
    end = "\nSo the answer is"
    assert len(demo[1].encode(end)) > 3
    options = {"thinking_end": end, "thinking_budget": 15, "predictor": False}
    held = run(demo, prompt, json_schema=SCHEMA, **options)
    assert held.closed_by == "budget" and end in held.reply.text
    check(held.reply.split()[1])


def test_an_answer_that_is_cut_off_ends_by_length(demo, prompt):
    last = run(demo, prompt, json_schema=SCHEMA, thinking_budget=0, max_tokens=8)
    assert last.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(last.reply.split()[1])


THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if false %}<think></think>{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def scripted(tokenizer, *pieces: str, **options):
    """The reply of a model that wants to say these pieces, and then its end."""
    prompt = encode_chat(tokenizer, "Go.")
    script = [t for piece in pieces for t in tokenizer.encode(piece)]
    script += list(tokenizer.eos_token_ids)
    size = max(tokenizer.get_vocab().values()) + 1
    model = ScriptedModel(script, len(prompt), size)
    *_, last = stream_generate(
        model, tokenizer, prompt, predictor=False, max_tokens=80, **options
    )
    return last


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    """The tokenizer of a model that opens its thinking itself, or does not."""
    return make_tokenizer(
        tmp_path_factory.mktemp("thinker"),
        tiny_vocabulary(),
        template=THINKING,
        eos="<|end|>",
        added=("<think>", "</think>"),
    )


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """The tokenizer of a model that does not think."""
    return make_tokenizer(
        tmp_path_factory.mktemp("talker"),
        tiny_vocabulary(),
        template=THINKING.replace("<think></think>", ""),
        eos="<|end|>",
    )


OBJECT = {"type": "object", "properties": {"a": {"const": 5}}, "required": ["a"]}
OBJECT["additionalProperties"] = False


@pytest.mark.parametrize("budget", [None, 3])
def test_a_model_may_open_its_thinking_itself(thinker, budget):
    thoughts = "I add the two numbers."
    last = scripted(
        thinker,
        "<think>",
        thoughts,
        "</think>",
        '\n\n{"a": 5}',
        json_schema=OBJECT,
        thinking_budget=budget,
    )
    thinking, answer = last.reply.split()
    assert json.loads(answer) == {"a": 5}
    assert last.finish_reason == "stop"
    assert thinking and thoughts.startswith(thinking)
    assert (thinking == thoughts) == (budget is None)


def test_a_model_may_answer_without_thinking(thinker):
    last = scripted(thinker, '{"a": 5}', json_schema=OBJECT)
    assert last.reply.text == '{"a": 5}' and last.thinking_tokens == 0


def test_a_reply_that_would_end_in_thinking_is_made_to_answer(thinker):
    last = scripted(thinker, "<think>", "I add", json_schema=OBJECT)
    assert json.loads(last.reply.split()[1]) == {"a": 5}


def test_no_tool_is_called_in_place_of_an_answer(thinker):
    last = scripted(thinker, "<think>", "I<tool_call>", json_schema=OBJECT)
    assert json.loads(last.reply.split()[1]) == {"a": 5}


def test_no_tool_is_called_from_thinking_in_place_of_an_answer(tmp_path):
    added = ("<think>", "</think>", "<tool_call>")
    tokenizer = make_tokenizer(
        tmp_path, tiny_vocabulary(), template=THINKING, eos="<|end|>", added=added
    )
    last = scripted(tokenizer, "<think>", "I add<tool_call> 2", json_schema=OBJECT)
    assert "<tool_call>" not in last.reply.text
    assert json.loads(last.reply.split()[1]) == {"a": 5}
    free = scripted(tokenizer, "<think>", "I add<tool_call> 2")
    assert "<tool_call>" in free.reply.text


def test_all_of_a_reply_without_thinking_follows_the_schema(talker):
    last = scripted(talker, "The answer is 5.", json_schema=OBJECT)
    assert json.loads(last.reply.text) == {"a": 5}
    assert last.finish_reason == "stop"


def test_a_reply_ends_only_where_its_grammar_may_end(talker):
    numbers = {"type": "array", "items": {"const": 1}, "minItems": 3, "maxItems": 3}
    last = scripted(talker, json_schema=numbers)
    assert json.loads(last.reply.text) == [1, 1, 1]


def test_schemas_are_taken_in_three_forms():
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Sum", answer=(int, ...))
    texts = {
        AnswerFormat(form).schema
        for form in (
            model,
            model.model_json_schema(),
            json.dumps(model.model_json_schema()),
        )
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objec"}, "Invalid type: objec"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"$ref": "http://localhost/a"}, "Default retriever does not fetch"),
        ("{", "json_schema is not valid JSON"),
        (5, "json_schema must be a JSON schema"),
        ({"a": object()}, "cannot be written as JSON"),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_with_the_reason(schema, reason):
    with pytest.raises(ValueError) as refused:
        AnswerFormat(schema)
    assert reason in str(refused.value)


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch):
    _check.cache_clear()
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ValueError) as refused:
        AnswerFormat({"type": "object"})
    assert install_command("structured") in str(refused.value)


def test_drafts_are_refused_by_name(demo, prompt):
    for name in ("draft_model", "sampler"):
        with pytest.raises(ValueError, match=name):
            next(
                stream_generate(
                    *demo[:2], prompt, json_schema=SCHEMA, **{name: demo[0]}
                )
            )


def test_the_sampler_for_the_stock_loop_takes_a_schema(demo, prompt):
    import mlx_lm

    make = partial(make_budget_sampler, *demo, prompt=prompt, json_schema=SCHEMA)
    sampler = make(thinking_budget=10)
    text = "".join(
        r.text
        for r in mlx_lm.stream_generate(
            *demo[:2], prompt, sampler=sampler, max_tokens=400
        )
    )
    check(text.rpartition("</think>")[2])
