"""A server whose KV caches are quantised, and what of it mlx-lm cannot quantise."""

from pathlib import Path

import mlx_lm
import openai
import pytest

from served import ask, served, serving
from tiny_models import LLAMA, save

pytestmark = pytest.mark.skipif(
    mlx_lm.__version__.startswith("0.31"), reason="its server quantises no KV cache"
)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory) -> Path:
    """A model with sliding windows, saved."""
    config = dict(LLAMA, sliding_window_pattern=2)
    return save("gemma3_text", config, tmp_path_factory.mktemp("models") / "gemma3")


def test_what_cannot_be_quantised_is_refused_and_the_rest_is_served(sliding):
    # The groups do not divide the heads of the built-in model, which have 64 values.
    options = ("--kv-bits", 8, "--kv-group-size", 128, "--quantized-kv-start", 1000)
    options += ("--model-folders", sliding)
    with serving(*options) as server:
        client = server.client()
        with pytest.raises(openai.APIStatusError, match="RotatingKVCache") as e:
            ask(client, model=str(sliding), max_tokens=4)
        assert e.value.status_code in (400, 404)
        with pytest.raises(openai.BadRequestError, match="in groups of 128"):
            ask(client, max_tokens=1500)
        assert ask(client, thinking_budget=20, max_tokens=90).choices[0].message.content
    assert not any("Traceback" in line for line in server.lines)


def test_a_cache_is_quantised_while_the_budget_holds():
    with served(kv_bits=8, kv_group_size=32, quantized_kv_start=10) as client:
        reply = ask(client, thinking_budget=20, max_tokens=6000)
        assert 0 < reply.choices[0].thinking["tokens"] <= 22
        assert "My guess is" in reply.choices[0].message.content
