"""Small models of many architectures, and what is recorded of their steps."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_budget import demo
from mlx_budget.engine.recorder import HiddenStateRecorder

N, D, V = 3, 32, 50  # layers, model width, vocabulary
LLAMA = dict(
    hidden_size=D,
    intermediate_size=64,
    num_hidden_layers=N,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=V,
    rms_norm_eps=1e-6,
    rope_theta=1000.0,
    head_dim=8,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)
MOE = dict(
    num_experts=4,
    num_experts_per_tok=2,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    moe_intermediate_size=16,
    norm_topk_prob=True,
)
GPT2 = dict(
    n_embd=D,
    n_head=4,
    n_layer=N,
    n_ctx=64,
    n_positions=64,
    layer_norm_epsilon=1e-5,
    vocab_size=V,
)
MAMBA = dict(
    hidden_size=D,
    intermediate_size=64,
    state_size=4,
    num_hidden_layers=N,
    conv_kernel=3,
    use_bias=False,
    use_conv_bias=True,
    time_step_rank=4,
    vocab_size=V,
    tie_word_embeddings=False,
)
GPT_OSS = dict(
    LLAMA,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=24,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)
# Two layers with states, one with attention.
QWEN3_NEXT = dict(
    LLAMA,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    linear_conv_kernel_dim=3,
    num_experts=4,
    num_experts_per_tok=2,
    decoder_sparse_step=1,
    shared_expert_intermediate_size=16,
    mlp_only_layers=[],
    moe_intermediate_size=16,
    partial_rotary_factor=0.5,
    full_attention_interval=3,
)
# States and attention in each layer.
FALCON_H1 = dict(
    LLAMA,
    mamba_d_ssm=32,
    mamba_d_head=8,
    mamba_n_heads=4,
    mamba_d_state=8,
    lm_head_multiplier=1.0,
)
# States, and attention in a window.
RECURRENT_GEMMA = dict(
    LLAMA,
    attention_bias=False,
    conv1d_width=3,
    logits_soft_cap=30.0,
    attention_window_size=24,
    num_key_value_heads=1,
    block_types=["recurrent", "recurrent", "attention"],
)
NEOX = dict(LLAMA, layer_norm_eps=1e-5, rotary_emb_base=1000, rotary_pct=0.25)
PHIXTRAL = dict(num_vocab=V, model_dim=D, num_heads=4, num_layers=N, rotary_dim=4)
# A configuration, and what each model does with the output of its final norm.
MODELS: dict[str, tuple[dict, Callable]] = {
    "llama": (LLAMA, lambda m, h: m.lm_head(h)),
    "qwen2": (LLAMA, lambda m, h: m.lm_head(h)),
    "qwen3": (LLAMA, lambda m, h: m.lm_head(h)),
    "qwen3_moe": (dict(LLAMA, **MOE), lambda m, h: m.lm_head(h)),
    "phi3": (LLAMA, lambda m, h: m.lm_head(h)),
    "gemma3_text": (dict(LLAMA, sliding_window_pattern=2), lambda m, h: m.lm_head(h)),
    "gpt2": (GPT2, lambda m, h: m.model.wte.as_linear(h)),
    "mamba": (MAMBA, lambda m, h: m.lm_head(h)),
    "mistral3": (
        dict(text_config=dict(LLAMA, model_type="llama")),
        lambda m, h: m.language_model.lm_head(h),
    ),
    # The head is a part of the backbone, the final norm a part of the head.
    "gpt_neox": (NEOX, lambda m, h: m.model.embed_out(h)),
    "phixtral": (PHIXTRAL, lambda m, h: m.lm_head.linear(h)),
}


def build(name: str, config: dict | None = None) -> nn.Module:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_lm.models.{name}")
    config = {"model_type": name, **(config or MODELS[name][0])}
    model = module.Model(module.ModelArgs.from_dict(config))
    # Weights of 1 in a norm would hide whether it was applied once or twice.
    for path, weight in tree_flatten(model.parameters()):
        if weight.ndim == 1:
            noise = mx.random.uniform(0.5, 1.5, weight.shape)
            model.load_weights([(path, weight + noise)], strict=False)
    model.eval()
    return model


def save(name: str, config: dict, folder: Path) -> Path:
    """A new folder of a small model, with the built-in model's tokenizer."""
    demo_config = json.loads((demo.FOLDER / "config.json").read_text())
    config = {**config, "model_type": name, "vocab_size": demo_config["vocab_size"]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    build(name, config).save_weights(str(folder / "model.safetensors"))
    for file in demo.FOLDER.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def steps(model: nn.Module, rows: list[list[int]]) -> mx.array:
    """The logits of the last of some single-token steps, one list of tokens a row."""
    cache = make_prompt_cache(model)
    for tokens in zip(*rows, strict=True):
        logits = model(mx.array(tokens)[:, None], cache=cache)
    return logits


def record(model: nn.Module, rows: list[list[int]]) -> tuple[mx.array, mx.array]:
    """The logits and the states of every row, of the last step."""
    recorder = HiddenStateRecorder.acquire(model)
    try:
        logits = steps(model, rows)
        return logits, recorder.last.states(range(len(rows)))
    finally:
        recorder.release()


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def close(a: mx.array, b: mx.array) -> bool:
    """Equal up to float32 rounding in sums taken in another order."""
    return a.shape == b.shape and bool(mx.allclose(a, b, rtol=1e-4, atol=1e-4))
