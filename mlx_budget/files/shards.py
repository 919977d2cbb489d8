"""A model's weights: safetensors files, one or several, as mlx-lm lays them out.

Knows the names of the files and the index; nothing of what the tensors mean.
"""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from .tensors import write_tensors
from .texts import write_json

INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 << 30
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLES_ONLY = (
    "{} offers its weights only as pickles, which can run code and are never read. Use "
    "a checkpoint in safetensors."
)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights.

    Raises:
        ValueError: If there are none, or the index names files that are not there.
    """
    index = folder / INDEX_FILE
    if index.exists():
        shards = [folder / name for name in sorted(set(read_index(index).values()))]
    else:
        shards = sorted(folder.glob("model*.safetensors"))
    for shard in shards:
        if not shard.exists():
            raise ValueError(
                f"{folder} is incomplete: {INDEX_FILE} names {shard.name}, which is "
                "not there. Download the checkpoint again."
            )
    if not shards:
        if any(p.suffix in PICKLE_SUFFIXES for p in folder.iterdir()):
            raise ValueError(PICKLES_ONLY.format(folder))
        raise ValueError(
            f"{folder} is not a checkpoint: it has no model*.safetensors file. Check "
            "the name."
        )
    return shards


def read_index(file: Path) -> dict[str, str]:
    """The map from tensor name to shard file name of a sharded checkpoint.

    Raises:
        ValueError: If the file is damaged or names files outside its folder.
    """
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        names = dict(weight_map)
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError(
            f"{file} is damaged: it has no weight_map. Download it again."
        ) from None
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{file} names a shard outside its folder: {name!r}.")
    return names


def write_shards(
    folder: Path,
    weights: dict[str, mx.array],
    progress: Callable[[int], object] = lambda _: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes model*.safetensors and their index, as mlx-lm lays them out.

    Args:
        folder (Path): An existing folder.
        weights (dict): Tensors by name; emptied.
        progress (Callable): Called with the bytes of each tensor written.
        max_shard_bytes (int): Size of a shard, unless one tensor is larger.
    """
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, value in weights.items():
        if shards[-1] and size + value.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += value.nbytes
        total += value.nbytes
    weight_map = {}
    for i, names in enumerate(shards, 1):
        many = len(shards) > 1
        file = f"model-{i:05d}-of-{len(shards):05d}" if many else "model"
        weight_map.update(dict.fromkeys(names, f"{file}.safetensors"))
        shard = {name: weights.pop(name) for name in names}
        write_tensors(folder / f"{file}.safetensors", shard, progress)
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_json(folder / INDEX_FILE, index)
