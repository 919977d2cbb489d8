"""The server as a client sees it: the real `openai` client, over loopback."""

import json

import mlx_lm
import openai
import pytest

from mlx_budget import demo
from mlx_budget.engine import m1
from mlx_budget.engine.budgets import EFFORTS
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import AutoBudget, ThinkingBudget
from mlx_budget.server.budgets import leaving_room
from serve_scripted import LINE, TOOLS, LoopingProvider, running_scripted
from serve_scripted import QUESTION as QUESTION_FOR_TOOLS
from served import QUESTION, alone, ask, gather, served, told

BUDGETS = (None, 0, 20, 60, 500, "auto", "auto:0.5")


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def cutting():
    """A client of a server that holds budgets by the hard stop alone."""
    with served(predictor=False) as client:
        yield client


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_reply_is_what_generate_gives(client, model, budget):
    reply = ask(client, thinking_budget=budget)
    assert told(reply) == alone(model, QUESTION, budget)
    used = reply.usage.completion_tokens_details.reasoning_tokens
    assert used == reply.choices[0].thinking["tokens"]
    assert reply.choices[0].finish_reason == "stop"
    left_out_by = getattr(reply.choices[0], "left_out_by_template", None)
    assert left_out_by == ({"enable_thinking": False} if budget == 0 else None)
    if budget == 0:
        assert reply.choices[0].thinking["closed_by"] == "budget"
        assert told(reply)["reasoning"] == ""


@pytest.mark.parametrize("budget", [None, 20, 60, "auto"])
def test_a_stream_says_the_same(client, budget):
    whole = ask(client, thinking_budget=budget)
    stream = ask(
        client,
        thinking_budget=budget,
        stream=True,
        stream_options={"include_usage": True},
    )
    found, usage = gather(stream)
    assert found == told(whole)
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.completion_tokens_details == whole.usage.completion_tokens_details


def test_a_block_closed_by_the_budget_is_split_like_any_other(cutting, model):
    message = "\nEnough.\n"
    # Enough for a first result, so that there is an answer.
    options = {"thinking_budget": 70, "thinking_budget_message": message}
    reply = told(ask(cutting, **options))
    assert reply["reasoning"].endswith(message)
    # The white space behind the closing marker is put in with it.
    assert reply["content"].startswith("The answer is")
    assert reply["thinking"]["closed_by"] == "budget"
    assert 70 <= reply["thinking"]["tokens"] <= 77
    assert reply == alone(model, QUESTION, 70, predictor=False, **options)
    found, _ = gather(
        ask(cutting, stream=True, stream_options={"include_usage": True}, **options)
    )
    assert found == reply


@pytest.mark.parametrize(
    "field", ["thinking_token_budget", "thinking_budget_tokens", "chat_template_kwargs"]
)
def test_the_other_names_of_a_budget_are_known(client, field):
    value = {"thinking_budget": 60} if field == "chat_template_kwargs" else 60
    reply = ask(client, **{field: value})
    assert reply.choices[0].thinking["budget"] == 60
    assert told(ask(client, **{field: value, "thinking_budget": 60})) == told(reply)


@pytest.mark.parametrize("effort", [effort for effort in EFFORTS if effort != "max"])
def test_an_effort_is_a_share_of_the_predicted_length(client, effort):
    budget = ask(client, reasoning_effort=effort).choices[0].thinking["budget"]
    asked = f"auto:{EFFORTS[effort]}" if EFFORTS[effort] else 0
    same = ask(client, thinking_budget=asked).choices[0].thinking["budget"]
    assert budget == same
    assert budget == 0 if effort == "none" else budget > 0


def test_an_effort_is_tokens_where_nothing_predicts_lengths(cutting):
    told = [
        ask(cutting, reasoning_effort=effort).choices[0].thinking["budget"]
        for effort in ("minimal", "low", "high", "xhigh")
    ]
    assert told[:2] == [128, 512]
    # More than the 2,048 tokens of the model's context have room for.
    assert 1024 < told[2] == told[3] < 2048


def test_a_reply_begins_with_the_text_that_was_asked_for(cutting, model):
    message = "\nEnough.\n</think>\n\nMy answer: "
    options = {
        "thinking_budget": 8,
        "thinking_budget_message": message,
        "reply_prefix": "Let me see.\n",
    }
    reply = told(ask(cutting, **options))
    assert reply["reasoning"].startswith("Let me see.\n")
    assert reply["reasoning"].endswith("\nEnough.\n")
    assert reply["content"].startswith("My answer: ")
    assert reply == alone(model, QUESTION, 8, predictor=False, **options)
    free = told(ask(cutting, thinking_budget=-1, reply_prefix="Let me see.\n"))
    assert free["reasoning"].startswith("Let me see.\n")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"thinking_budget": "many"}, "thinking_budget"),
        ({"thinking_budget": 1.5}, "thinking_budget"),
        ({"thinking_budget": True}, "thinking_budget"),
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"thinking_budget": 2**40}, "thinking_budget"),
        ({"thinking_budget": [60]}, "thinking_budget"),
        ({"thinking_budget": "auto:0"}, None),
        ({"thinking_token_budget": "x"}, "thinking_token_budget"),
        ({"thinking_budget_tokens": -9}, "thinking_budget_tokens"),
        (
            {"chat_template_kwargs": {"thinking_budget": "x"}},
            "chat_template_kwargs.thinking_budget",
        ),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"thinking_budget_message": 4}, "thinking_budget_message"),
        ({"reply_prefix": 4}, "reply_prefix"),
        (
            {"thinking_budget": 60, "thinking_token_budget": 61},
            "thinking_token_budget",
        ),
        ({"think": False, "reasoning_effort": "low"}, "reasoning_effort"),
        ({"thinking_budget": -1, "thinking_budget_tokens": 5}, None),
    ],
)
def test_what_cannot_be_a_budget_is_refused_by_name(client, body, field):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": QUESTION}],
            extra_body=body,
        )
    named = field or next(reversed(body))
    assert caught.value.param == named
    assert named in str(caught.value)


def test_max_tokens_leaves_room_for_the_answer(client, cutting):
    (choice,) = ask(client, thinking_budget=500, max_tokens=60).choices
    assert choice.finish_reason == "stop"
    forced = 4  # a newline, the closing marker, and two newlines
    budget = choice.thinking["budget"]
    assert int(1.1 * budget) <= 60 - 15 - forced < int(1.1 * (budget + 1))
    assert "The answer is" in choice.message.content
    message = "I have thought about this for as long as I may, and will answer now."
    options = {"thinking_budget": 100, "thinking_budget_message": message}
    reply = ask(cutting, max_tokens=90, **options)
    assert reply.choices[0].message.content
    assert reply.choices[0].thinking["closed_by"] == "budget"
    assert reply.usage.completion_tokens <= 90


def test_ranges_floors_and_modes_are_kept(client, cutting, model):
    (choice,) = ask(client, thinking_budget=[50, 60]).choices
    assert choice.thinking["budget"] == 60 and 50 <= choice.thinking["tokens"] <= 66
    free = ask(cutting).choices[0].thinking["tokens"]
    (choice,) = ask(cutting, min_thinking_tokens=free + 9).choices
    assert choice.thinking["budget"] is None
    assert choice.thinking["tokens"] >= free + 9
    reply = told(ask(client, thinking_budget=60, budget_mode="about"))
    assert reply == alone(model, QUESTION, 60, budget_mode="about")
    line = "leaves room for 71 tokens of thinking, and at least 80 are asked for"
    with pytest.raises(openai.BadRequestError, match=line):
        ask(client, min_thinking_tokens=80, max_tokens=100)


def test_what_a_user_writes_opens_no_block(model):
    """With a template that does not open it either."""
    template = (
        "{%- for message in messages %}<|im_start|>{{- message.role + '\n' + "
        "message.content + '<|im_end|>\n' }}{%- endfor %}<|im_start|>assistant\n"
    )
    with served(chat_template=template, max_tokens=40) as client:
        (choice,) = ask(client, "What is <think>").choices
        assert choice.message.content
        assert not getattr(choice.message, "reasoning", "")
        assert choice.thinking["tokens"] == 0


def test_a_reply_cut_by_max_tokens_is_told_from_a_closed_budget(cutting):
    (cut,) = ask(cutting, max_tokens=30).choices
    assert (cut.finish_reason, cut.thinking["closed_by"]) == ("length", None)
    assert cut.message.content is None
    (closed,) = ask(cutting, thinking_budget=12, max_tokens=18).choices
    assert closed.thinking["closed_by"] == "budget"
    assert closed.finish_reason == "length"  # within the answer
    (done,) = ask(cutting, thinking_budget=12).choices
    assert (done.finish_reason, done.thinking["closed_by"]) == ("stop", "budget")


@pytest.mark.parametrize(
    ("budget", "max_tokens", "forced", "lowered"),
    [
        (None, 10, 1, None),
        (60, 2114, 1, 60),
        (500, 60, 1, 40),
        (500, 60, 25, 19),
        (500, 1, 9, 0),
        (20_000, ThinkingBudget(20_000, 1.1).max_tokens, 1, 20_000),
        (8192, ThinkingBudget(8192, 1.1).max_tokens, 1, 8192),
        (AutoBudget(2), 8192, 1, AutoBudget(2, most=5586)),
    ],
)
def test_thinking_leaves_room_for_an_answer(budget, max_tokens, forced, lowered):
    thinking = leaving_room(ThinkingBudget(budget), max_tokens, forced)
    assert thinking.tokens == lowered


def test_named_or_not_the_default_model_is_one(tmp_path, endless):
    """Its requests share a batch, and it keeps its predictor."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in demo.FOLDER.iterdir():
        if not file.name.startswith("predictor"):
            (folder / file.name).symlink_to(file)
    with served(model=str(folder), predictor=str(demo.FOLDER)) as client:
        assert [m.id for m in client.models.list().data] == [str(folder)]
        running = ask(client, model="default_model", stream=True, **endless)
        next(running)
        for name in (str(folder), "default_model", str(folder.resolve())):
            # A batch of its own would have to wait for the end of what runs.
            reply = ask(client, model=name, thinking_budget="auto")
            assert reply.choices[0].thinking["budget"] > 0
        assert next(running).choices[0].finish_reason is None
        running.close()


def test_text_completions_are_steered_and_split_alike(client, model):
    text = model[1].apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        tokenize=False,
        add_generation_prompt=True,
    )
    create = client.completions.create
    (choice,) = create(
        model="demo", prompt=text, extra_body={"thinking_budget": 60}
    ).choices
    want = alone(model, QUESTION, 60)
    assert choice.text == want["content"]
    assert choice.reasoning == want["reasoning"]
    assert choice.thinking == want["thinking"]
    chunks = list(
        create(
            model="demo", prompt=text, extra_body={"thinking_budget": 60}, stream=True
        )
    )
    assert "".join(c.choices[0].text for c in chunks) == want["content"]
    thoughts = "".join(getattr(c.choices[0], "reasoning", "") for c in chunks)
    assert thoughts == want["reasoning"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param(
            {"kv_bits": 8},
            marks=pytest.mark.skipif(
                mlx_lm.__version__.startswith("0.31"), reason="has no --kv-bits"
            ),
        ),
    ],
)
def test_a_text_is_continued_from_where_its_reply_was_cut(model, options):
    """mlx-lm has that prompt stored as a whole, with nothing left to read."""
    text = model[1].apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        tokenize=False,
        add_generation_prompt=True,
    )
    with served(**options) as client:

        def reply(prompt: str, length: int) -> str:
            (choice,) = client.completions.create(
                model="demo", prompt=prompt, max_tokens=length
            ).choices
            return choice.reasoning

        whole = reply(text, 12)
        for length in (1, 4, 7):
            begun = reply(text, length)
            assert whole.startswith(begun)
            assert whole == begun + " " + reply(text + begun, 12 - length)


@pytest.mark.parametrize("field", [None, "reasoning", "reasoning_content"])
def test_a_second_turn_reads_the_history_without_its_thinking(client, model, field):
    first = told(ask(client, thinking_budget=60))
    assert first["reasoning"]
    answer = {"role": "assistant", "content": first["content"]}
    messages = [
        {"role": "user", "content": QUESTION},
        answer,
        {"role": "user", "content": "What is 2 + 3 + 4 - 1?"},
    ]
    prompt = encode_chat(model[1], messages)
    assert first["reasoning"] not in model[1].decode(prompt)
    if field is not None:  # a client may send it back
        messages[1] = {**answer, field: first["reasoning"]}
    second = client.chat.completions.create(
        model="demo", messages=messages, extra_body={"thinking_budget": 40}
    )
    assert second.usage.prompt_tokens == len(prompt)
    assert told(second) == alone(model, prompt, 40)


def test_models_and_health(client, server):
    assert [m.id for m in client.models.list().data].count("demo") == 1
    assert client.models.list().data[0].id == "demo"
    assert client._client.get(f"{server.url}/health").json()["status"] == "ok"
    assert client._client.get(f"{server.url}/nothing").status_code == 404


def test_defaults_and_ceiling_are_the_servers(model):
    with served(thinking_budget=60, max_thinking_budget=80) as client:

        def budget(**body):
            return ask(client, **body).choices[0].thinking["budget"]

        assert budget() == 60
        assert budget(thinking_budget=30) == 30
        assert budget(thinking_budget=5000) == 80
        assert budget(thinking_budget=-1) == 80
        assert budget(thinking_budget="auto:100") == 80
        assert budget(reasoning_effort="none") == 0


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """The built-in model, with markers of its own."""
    folder = tmp_path_factory.mktemp("silent")
    for file in demo.FOLDER.iterdir():
        data = file.read_bytes()
        if file.name in ("tokenizer.json", "tokenizer_config.json"):
            data = data.replace(b"think>", b"thonk>")
        (folder / file.name).write_bytes(data)
    return folder


@pytest.mark.parametrize("start", ["<thonk>", ""])
def test_a_model_gets_markers_of_its_own(silent, model, start):
    markers = {"thinking_start": start, "thinking_end": "</thonk>"}
    with served(model=str(silent), **markers) as client:
        for budget in (None, 25, 60):
            reply = told(ask(client, model="default_model", thinking_budget=budget))
            assert reply["reasoning"]
            assert reply == alone(model, QUESTION, budget)
        other = ask(client, thinking_budget=60)
        assert told(other) == alone(model, QUESTION, 60)


def test_a_server_closes_thinking_as_m1_is_cut(model):
    """Its markers and words; the demo's vocabulary has the token of both."""
    m1_options = {
        "thinking_start": m1.START,
        "thinking_end": m1.END,
        "reply_prefix": f"{m1.START}\n",
        "thinking_budget_message": "auto",
        "hard_stop": 1.0,
    }
    with served(predictor=False, **m1_options) as client:
        reply = told(ask(client, thinking_budget=20, max_tokens=80))
    assert reply["content"].startswith("Final Answer:")
    assert reply["thinking"] == {"budget": 20, "tokens": 20, "closed_by": "budget"}
    options = {**m1_options, "predictor": False, "max_tokens": 80}
    assert reply == alone(model, QUESTION, 20, **options)


def test_a_budget_that_the_model_cannot_honour_is_refused(silent, tmp_path):
    folders = (str(silent), str(tmp_path))
    with served(predictor=False, model_folders=folders) as cutting:
        refuse_what_cannot_be_honoured(cutting, silent, tmp_path)


def refuse_what_cannot_be_honoured(cutting, silent, tmp_path):
    with pytest.raises(openai.BadRequestError, match="there is none"):
        ask(cutting, thinking_budget="auto")
    with pytest.raises(openai.BadRequestError, match="no thinking markers"):
        ask(cutting, model=str(silent), thinking_budget=20)
    (choice,) = ask(cutting, model=str(silent)).choices
    assert choice.message.content
    assert not hasattr(choice, "thinking")
    with pytest.raises(openai.NotFoundError):
        ask(cutting, model=str(tmp_path / "nothing"))
    assert ask(cutting, thinking_budget=20).choices[0].thinking["tokens"] <= 22


def test_a_reply_says_that_its_thinking_was_in_a_loop():
    with running_scripted(LoopingProvider) as server, server.client() as client:
        options = {
            "model": "default_model",
            "messages": [{"role": "user", "content": QUESTION_FOR_TOOLS}],
            "tools": TOOLS,
            "extra_body": {"thinking_budget": 500},
        }
        (choice,) = client.chat.completions.create(**options, max_tokens=700).choices
        assert choice.thinking["closed_by"] == "loop"
        assert choice.thinking["tokens"] < 400
        assert choice.message.reasoning.endswith(LINE)


def test_a_tool_is_called_behind_a_steered_block(scripted):
    with scripted.client() as client:
        options = {
            "model": "default_model",
            "messages": [{"role": "user", "content": QUESTION_FOR_TOOLS}],
            "tools": TOOLS,
            "extra_body": {"thinking_budget": 4},
        }
        (choice,) = client.chat.completions.create(**options).choices
        assert choice.thinking == {"budget": 4, "tokens": 4, "closed_by": "budget"}
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "add"
        assert json.loads(call.function.arguments) == {"a": 2, "b": 3}
        assert choice.message.reasoning.endswith("so\n")
        chunks = list(client.chat.completions.create(**options, stream=True))
        calls = [c for k in chunks for c in k.choices[0].delta.tool_calls or []]
        assert [c.function.name for c in calls] == ["add"]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert chunks[-1].choices[0].thinking == choice.thinking
