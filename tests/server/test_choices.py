"""Several choices, several prompts, scores of tokens and other fields of OpenAI's."""

import json
import math

import mlx.core as mx
import numpy as np
import openai
import pytest

from asking import get
from mlx_budget import stream_generate
from mlx_budget.engine.scoring import likeliest_tokens, score_tokens
from mlx_budget.server.choice_fields import read_choices
from mlx_budget.server.choice_form import keep_one_call, name_thinking
from mlx_budget.server.errors import RequestError
from served import QUESTION, ask, served

USER = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def contents(reply) -> list[str]:
    assert [choice.index for choice in reply.choices] == [*range(len(reply.choices))]
    return [choice.message.content for choice in reply.choices]


def test_choices_have_draws_of_their_own_and_come_again_with_their_seed(client):
    asked = {"temperature": 1.0, "seed": 5, "thinking_budget": 15}
    three = contents(ask(client, n=3, **asked))
    assert len(set(three)) > 1  # guesses of some fifteen numbers
    assert contents(ask(client, n=3, **asked)) == three
    assert contents(ask(client, **asked)) == three[:1]


def test_usage_counts_the_prompt_once_and_every_token_of_the_choices(client):
    one = ask(client, thinking_budget=20).usage
    two = ask(client, thinking_budget=20, n=2).usage
    assert two.prompt_tokens == one.prompt_tokens
    assert two.completion_tokens == 2 * one.completion_tokens
    assert two.total_tokens == two.prompt_tokens + two.completion_tokens
    details = two.completion_tokens_details.reasoning_tokens
    assert details == 2 * one.completion_tokens_details.reasoning_tokens


def test_a_stream_tells_which_choice_each_piece_is_of(client):
    asked = {"thinking_budget": 15, "temperature": 1.0, "seed": 5, "n": 2}
    whole = contents(ask(client, **asked))
    texts, ended = ["", ""], []
    chunks = ask(client, stream=True, stream_options={"include_usage": True}, **asked)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ended += [choice.index] * (choice.finish_reason is not None)
    assert texts == whole
    assert sorted(ended) == [0, 1]
    assert chunk.usage.completion_tokens > 0 and not chunk.choices


def test_more_choices_than_are_begun_at_a_time_are_all_told(client):
    reply = client.completions.create(model="demo", prompt="2 + 3", n=40, max_tokens=2)
    assert len({choice.text for choice in reply.choices}) == 1
    assert [choice.index for choice in reply.choices] == [*range(40)]


def test_each_choice_has_an_answer_by_the_schema(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2, 3, 4, 5, 6]}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    asked = {"n": 6, "temperature": 1.5, "seed": 1, "thinking_budget": 5}
    told = contents(ask(client, response_format=form, max_tokens=200, **asked))
    assert len({json.loads(text)["a"] for text in told}) > 1


def test_a_client_that_hangs_up_ends_all_its_choices(endless):
    with served(decode_concurrency=2) as client:
        with ask(client, n=2, stream=True, **endless) as stream:
            next(iter(stream))
        # Both slots are free again, or this would wait for ever.
        assert contents(ask(client, n=2, thinking_budget=0))


def test_one_refusal_is_that_of_all_choices(client):
    with pytest.raises(openai.BadRequestError, match="logit_bias") as refused:
        ask(client, n=3, logit_bias={"100000": 1.0})
    assert refused.value.param == "logit_bias"
    assert contents(ask(client, n=2, thinking_budget=0))


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_content(client, stream):
    asked = {"logprobs": True, "top_logprobs": 2, "thinking_budget": 25}
    if stream:
        choices = [c.choices[0] for c in ask(client, stream=True, **asked)]
        content = "".join(c.delta.content or "" for c in choices)
        entries = [e for c in choices for e in c.logprobs.content]
        thoughts = [e for c in choices for e in getattr(c.logprobs, "reasoning", [])]
    else:
        (choice,) = ask(client, **asked).choices
        content = choice.message.content
        entries, thoughts = choice.logprobs.content, choice.logprobs.reasoning
    assert content.strip() in "".join(entry.token for entry in entries)
    assert len(thoughts) > 10
    for entry in entries:
        first, second = (top.logprob for top in entry.top_logprobs)
        assert 0 >= first >= second and entry.logprob <= first
        assert bytes(entry.bytes).decode() == entry.token


def test_scores_of_a_text_are_those_of_one_token_after_another(model):
    tokens = model[1].encode("2 + 3 = 5, so 5 - 4.")
    scores = score_tokens(model[0], tokens, top=3)
    assert [score.token for score in scores] == tokens
    assert scores[0].logprob is None
    for i in (1, 4, len(tokens) - 1):
        (r,) = stream_generate(*model[:2], tokens[:i], predictor=False, max_tokens=1)
        logprobs = np.array(r.logprobs, dtype=np.float64)
        assert scores[i].logprob == pytest.approx(logprobs[tokens[i]], abs=1e-4)
        assert scores[i].top[0][0] == int(logprobs.argmax())


def test_long_texts_are_scored_in_parts(model):
    tokens = (model[1].encode("2 + 3 = 5. ") * 60)[:300]
    whole = score_tokens(model[0], tokens, top=0)
    assert len(whole) == 300 and whole[299].top == ()
    logits = model[0](mx.array(tokens)[None])[0].astype(mx.float32)
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for i in (127, 128, 129, 256, 257, 299):
        value = expected[i - 1, tokens[i]].item()
        assert whole[i].logprob == pytest.approx(value, abs=1e-3)


def test_likeliest_tokens_are_in_order_and_no_more_than_there_are():
    rows = mx.array([[0.1, 0.4, 0.2], [0.3, 0.1, 0.2]])
    assert [[t for t, _ in row] for row in likeliest_tokens(rows, 2)] == [
        [1, 2],
        [0, 2],
    ]
    assert [len(row) for row in likeliest_tokens(rows, 9)] == [3, 3]
    assert likeliest_tokens(rows, 0) == [(), ()]


def test_a_harness_scores_continuations_as_it_does_elsewhere(client, model):
    """What lm-eval's local-completions sends, and what it makes of the answer."""
    texts = [("2 + 3 = ", "5"), ("Next 2 + 3", " = 5, so")]
    requests = [(model[1].encode(c), model[1].encode(e)) for c, e in texts]
    reply = client.completions.create(
        model="demo",
        prompt=[context + end for context, end in requests],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    for choice, (context, end) in zip(reply.choices, requests, strict=True):
        scores = score_tokens(model[0], context + end, top=1)[len(context) :]
        told = choice.logprobs.token_logprobs[len(context) : -1]
        assert len(told) == len(end)
        assert sum(told) == pytest.approx(sum(s.logprob for s in scores), abs=1e-3)
        tops = choice.logprobs.top_logprobs[len(context) : -1]
        is_greedy = all(v == max(t.values()) for v, t in zip(told, tops, strict=True))
        assert is_greedy == all(s.token == s.top[0][0] for s in scores)
        assert len(choice.logprobs.tokens) == len(context) + len(end) + 1
        assert choice.text.startswith(model[1].decode(context + end))


def test_a_prompt_is_scored_without_a_reply(client):
    for stream in (False, True):
        asked = {"prompt": "2 + 3 = 5", "max_tokens": 0, "echo": True, "logprobs": 0}
        told = client.completions.create(model="demo", stream=stream, **asked)
        (reply,) = told if stream else [told]
        (choice,) = reply.choices
        assert choice.text == "2 + 3 = 5"
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.token_logprobs[0] is None
        assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])


def test_prompts_of_a_list_are_answered_each_by_itself(client):
    prompts = ["2 + 3", "Next 4 + 1"]
    asked = {"model": "demo", "max_tokens": 6}
    reply = client.completions.create(prompt=prompts, **asked)
    alone = [client.completions.create(prompt=p, **asked) for p in prompts]
    assert [c.text for c in reply.choices] == [a.choices[0].text for a in alone]
    assert reply.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone)
    twice = client.completions.create(prompt=prompts, n=2, **asked)
    expected = [a.choices[0].text for a in alone for _ in range(2)]
    assert [c.text for c in twice.choices] == expected


def test_a_token_that_the_model_does_not_have_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="999999 is no token") as refused:
        client.completions.create(model="demo", prompt=[5, 999999], max_tokens=1)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("body", "is_chat", "field"),
    [
        ({"n": 0}, True, "n"),
        ({"n": 1.5}, True, "n"),
        ({"n": 129}, True, "n"),
        ({"logprobs": 3}, True, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, True, "top_logprobs"),
        ({"prompt": "a", "logprobs": 21}, False, "logprobs"),
        ({"prompt": "a", "logprobs": "5"}, False, "logprobs"),
        ({"prompt": "a", "echo": 1}, False, "echo"),
        ({"prompt": []}, False, "prompt"),
        ({"prompt": [[]]}, False, "prompt"),
        ({"prompt": [-1]}, False, "prompt"),
        ({"prompt": ["a", 5]}, False, "prompt"),
        ({"prompt": {"a": 1}}, False, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, False, "prompt"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(body, is_chat, field):
    with pytest.raises(RequestError) as refused:
        read_choices(body, is_chat)
    assert refused.value.field == field


def test_a_model_is_retrieved_by_its_name(client, server):
    assert client.models.retrieve("demo").id == "demo"
    assert client.models.list().data[0] == client.models.retrieve("demo")
    with pytest.raises(openai.NotFoundError, match="no model 'owner/name'"):
        client.models.retrieve("owner/name")
    assert get(server.url, "/v1/models/").json()["data"][0]["id"] == "demo"


def test_thinking_is_told_by_both_of_its_names(client):
    (choice,) = ask(client, thinking_budget=25).choices
    assert choice.message.reasoning == choice.message.reasoning_content != ""
    deltas = [c.choices[0].delta for c in ask(client, thinking_budget=25, stream=True)]
    told = "".join(getattr(d, "reasoning_content", "") for d in deltas)
    assert told == choice.message.reasoning


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("reasoning", {"reasoning"}),
        ("reasoning_content", {"reasoning_content"}),
        ("both", {"reasoning", "reasoning_content"}),
    ],
)
def test_thinking_is_told_in_the_field_that_is_wanted(field, names):
    for place in ("message", "delta"):
        choice = {place: {"role": "assistant", "reasoning": "So."}}
        name_thinking(choice, field)
        assert set(choice[place]) == names | {"role"}
    silent = {"delta": {"content": "5"}}
    name_thinking(silent, field)
    assert silent == {"delta": {"content": "5"}}


def test_where_one_call_is_wanted_the_others_are_left_out():
    choice = {"message": {"tool_calls": ["first", "second"]}}
    assert keep_one_call(choice, False)
    assert choice["message"]["tool_calls"] == ["first"]
    assert keep_one_call(choice, True)
    assert "tool_calls" not in choice["message"]
    assert not keep_one_call({"delta": {"content": "5"}}, False)


def test_adapters_of_a_request_change_the_served_model(tmp_path, model):
    layers = model[0].layers
    shape = layers[0].self_attn.q_proj.weight.shape[0]
    width = model[0].model.embed_tokens(mx.array([[0]])).shape[-1]
    weights = {}
    for i in range(len(layers)):
        name = f"model.layers.{i}.self_attn.q_proj"
        weights[f"{name}.lora_a"] = mx.random.normal((width, 2))
        weights[f"{name}.lora_b"] = 5 * mx.random.normal((2, shape))
    folder = tmp_path / "tuned"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {
        "fine_tune_type": "lora",
        "num_layers": len(layers),
        "lora_parameters": {
            "rank": 2,
            "scale": 1.0,
            "dropout": 0.0,
            "keys": ["self_attn.q_proj"],
        },
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    asked = {"thinking_budget": 0, "logprobs": True, "max_tokens": 8}
    with served(model_folders=(str(tmp_path),)) as client:
        own = ask(client, **asked).choices[0]
        tuned = ask(client, adapters=str(folder), **asked).choices[0]
        again = ask(client, **asked).choices[0]
    scores = [[e.logprob for e in c.logprobs.content] for c in (own, tuned, again)]
    assert not any(map(math.isnan, scores[1]))
    assert scores[0] == scores[2] != scores[1]
