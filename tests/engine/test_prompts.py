"""Prompts from text, messages and files."""

import json

import pytest

from mlx_budget.engine.prompts import encode_chat, read_prompts


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


def test_prompt_files(tmp_path):
    file = tmp_path / "a.jsonl"
    messages = [
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "answer"},
    ]
    records = [{"prompt": "a"}, {"question": "b", "answer": "2"}]
    records.append({"messages": messages})
    file.write_text("\n\n".join(json.dumps(r) for r in records))
    assert read_prompts(file) == ["a", "b", messages[:1]]
    file.write_text('\ufeff{"prompt": "x\u2028y"}\n', encoding="utf-8")
    assert read_prompts(file) == ["x\u2028y"]
    text = tmp_path / "a.txt"
    text.write_text("one\n\ntwo\n")
    assert read_prompts(text) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"answer": 1}', "line 2 has none of prompt"),
        ('{"prompt": "a"}\n{', "line 2 is not valid JSON"),
        ("[1]", "line 1 has none of prompt"),
        ('{"messages": ["x"]}', "line 1 has none of prompt"),
        ('{"messages": [{"role": "user"}]}', "line 1 has none of prompt"),
        ("\n", "holds no prompts"),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path, text, message):
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(file)


def test_a_missing_prompt_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no file .*nope"):
        read_prompts(tmp_path / "nope")
