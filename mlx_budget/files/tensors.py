"""Reads and writes the files of a checkpoint: safetensors, JSON, whole folders.

Knows the safetensors format (https://github.com/huggingface/safetensors) and nothing of
what the tensors mean. Weights are only ever read from safetensors.
"""

import errno
import fcntl
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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

_UNFINISHED = ".incomplete"
_MAX_HEADER_BYTES = 100_000_000
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise _damaged(file, "its header is cut short")
            text = f.read(length)
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist: download it again.") from None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(file, "its header is not JSON") from None
    if not isinstance(entries, dict):
        raise _damaged(file, "its header is not a JSON object")
    # mlx writes null where there is none.
    metadata = entries.pop("__metadata__", None) or {}
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
    if size != 8 + length + last:
        raise _damaged(
            file,
            f"it has {size:,} bytes where its header asks for {8 + length + last:,}",
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
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file} is damaged: it has no weight_map. Download it again."
        ) from None
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{file} names a shard outside its folder: {name!r}.")
    return names


def read_json(file: Path, missing: str) -> object:
    """What a JSON file holds.

    Args:
        file (Path): The file.
        missing (str): What to say if it is not there.

    Raises:
        ValueError: With ``missing``, or if it is not valid JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(missing) from None
    except ValueError as e:
        raise ValueError(f"{file} is not valid JSON: {e}.") from None


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
            mx.clear_cache()  # MLX would keep the buffers of all that it has freed
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


def remove_unfinished(folder: Path) -> None:
    """Removes the files that programs were killed at, where none is at work now."""
    for file in folder.glob(f".*{_UNFINISHED}"):
        file.unlink()


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which appears at ``path`` only once the block has ended well.

    What a killed run left behind is removed by the next one for the same path.

    Raises:
        ValueError: If ``path`` exists already, or the disk is full.
    """
    if os.path.lexists(path):
        raise ValueError(
            f"The output folder {path} exists already: choose another with --mlx-path, "
            "or remove it first."
        )
    missing = [parent for parent in path.parents if not parent.exists()]
    hidden = f".{path.name}.", _UNFINISHED
    try:
        with full_disk_in_one_line(path, "or choose another disk with --mlx-path"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked_folder(path.parent, *hidden) as partial:
                yield partial
                if os.path.lexists(path):
                    raise ValueError(f"Another program has made {path} meanwhile.")
                partial.rename(path)
    finally:
        for parent in missing:
            with suppress(OSError):  # it holds the folder, or what others have made
                parent.rmdir()


@contextmanager
def full_disk_in_one_line(path: Path, advice: str) -> Iterator[None]:
    """Turns the error of a full disk into a ValueError with ``advice``."""
    try:
        yield
    except OSError as e:
        if e.errno not in _DISK_FULL:
            raise
        raise ValueError(
            f"{path} could not be written ({e.strerror}): free some space, {advice}."
        ) from None


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keeps a folder for one program alone, until it ends.

    Raises:
        ValueError: If another program has it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder))
        except BlockingIOError:
            raise ValueError(f"Another program is at work in {folder}.") from None
        except OSError:
            pass  # not every file system has locks
        yield


@contextmanager
def _locked_folder(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """A new folder that is removed in the end, by the next run if this one is killed.

    Process ids come again, locks end with their process.
    """
    for left in parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith(suffix):
            with suppress(OSError), _lock(left):
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(suffix, prefix, parent))
    try:
        folder.chmod(0o777 & ~_umask())
        with ExitStack() as stack:
            with suppress(OSError):  # not every file system has locks
                stack.enter_context(_lock(folder))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _appearing_whole(file: Path):
    with tempfile.NamedTemporaryFile(
        dir=file.parent, prefix=f".{file.name}.", suffix=_UNFINISHED, delete=False
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


def _read_entry(file: Path, name: str, entry: dict) -> tuple[TensorInfo, int, int]:
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


def _damaged(file: Path, why: str) -> ValueError:
    return ValueError(
        f"{file} is truncated or not a safetensors file: {why}. Download it again."
    )
