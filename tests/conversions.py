"""Checkpoints in the reference's format to convert, and the command run on them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
from click.testing import CliRunner
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from mlx_budget import load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.files.tensors import read_header, write_tensors
from mlx_budget.models.reference import is_predictor_tensor

REFERENCE = Path(__file__).parent / "fixtures" / "bg-qwen2-tiny"
ROOT = Path(__file__).parents[1]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CASE = json.loads((REFERENCE / "golden.json").read_text())[1]
PROMPT = mx.array([[5, 6, 7, 8, 9]])
WIDTH, VOCABULARY = 64, 448
COMMON = {
    "hidden_size": WIDTH,
    "vocab_size": VOCABULARY,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
ARCHITECTURES = {
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3, tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_moe": {"model_type": "qwen3_moe", **EXPERTS},
    "llama": {"model_type": "llama"},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 16},
}


def random(shape) -> mx.array:
    return mx.random.normal(shape) * 0.1


def source_model(config: dict):
    """A model with random weights, in float32."""
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    weights = [(k, random(v.shape)) for k, v in tree_flatten(model.parameters())]
    return model.load_weights(weights).eval()


def hub_weights(model) -> dict[str, mx.array]:
    """The weights of a model by their names on the Hub: one tensor for each expert."""
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if "switch_mlp" in name:
            for i, expert in enumerate(value):
                weights[name.replace("switch_mlp", f"experts.{i}")] = expert
        else:
            weights[name] = value
    return weights


def predictor_weights() -> dict[str, mx.array]:
    """A random predictor in the reference's names: P = 64, one layer."""
    p, between = 64, 32
    layer = {"intermediate.dense": (between, p), "output.dense": (p, between)}
    for part in "self.query", "self.key", "self.value", "output.dense":
        layer[f"attention.{part}"] = (p, p)
    shapes = {"encoder.0": (p, WIDTH)}
    shapes |= {f"encoder.1.layer.0.{name}": shape for name, shape in layer.items()}
    weights = {"cls_token": random((1, 1, WIDTH))}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = random(shape)
        weights[f"{name}.bias"] = random(shape[:1])
    for name in "attention.output.LayerNorm", "output.LayerNorm":
        weights[f"encoder.1.layer.0.{name}.weight"] = random((p,)) + 1
        weights[f"encoder.1.layer.0.{name}.bias"] = random((p,))
    for name in "alpha_head", "lam_head":
        weights[f"{name}.weight"] = random((VOCABULARY, p))
    return weights


def write_folder(folder: Path, config: dict, *shards: dict[str, mx.array]) -> Path:
    """A checkpoint of these shards, with the fixture's tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        shutil.copy(REFERENCE / name, folder)
    index = {}
    for i, shard in enumerate(shards, 1):
        many = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else many
        mx.save_safetensors(str(folder / file), shard, {"format": "pt"})
        index.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def deal(weights: dict[str, mx.array], shards: int) -> list[dict[str, mx.array]]:
    """Deals tensors out, so that each shard holds some of all."""
    return [dict(list(weights.items())[i::shards]) for i in range(shards)]


def apart(weights: dict[str, mx.array]) -> list[dict[str, mx.array]]:
    """Two shards: the model, and the predictor."""
    return [
        {k: v for k, v in weights.items() if is_predictor_tensor(k) == own}
        for own in (False, True)
    ]


def fixture_weights() -> dict[str, mx.array]:
    return mx.load(str(REFERENCE / "model.safetensors"))


def fixture_config() -> dict:
    return json.loads((REFERENCE / "config.json").read_text())


def change(folder: Path, **tensors) -> None:
    """Replaces tensors of a checkpoint in one file; None removes one."""
    file = folder / "model.safetensors"
    weights = {**mx.load(str(file)), **tensors}
    mx.eval(weights)
    write_tensors(file, {k: v for k, v in weights.items() if v is not None})


def run(source, out, *options):
    """The command, in process; the fixture's predictor has four heads."""
    names = ["--hf-path", str(source), "--mlx-path", str(out)]
    heads = [] if "--predictor-heads" in options else ["--predictor-heads", "4"]
    arguments = ["convert", *names, *heads, *map(str, options)]
    return CliRunner().invoke(cli, arguments)


def converts(source, out, *options) -> Path:
    result = run(source, out, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return out


def line_of(code: int, stdout: str, stderr: str) -> str:
    """The one line that a command ended with on bad input."""
    assert (code, stdout) == (2, ""), stderr
    (line,) = stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def fails(source, out, *options) -> str:
    """The one line of a conversion that left nothing."""
    result = run(source, out, *options)
    assert not out.parent.exists()
    return line_of(result.exit_code, result.stdout, result.stderr)


def dtypes(file: Path) -> set[str]:
    return {info.dtype for info in read_header(file).values()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def answers(folder: Path, **options) -> list[int]:
    """Ten tokens that a folder generates under a budget."""
    model, tokenizer, predictor = load(str(folder), **options)
    responses = stream_generate(
        model,
        tokenizer,
        CASE["prompt_ids"],
        predictor=predictor,
        thinking_budget=20,
        max_tokens=10,
    )
    return [response.token for response in responses]


# What comes out


def in_child(code: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Runs the command in a process of its own, after some code."""
    code += (
        "\nimport sys\nfrom mlx_budget.cli import cli\ncli(['convert', *sys.argv[1:]])"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
