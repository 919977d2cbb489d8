"""Prompts from text, messages and files."""

import pytest

from mlx_budget.engine.prompts import encode_chat


@pytest.fixture(scope="session")
def tokenizer(loaded):
    return loaded[1]


def test_the_chat_template_is_applied(tokenizer):
    ids = encode_chat(tokenizer, "What is 14 + 7?")
    text = tokenizer.decode(ids)
    assert text.startswith("<|im_start|>user\nWhat is 14 + 7?<|im_end|>")
    assert "assistant\n<think>" in text


def test_a_system_prompt_comes_first(tokenizer):
    text = tokenizer.decode(encode_chat(tokenizer, "hi", system_prompt="Be terse."))
    assert text.startswith("<|im_start|>system\nBe terse.<|im_end|>")


def test_the_template_can_be_left_out(tokenizer):
    ids = encode_chat(tokenizer, "hi", ignore_chat_template=True)
    assert tokenizer.decode(ids) == "hi"


def test_messages_are_taken_as_they_are(tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    text = tokenizer.decode(encode_chat(tokenizer, messages))
    assert text.index("\na<") < text.index("\nb<")


def test_a_cached_prefix_is_left_out(tokenizer):
    whole = tokenizer.decode(encode_chat(tokenizer, "hi", system_prompt="Be terse."))
    suffix = encode_chat(tokenizer, "hi", system_prompt="Be terse.", suffix_only=True)
    assert tokenizer.decode(suffix) == whole[whole.index("hi<") :]


@pytest.mark.parametrize("config", [{"messages": 1}, {"tools": 5}])
def test_what_a_template_cannot_render_is_one_error(tokenizer, config, monkeypatch):
    monkeypatch.setattr(
        tokenizer._tokenizer, "chat_template", "{{ raise_exception('not this') }}"
    )
    with pytest.raises(ValueError, match="chat template cannot render this prompt"):
        encode_chat(tokenizer, "hi", chat_template_config=config)


def test_options_of_the_template_need_a_template(tokenizer):
    with pytest.raises(ValueError, match="need a chat template"):
        encode_chat(tokenizer, "hi", system_prompt="x", ignore_chat_template=True)


@pytest.mark.parametrize("prompt", ["", "  \n", []])
def test_an_empty_prompt_is_refused(tokenizer, prompt):
    with pytest.raises(ValueError, match="prompt is empty"):
        encode_chat(tokenizer, prompt)


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


def test_content_parts_are_their_texts(tokenizer):
    plain = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "What is 1 + 1?"},
    ]
    in_parts = [
        {"role": "system", "content": parts("Be terse.")},
        {"role": "user", "content": parts("What is ", "1 + 1?")},
    ]
    assert encode_chat(tokenizer, in_parts) == encode_chat(tokenizer, plain)
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    bad = [{"role": "user", "content": [*parts("What is it?"), picture]}]
    with pytest.raises(ValueError) as e:
        encode_chat(tokenizer, bad)
    assert str(e.value) == (
        "The prompt's message 1 (user) has a part of type image_url: only parts of "
        "type text can be read."
    )


def test_a_role_that_the_template_leaves_out_is_named(tokenizer, monkeypatch):
    chat = [{"role": "user", "content": "hi"}, {"role": "critic", "content": "no"}]
    with monkeypatch.context() as patch:
        patch.setattr(
            tokenizer._tokenizer,
            "chat_template",
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}"
            "{% endfor %}",
        )
        message = "leaves out messages of the role 'critic': use system, user, assist"
        with pytest.raises(ValueError, match=message):
            encode_chat(tokenizer, chat)
        assert encode_chat(tokenizer, chat[:1])
    assert encode_chat(tokenizer, chat)  # this model's own template reads all


def test_chats_need_the_template(tokenizer):
    chat = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match="leave out --ignore-chat-template"):
        encode_chat(tokenizer, chat, ignore_chat_template=True)
