"""A KV cache that mlx-lm cannot quantise is refused before anything is generated."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from click.testing import CliRunner
from mlx_lm.models.cache import (
    KVCache,
    QuantizedKVCache,
    make_prompt_cache,
)

from mlx_budget import batch_generate, generate, load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.engine.conversation import Conversation
from tiny_models import FALCON_H1, GPT_OSS, LLAMA, MAMBA, QWEN3_NEXT, build, save

WIDE = {"head_dim": 32}  # as the groups of a quantised cache, at least
GEMMA3 = dict(LLAMA, sliding_window_pattern=2)
SLIDING = {"gemma3_text": GEMMA3, "gpt_oss": GPT_OSS}
OTHERS = {"qwen3": LLAMA, "mamba": MAMBA, "qwen3_next": QWEN3_NEXT}
FROM_THE_START = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 2}
SECONDS = 120
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def tokenizer():
    return load("demo")[1]


def built(name: str, config: dict, **changes):
    config = dict(config, vocab_size=load("demo")[1].vocab_size, **changes)
    return build(name, config)


def run(model, tokenizer, prompt=PROMPT, **options):
    options = {"predictor": False, "max_tokens": 12, **options}
    return [r.token for r in stream_generate(model, tokenizer, prompt, **options)]


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("start", [0, 4, 5000])
def test_a_sliding_window_is_refused_however_late_it_would_be_quantised(
    tokenizer, name, start
):
    model = built(name, SLIDING[name])
    options = {"kv_bits": 8, "quantized_kv_start": start}
    windows = {"gemma3_text": "2 of its 3 layers", "gpt_oss": "2 of its 3 layers"}
    for call in (
        lambda: run(model, tokenizer, **options),
        lambda: run(model, tokenizer, thinking_budget=3, **options),
        lambda: generate(model, tokenizer, PROMPT, predictor=False, **options),
        lambda: Conversation(model, tokenizer, False, **options),
    ):
        with pytest.raises(ValueError, match="RotatingKVCache") as e:
            call()
        assert windows[name] in str(e.value)
        assert "Leave out --kv-bits (kv_bits in Python)" in str(e.value)
        assert "\n" not in str(e.value)


def test_a_limited_cache_is_refused_at_every_door(tokenizer):
    model = built("qwen3", LLAMA)
    options = {"kv_bits": 8, "max_kv_size": 64}
    for call in (
        lambda: run(model, tokenizer, **options),
        lambda: generate(model, tokenizer, PROMPT, predictor=False, **options),
        lambda: Conversation(model, tokenizer, False, **options),
    ):
        with pytest.raises(ValueError, match="a KV cache of limited size: leave out"):
            call()


def test_a_prompt_cache_of_limited_size_is_refused(tokenizer):
    model = built("qwen3", LLAMA, **WIDE)
    cache = make_prompt_cache(model, max_kv_size=64)
    with pytest.raises(ValueError, match="3 of its 3 layers have a RotatingKVCache"):
        run(model, tokenizer, prompt_cache=cache, **FROM_THE_START)
    assert all(c.empty() for c in cache)


def test_a_batch_is_refused(tokenizer):
    model = built("qwen3", LLAMA)
    with pytest.raises(ValueError, match="cannot quantise the KV cache of a batch"):
        batch_generate(model, tokenizer, [PROMPT], predictor=False, kv_bits=8)
    options = {"predictor": False, "max_tokens": 2}
    assert batch_generate(model, tokenizer, [PROMPT], kv_bits=None, **options)


@pytest.mark.parametrize("name", [*OTHERS, "falcon_h1"])
def test_other_models_generate_as_mlx_lm_does(tokenizer, name):
    model = built(name, {**OTHERS, "falcon_h1": FALCON_H1}[name], **WIDE)
    stock = mlx_lm.stream_generate(
        model, tokenizer, PROMPT, max_tokens=12, **FROM_THE_START
    )
    cache = make_prompt_cache(model)
    said = run(model, tokenizer, prompt_cache=cache, **FROM_THE_START)
    assert said == [r.token for r in stock]
    is_quantised = any(isinstance(c, QuantizedKVCache) for c in cache)
    assert is_quantised == (name in ("qwen3", "qwen3_next"))


def test_a_prompt_cache_is_left_as_it_was_by_the_check(tokenizer):
    model = built("qwen3", LLAMA, **WIDE)
    caches = []
    for check in (False, True):
        cache = make_prompt_cache(model)
        run(model, tokenizer, prompt_cache=cache, max_tokens=3)
        if check:
            with pytest.raises(ValueError, match="groups of 64"):
                run(
                    model,
                    tokenizer,
                    prompt_cache=cache,
                    kv_bits=8,
                    quantized_kv_start=0,
                )
        caches.append(cache)
    for one, other in zip(*caches, strict=True):
        assert type(other) is KVCache
        assert one.offset == other.offset
        assert mx.array_equal(one.state[0], other.state[0])


def test_groups_that_do_not_fit_are_refused_if_it_comes_to_that(tokenizer):
    model = built("qwen3", LLAMA, **WIDE)
    options = {"kv_bits": 4, "quantized_kv_start": 20}
    assert len(run(model, tokenizer, max_tokens=10, **options)) == 10
    for most in (15, -1):
        with pytest.raises(ValueError, match="4 bits in groups of 64: .*quantize") as e:
            run(model, tokenizer, max_tokens=most, **options)
    assert "Try another --kv-group-size (32, 64 or 128)" in str(e.value)
    assert len(run(model, tokenizer, max_tokens=15, kv_group_size=32, **options)) == 15


def test_attention_that_takes_no_quantised_keys_is_refused(tokenizer):
    config = {
        "hidden_dim": 128,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    model = built("afm7", config)
    with pytest.raises(ValueError, match="cannot be quantised to 8 bits"):
        run(model, tokenizer, **FROM_THE_START)
    assert len(run(model, tokenizer)) == 12


def test_a_draft_model_is_checked_too(tokenizer):
    model = built("qwen3", LLAMA, **WIDE)
    drafts = {name: built(name, config, **WIDE) for name, config in SLIDING.items()}
    for draft in drafts.values():
        with pytest.raises(ValueError, match="RotatingKVCache"):
            run(model, tokenizer, draft_model=draft, **FROM_THE_START)
        with pytest.raises(ValueError, match="RotatingKVCache"):
            run(draft, tokenizer, draft_model=model, **FROM_THE_START)
    assert run(model, tokenizer, draft_model=model, **FROM_THE_START)


def test_the_check_computes_nothing(tokenizer):
    model = built("qwen3", LLAMA, **WIDE)
    mx.eval(model.parameters())
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with pytest.raises(ValueError, match="groups of 64"):
        run(model, tokenizer, max_tokens=-1, kv_bits=8)
    # A layer's keys and values would take 131,072 bytes; constants take a few.
    assert mx.get_peak_memory() - before < 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with sliding windows, saved."""
    folder = tmp_path_factory.mktemp("models") / "gemma3"
    return save("gemma3_text", GEMMA3, folder)


def test_generate_refuses_it_in_one_line(folder):
    args = ["generate", "--model", str(folder), "-p", "Hi", "--max-tokens", "4"]
    result = CliRunner().invoke(cli, [*args, "--kv-bits", "8"])
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "RotatingKVCache" in line and "Leave out --kv-bits" in line
    assert CliRunner().invoke(cli, args).exit_code == 0


@pytest.mark.skipif(
    mlx_lm.__version__.startswith("0.31"), reason="its server quantises no KV cache"
)
def test_serve_refuses_it_in_one_line(folder):
    command = [sys.executable, "-m", "mlx_budget", "serve", "--port", "0"]
    options = ["--model", str(folder), "--kv-bits", "8"]
    result = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=SECONDS
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "RotatingKVCache" in line and "Leave out --kv-bits" in line
