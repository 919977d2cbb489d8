"""Reads and writes safetensors files: headers, shards, whole folders.

Knows the file format (https://github.com/huggingface/safetensors) and nothing of what
the tensors mean. Weights are only ever read from safetensors.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx

INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 << 30
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLES_ONLY = (
    "{} offers its weights only as pickles, which can run code and are never read. Use "
    "a checkpoint in safetensors."
)

_MAX_HEADER_BYTES = 100_000_000
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
_DTYPE_NAMES = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
}


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors of a safetensors file.

    Reads the header only, and checks that the file is as long as the header says.

    Raises:
        ValueError: If the file is missing, truncated, or not a safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8).ljust(8, b"\0"))
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise _damaged(file, "its header is cut short")
            entries = json.loads(f.read(length))
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise _damaged(file, "its header is not JSON") from None
    try:
        entries.pop("__metadata__", None)
        tensors, end = {}, 0
        for name, entry in entries.items():
            begin, stop = entry["data_offsets"]
            info = TensorInfo(entry["dtype"], tuple(entry["shape"]))
            if (stop - begin) * 8 != prod(info.shape) * _BITS[info.dtype]:
                raise _damaged(file, f"tensor {name} has a wrong size")
            tensors[name] = info
            end = max(end, stop)
    except (AttributeError, KeyError, TypeError) as e:
        raise _damaged(file, f"its header cannot be read ({e!r})") from None
    if size != 8 + length + end:
        raise _damaged(
            file,
            f"it has {size:,} bytes where its header asks for {8 + length + end:,}",
        )
    return tensors


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
            f"{folder} is not a checkpoint: it has no model*.safetensors file."
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
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged: it has no weight_map.") from None
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{file} names a shard outside its folder: {name!r}.")
    return names


def write(
    file: Path,
    weights: dict[str, mx.array],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes a safetensors file, one tensor at a time.

    Tensors are evaluated as they are written and dropped from ``weights``, so that
    memory stays near the largest of them. The file appears whole or not at all.

    Args:
        file (Path): Where to write.
        weights (dict): Tensors by name; emptied.
        progress (Callable): Called with the bytes of each tensor written.
    """
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, value in weights.items():
        header[name] = {
            "dtype": _DTYPE_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with _appearing_whole(file) as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for name in list(weights):
            value = weights.pop(name)
            nbytes = value.nbytes
            flat = mx.contiguous(value).reshape(-1)
            # NumPy has no bfloat16: bytes are written, whatever the type.
            f.write(memoryview(flat.view(mx.uint8)))
            del value, flat
            progress(nbytes)


def write_text(file: Path, text: str) -> None:
    """Writes a small text file, which appears whole or not at all."""
    with _appearing_whole(file) as f:
        f.write(text.encode())


def write_shards(
    folder: Path,
    weights: dict[str, mx.array],
    progress: Callable[[int], None] = lambda _: None,
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
        write(folder / f"{file}.safetensors", shard, progress)
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at ``path`` only once the block has ended well.

    What a killed run left behind is removed by the next one for the same path.

    Raises:
        ValueError: If ``path`` exists already.
    """
    if path.exists():
        raise ValueError(
            f"The output folder {path} exists already: choose another with --mlx-path, "
            "or remove it first."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{path.name}.", ".incomplete"
    for left in path.parent.glob(f"{prefix}*{suffix}"):
        owner = left.name[len(prefix) : -len(suffix)]
        if owner.isdigit() and not _is_running(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    partial = path.parent / f"{prefix}{os.getpid()}{suffix}"
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            raise ValueError(f"{path} was made by another program in the meantime.")
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _appearing_whole(file: Path):
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=f".{file.name}.", delete=False
    ) as f:
        try:
            yield f
            f.flush()
            os.fchmod(f.fileno(), 0o666 & ~_umask())
            os.replace(f.name, file)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _damaged(file: Path, why: str) -> ValueError:
    return ValueError(
        f"{file} is truncated or not a safetensors file: {why}. Download it again."
    )
