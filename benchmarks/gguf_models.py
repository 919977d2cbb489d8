"""What the scripts that turn a GGUF file into a folder for mlx-lm have in common.

It knows GGUF's metadata and the files of a folder, and nothing of weights.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from tokenizers import Tokenizer

# What a family calls each number of config.json.
NUMBERS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}


class Metadata(dict[str, Any]):
    """GGUF metadata, in which a missing key is an error that names it."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"the GGUF file has no metadata {key!r}.")

    def check(self, supported: dict[str, str]) -> None:
        """Raises a ValueError if it is of another kind of model."""
        for key, expected in supported.items():
            if self[key] != expected:
                raise ValueError(f"{key} is {self[key]!r}, expected {expected!r}.")

    def merges(self) -> list[tuple[str, ...]]:
        """The pairs that byte-pair encoding joins."""
        return [tuple(pair.split(" ")) for pair in self["tokenizer.ggml.merges"]]

    def vocabulary(self) -> dict[str, int]:
        """The id of each token."""
        return {token: i for i, token in enumerate(self["tokenizer.ggml.tokens"])}


def build_config(metadata: Metadata, **own: Any) -> dict[str, Any]:
    """config.json of a model, with what is its family's ``own``."""
    family = metadata["general.architecture"]
    epsilon = metadata[f"{family}.attention.layer_norm_rms_epsilon"]
    return {
        "model_type": family,
        **{name: metadata[f"{family}.{key}"] for name, key in NUMBERS.items()},
        "rms_norm_eps": float(f"{epsilon:.6g}"),  # 1e-05, not its float32 neighbour
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        **own,
    }


def build_tokenizer_config(metadata: Metadata, **own: Any) -> dict[str, Any]:
    """tokenizer_config.json of a model, with what is its family's ``own``."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
        **own,
    }


def write_folder(
    output: Path,
    weights: dict[str, mx.array],
    config: dict[str, Any],
    tokenizer: Tokenizer,
    tokenizer_config: dict[str, Any],
) -> None:
    """Write a folder for mlx-lm, whole or not at all."""
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


def make(output: Path, convert: Callable[[Path], None]) -> None:
    """Run ``convert`` in a temporary folder; an error is one line on stderr."""
    try:
        if output.exists():
            raise ValueError(f"{output} exists already; name a new folder.")
        with tempfile.TemporaryDirectory() as temporary:
            convert(Path(temporary))
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(f"Wrote {output}")
