"""Answers by a JSON schema in the formats of reasoning models, or refused there."""

import json

import pytest

from formats import ANSWER, FORMATS, THOUGHT, Format
from mlx_budget import stream_generate
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.thinking import find_markers
from scripted import ScriptedModel

SCHEMA = {
    "type": "object",
    "properties": {"a": {"const": 5}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=FORMATS, ids=lambda f: f.name)
def format(request) -> Format:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(format: Format, tmp_path_factory):
    try:
        tokenizer = format.tokenizer(tmp_path_factory.mktemp("tokenizer"))
        tokenizer.apply_chat_template([{"role": "user", "content": "Go."}])
    except (ModuleNotFoundError, TypeError) as e:
        pytest.skip(f"This release of mlx-lm does not know the format: {e}.")
    return tokenizer


def frames(format: Format, tokenizer) -> tuple[str, ...]:
    """What the format writes around answers."""
    named = (format.markers.get(f"thinking_{side}") for side in ("start", "end"))
    return find_markers(tokenizer, *named).frames


@pytest.mark.parametrize("budget", [None, 4])
def test_thinking_ends_as_the_format_has_it_and_json_follows(format, tokenizer, budget):
    prompt = encode_chat(tokenizer, "What is 2 + 3?", chat_template_config=format.on)
    text = format.text(format.says)
    before, _, after = text.rpartition(ANSWER)
    script = [
        token
        for piece in (before, '{"a": 5}' + after)
        for token in tokenizer.encode(piece, add_special_tokens=False)
    ]
    size = max(tokenizer.get_vocab().values()) + 1
    model = ScriptedModel(script, len(prompt), size)
    replies = stream_generate(
        model,
        tokenizer,
        prompt,
        predictor=False,
        thinking_budget=budget,
        hard_stop=1,
        max_tokens=200,
        json_schema=SCHEMA,
        **format.markers,
    )
    if frames(format, tokenizer):
        with pytest.raises(ValueError, match="around their answers"):
            next(replies)
        return
    *_, last = replies
    thinking, answer = last.reply.split()
    assert json.loads(answer) == {"a": 5}
    assert last.finish_reason == "stop"
    if budget is None:
        assert (thinking, last.closed_by) == (THOUGHT, "model")
    else:
        assert THOUGHT.startswith(thinking) and last.closed_by == "budget"
