"""Speculative serving: a draft model makes replies faster, never others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import openai
import pytest

from mlx_budget import demo, load, stream_generate
from served import QUESTION, ask, serving

OTHER = "What is 2 + 3 + 4 - 1?"


@pytest.fixture(scope="module")
def model():
    return load("demo")


@pytest.fixture(scope="module")
def draft(tmp_path_factory) -> Path:
    """The built-in model with noise in it, so that it is wrong at times."""
    folder = tmp_path_factory.mktemp("draft")
    for file in demo.FOLDER.iterdir():
        if not file.name.startswith("predictor"):
            (folder / file.name).write_bytes(file.read_bytes())
    file = str(folder / "model.safetensors")
    weights, key = mx.load(file), mx.random.key(1)
    for name, weight in weights.items():
        if name.endswith(".scales"):
            noise = 1 + 0.3 * mx.random.normal(weight.shape, key=key)
            weights[name] = (weight * noise).astype(weight.dtype)
    mx.eval(weights)
    mx.save_safetensors(file, weights, {"format": "mt"})
    return folder


@pytest.fixture(scope="module", params=["itself", "noisy"])
def client(request, draft):
    folder = demo.FOLDER if request.param == "itself" else draft
    # Stop words are to leave replies in their middle, which is thinking here.
    options = ("--draft-model", folder, "--stop-in-thinking", "--log-level", "WARNING")
    with serving(*options) as server, server.client() as client:
        yield client


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def alone(model, messages: list[dict], **options) -> tuple[str, str]:
    """Thinking and answer as the model gives them without a draft."""
    ids = model[1].apply_chat_template(messages, add_generation_prompt=True)
    *_, last = stream_generate(*model[:2], ids, predictor=False, **options)
    return last.reply.split()


def drafted(client, messages: list[dict], **options) -> tuple[str, str]:
    extra = {k: options.pop(k) for k in ("num_draft_tokens",) if k in options}
    (choice,) = client.chat.completions.create(
        model="demo", messages=messages, extra_body=extra, **options
    ).choices
    message = choice.message
    return getattr(message, "reasoning", "").strip(), message.content or ""


def test_no_request_changes_the_replies_that_follow(client, model):
    conversation = [user(QUESTION), assistant("It is 12."), user(OTHER)]
    for messages, most in (
        ([user(QUESTION)], 40),
        ([user(QUESTION)], 40),  # repeated
        (conversation, 30),  # extended
        ([user(OTHER)], 30),
        ([user(QUESTION)], 1),
        ([user(QUESTION)], 7),
        (conversation, 33),
        ([user(QUESTION)], 30),  # shorter again
    ):
        want = alone(model, messages, max_tokens=most)
        for drafts in (0, 4):
            options = {"num_draft_tokens": drafts, "max_tokens": most}
            found = drafted(client, messages, **options)
            assert found == want, (messages, options)


def test_a_reply_that_was_left_in_the_middle_leaves_no_trace(client, model):
    options = {"max_tokens": 40}
    want = alone(model, [user(OTHER)], **options)
    for word in ("Next", "3", ".\n"):
        cut, _ = drafted(client, [user(OTHER)], stop=[word], **options)
        assert cut == want[0].partition(word)[0].strip()
        assert drafted(client, [user(OTHER)], **options) == want
    with ask(client, OTHER, stream=True) as stream:
        next(stream)
    assert drafted(client, [user(OTHER)], **options) == want


def test_clients_in_turn_get_what_each_would_get_alone(client, model):
    chats = [
        [user(QUESTION)],
        [user(QUESTION), assistant("It is 12."), user(OTHER)],
        [user(OTHER), assistant("It is 8."), user(QUESTION)],
    ]
    want = [alone(model, chat, max_tokens=40) for chat in chats]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            found = pool.map(lambda chat: drafted(client, chat, max_tokens=40), chats)
            assert list(found) == want


def test_a_budget_is_refused_and_harms_no_reply(client, model):
    with pytest.raises(openai.BadRequestError, match="Speculative decoding"):
        ask(client, thinking_budget=5)
    assert drafted(client, [user(OTHER)]) == alone(model, [user(OTHER)])
