"""Speculative serving: a draft model makes replies faster, never others."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import openai
import pytest
from mlx.utils import tree_flatten

from mlx_budget import demo, stream_generate
from served import QUESTION, ask, served

OTHER = "What is 2 + 3 + 4 - 1?"


@pytest.fixture(scope="module")
def alone(model) -> Callable:
    """Thinking and answer as the model gives them without a draft."""
    found: dict[str, tuple[str, str]] = {}

    def reply(messages: list[dict], **options) -> tuple[str, str]:
        asked = json.dumps([messages, options])
        if asked not in found:
            ids = model[1].apply_chat_template(messages, add_generation_prompt=True)
            *_, last = stream_generate(*model[:2], ids, predictor=False, **options)
            found[asked] = last.reply.split()
        return found[asked]

    return reply


def save_draft(model, folder: Path, noise: float) -> Path:
    """The built-in model with noise in it; in 32 bits, which are faster than its 8."""
    key = mx.random.key(1)
    weights = dict(tree_flatten(model[0].parameters()))
    for name, weight in weights.items():
        if weight.ndim == 2:
            shape = (*weight.shape[:-1], weight.shape[-1] // 64)
            factors = 1 + noise * mx.random.normal(shape, key=key)
            weights[name] = weight * mx.repeat(factors, 64, axis=-1)
    for file in demo.FOLDER.iterdir():
        if not file.name.startswith(("predictor", "model.", "config.")):
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((demo.FOLDER / "config.json").read_bytes())
    config = {k: v for k, v in config.items() if not k.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mt"})
    return folder


@pytest.fixture(scope="module", params=["itself", "noisy"])
def client(request, model, tmp_path_factory):
    # With noise it is wrong at every fourth token or so.
    noise = 0.6 if request.param == "noisy" else 0.0
    draft = save_draft(model, tmp_path_factory.mktemp("draft"), noise)
    # Stop words are to leave replies in their middle, which is thinking here.
    with served(draft_model=str(draft), stop_in_thinking=True) as client:
        yield client


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def drafted(client, messages: list[dict], **options) -> tuple[str, str]:
    extra = {k: options.pop(k) for k in ("num_draft_tokens",) if k in options}
    (choice,) = client.chat.completions.create(
        model="demo", messages=messages, extra_body=extra, **options
    ).choices
    message = choice.message
    return getattr(message, "reasoning", "").strip(), message.content or ""


def test_no_request_changes_the_replies_that_follow(client, alone):
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
        want = alone(messages, max_tokens=most)
        for drafts in (0, 4):
            options = {"num_draft_tokens": drafts, "max_tokens": most}
            found = drafted(client, messages, **options)
            assert found == want, (messages, options)


def test_a_reply_that_was_left_in_the_middle_leaves_no_trace(client, alone):
    options = {"max_tokens": 40}
    want = alone([user(OTHER)], **options)
    for word in ("Next", "3", ".\n"):
        cut, _ = drafted(client, [user(OTHER)], stop=[word], **options)
        assert cut == want[0].partition(word)[0].strip()
        assert drafted(client, [user(OTHER)], **options) == want
    with ask(client, OTHER, stream=True) as stream:
        next(stream)
    assert drafted(client, [user(OTHER)], **options) == want


def test_clients_in_turn_get_what_each_would_get_alone(client, alone):
    chats = [
        [user(QUESTION)],
        [user(QUESTION), assistant("It is 12."), user(OTHER)],
        [user(OTHER), assistant("It is 8."), user(QUESTION)],
    ]
    want = [alone(chat, max_tokens=40) for chat in chats]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            found = pool.map(lambda chat: drafted(client, chat, max_tokens=40), chats)
            assert list(found) == want


def test_a_budget_is_refused_and_harms_no_reply(client, alone):
    with pytest.raises(openai.BadRequestError, match="Speculative decoding"):
        ask(client, thinking_budget=5)
    assert drafted(client, [user(OTHER)]) == alone([user(OTHER)])
