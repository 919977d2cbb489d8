"""Safetensors files: read with distrust, written whole or not at all."""

import json
import random
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from mlx_budget.files.tensors import TensorInfo, read_header, write_tensors
from mlx_budget.files.texts import write_text

TYPES = [
    *(mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.float16, mx.bfloat16),
    *(mx.uint32, mx.int32, mx.float32, mx.uint64, mx.int64, mx.complex64),
]


def file_of(folder, header, data=b""):
    """A file with this header, as JSON or as bytes, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(begin, end, shape=(4,), dtype="U8"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_what_is_written_is_read_by_mlx(tmp_path):
    weights = {str(t): mx.arange(6).reshape(2, 3).astype(t) for t in TYPES}
    weights |= {
        "scalar": mx.array(1.5),
        "empty": mx.zeros((0, 3)),
        "transposed": mx.arange(6).reshape(2, 3).T,
    }
    file = tmp_path / "w.safetensors"
    write_tensors(file, dict(weights))
    loaded = mx.load(str(file))
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].shape == value.shape
        assert mx.array_equal(loaded[name], value)
    with safe_open(file, "numpy") as f:
        assert sorted(f.keys()) == sorted(weights)
        for name in weights.keys() - {str(mx.bfloat16)}:
            assert np.array_equal(f.get_tensor(name), np.array(weights[name]))
    header = read_header(file)
    assert header["scalar"] == TensorInfo("F32", ())
    assert {k: info.shape for k, info in header.items()} == {
        k: value.shape for k, value in weights.items()
    }


def test_writing_empties_the_dict_and_tells_its_progress(tmp_path):
    weights = {"a": mx.zeros((2, 3)), "b": mx.zeros((5,), mx.bfloat16)}
    written = []
    write_tensors(tmp_path / "w.safetensors", weights, written.append)
    assert weights == {}
    assert written == [24, 10]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    def stop(nbytes):
        raise KeyboardInterrupt

    file = tmp_path / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        write_tensors(file, {"a": mx.zeros(3)}, stop)
    assert list(tmp_path.iterdir()) == []
    write_text(file, "old")
    with pytest.raises(KeyboardInterrupt):
        write_tensors(file, {"a": mx.zeros(3)}, stop)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [(file.name, "old")]


def test_tensors_without_elements_are_read(tmp_path):
    header = {"a": entry(0, 4), "b": entry(4, 4, (0, 3)), "c": entry(4, 8)}
    assert list(read_header(file_of(tmp_path, header, b"12345678"))) == ["a", "b", "c"]
    assert read_header(file_of(tmp_path, {})) == {}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 4)}, b"123", "bytes where its header asks for"),
        ({"a": entry(0, 4)}, b"12345", "bytes where its header asks for"),
        (b"{", b"", "its header is not JSON"),
        (b"\xff\xfe\xfd", b"", "its header is not JSON"),
        ("{}".encode("utf-16"), b"", "its header is not JSON"),
        (b"\xef\xbb\xbf{}", b"", "its header is not JSON"),
        (b"[" * 100_000, b"", "its header is not JSON"),
        (b'{"a": %s}' % (b"9" * 5000), b"", "its header is not JSON"),
        (b"[]", b"", "its header is not a JSON object"),
        (b"null", b"", "its header is not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", "its metadata is not a map of texts"),
        ({"__metadata__": []}, b"", "its metadata is not a map of texts"),
        ({"a": 5}, b"", "tensor a is not described"),
        ({"a": {"dtype": "U8", "shape": [4]}}, b"1234", "tensor a is not described"),
        ({"a": entry(0, 4, ["4"])}, b"1234", "tensor a is not described"),
        ({"a": entry(0, 4, [True, 4])}, b"1234", "tensor a is not described"),
        ({"a": entry(0, 4, [-1, -4])}, b"1234", "tensor a is not described"),
        ({"a": entry(0, 4.0)}, b"1234", "tensor a is not described"),
        ({"a": entry(-4, 0)}, b"", "tensor a is not described"),
        ({"a": entry(0, 4, dtype=[])}, b"1234", "tensor a is not described"),
        (
            {"a": {**entry(0, 4), "data_offsets": [0, 2, 4]}},
            b"1234",
            "tensor a is not described",
        ),
        ({"a": entry(0, 3)}, b"123", "tensor a has a wrong size"),
        ({"a": entry(4, 0, [0])}, b"1234", "tensor a has a wrong size"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"1234", "overlap or leave a gap"),
        ({"a": entry(0, 4), "b": entry(6, 10)}, b"1234567890", "overlap or leave"),
        ({"a": entry(2, 6)}, b"123456", "overlap or leave a gap at byte 0"),
    ],
)
def test_a_damaged_header_is_one_line(tmp_path, header, data, message):
    file = file_of(tmp_path, header, data)
    with pytest.raises(ValueError, match=message) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file} is truncated or not a safetensors")
    assert str(caught.value).endswith(" Download it again.")
    assert "\n" not in str(caught.value)
    with pytest.raises(SafetensorError):
        safe_open(file, "numpy")


def verdict_of_the_library(file: Path) -> dict[str, TensorInfo] | None:
    """What the package safetensors finds in a file, or None if it refuses it."""
    try:
        with safe_open(file, "numpy") as f:
            entries = {name: f.get_slice(name) for name in f.keys()}
    except SafetensorError:
        return None
    return {
        name: TensorInfo(entry.get_dtype(), tuple(entry.get_shape()))
        for name, entry in entries.items()
    }


def test_a_changed_header_gets_the_verdict_of_the_library(tmp_path):
    draw, file = random.Random(0), tmp_path / "w.safetensors"
    weights = {"a.b": mx.zeros((2, 3)), "c": mx.array(True), "d": mx.zeros(0, mx.int8)}
    mx.save_safetensors(str(file), weights, {"x": "y"})
    whole = file.read_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    found = set()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2])):
            data[draw.randrange(header_end)] = draw.choice(b'{}[]":,0123456789.etU\\\0')
        with file.open("r+b") as f:  # faster than a new file
            f.write(data)
        try:
            verdict = read_header(file)
        except ValueError:
            verdict = None
        assert verdict == verdict_of_the_library(file), bytes(data)
        found.add(verdict is None)
    assert found == {True, False}


@pytest.mark.parametrize("nbytes", [0, 1, 7, 8, 12])
def test_a_file_cut_short_is_damaged(tmp_path, nbytes):
    file = file_of(tmp_path, {"a": entry(0, 4)}, b"1234")
    file.write_bytes(file.read_bytes()[:nbytes])
    with pytest.raises(ValueError, match="truncated"):
        read_header(file)


@pytest.mark.parametrize("dtype", ["F64", "F4", "F8_E5M2"])
def test_a_type_that_mlx_cannot_read_is_named(tmp_path, dtype):
    file = file_of(tmp_path, {"a": entry(0, 4, dtype=dtype)}, b"1234")
    with pytest.raises(ValueError, match=f"tensor a is of type {dtype}"):
        read_header(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.safetensors does not exist"):
        read_header(tmp_path / "none.safetensors")
