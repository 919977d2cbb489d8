"""Safetensors files: read with distrust, written one tensor at a time.

Knows the format (https://github.com/huggingface/safetensors) and the types that MLX
reads; nothing of what the tensors mean.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from .atomic import appearing_file

# The package safetensors (0.8) refuses the same files, but names the tensor in few of
# its errors, and changes their words between releases. Headers are therefore read here;
# the tests hold the two to the same verdicts.

MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F32": mx.float32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "C64": mx.complex64,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# MLX reads 8-bit floats as bytes; it has no other type of the format.
_READABLE = {**_DTYPES, "F8_E4M3": mx.uint8, "F8_E8M0": mx.uint8}


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of a tensor in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Names, types and shapes of the tensors of a safetensors file.

    Reads the header only, and checks that the tensors fill the file.

    Raises:
        ValueError: If the file is missing, truncated, or not a safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8).ljust(8, b"\0"))
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(file, "its header is cut short")
            text = f.read(length)
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist: download it again.") from None
    tensors, last = parse_header(file, text)
    if size != 8 + length + last:
        raise _damaged(
            file,
            f"it has {size:,} bytes where its header asks for {8 + length + last:,}",
        )
    return tensors


def parse_header(file: str | Path, text: bytes) -> tuple[dict[str, TensorInfo], int]:
    """What the header of a safetensors file says, and how many bytes follow it.

    Args:
        file (str or Path): What errors call it.
        text (bytes): The header.

    Raises:
        ValueError: If it is not one.
    """
    try:
        entries = json.loads(text.decode())
    except (ValueError, RecursionError):
        raise _damaged(file, "its header is not JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(file, "its header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    if metadata is None:  # as mlx writes it where there is none
        metadata = {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _damaged(file, "its metadata is not a map of texts")
    tensors, ranges = {}, []
    for name, entry in entries.items():
        tensors[name], begin, end = _read_entry(file, name, entry)
        ranges.append((begin, end))
    last = 0
    for begin, end in sorted(ranges):
        if begin != last:
            raise _damaged(file, f"its tensors overlap or leave a gap at byte {last}")
        last = end
    return tensors, last


def read_tensors(file: Path) -> dict[str, mx.array]:
    """The tensors of a sound safetensors file, each read when it is evaluated."""
    return cast(dict[str, mx.array], mx.load(str(file)))


def read_samples(file: Path, size: int) -> dict[str, bytes]:
    """At most so many bytes from the middle of each tensor of a sound file."""
    samples = {}
    with file.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            f.seek(8 + length + (begin + end - min(size, end - begin)) // 2)
            samples[name] = f.read(min(size, end - begin))
    return samples


def named_tensors(tree: dict[str, Any]) -> dict[str, mx.array]:
    """The arrays of a tree, such as a module's parameters, by their dotted names."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def write_tensors(
    file: Path,
    weights: dict[str, mx.array],
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Writes a safetensors file, one tensor at a time.

    Tensors are evaluated as they are written and dropped from ``weights``, so that
    memory stays near the largest of them. The file appears whole or not at all.

    Args:
        file (Path): Where to write.
        weights (dict): Tensors by name; emptied.
        progress (Callable): Called with the bytes of each tensor written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, value in weights.items():
        header[name] = {
            "dtype": _DTYPE_NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with appearing_file(file) as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for name in list(weights):
            value = weights.pop(name)
            nbytes = value.nbytes
            flat = mx.contiguous(value).reshape(-1)
            # NumPy has no bfloat16: bytes are written, whatever the type.
            f.write(np.asarray(flat.view(mx.uint8)).data)
            del value, flat
            mx.clear_cache()  # MLX would keep the buffers of all that it has freed
            progress(nbytes)


def _read_entry(file: str | Path, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """What the header says of a tensor, and where its bytes begin and end."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)
        sound = all(type(n) is int and n >= 0 for n in numbers)
        sound = sound and isinstance(dtype, str)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise _damaged(file, f"tensor {name} is not described in its header")
    if dtype not in _READABLE:
        raise ValueError(
            f"{file}: tensor {name} is of type {dtype}, which MLX cannot read. Use a "
            "checkpoint in float32, float16 or bfloat16."
        )
    if end - begin != prod(shape) * _READABLE[dtype].size:
        raise _damaged(file, f"tensor {name} has a wrong size")
    return TensorInfo(dtype, tuple(shape)), begin, end


def _damaged(file: str | Path, why: str) -> ValueError:
    return ValueError(
        f"{file} is truncated or not a safetensors file: {why}. Download it again."
    )
