"""Safetensors files and folders: read with distrust, written whole or not at all."""

import errno
import json
import os
import signal
import struct
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_budget.files import tensors as checkpoint
from mlx_budget.files.tensors import TensorInfo, appearing_folder, read_header

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
    checkpoint.write(file, dict(weights))
    loaded = mx.load(str(file))
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].shape == value.shape
        assert mx.array_equal(loaded[name], value)
    header = read_header(file)
    assert header["scalar"] == TensorInfo("F32", ())
    assert {k: info.shape for k, info in header.items()} == {
        k: value.shape for k, value in weights.items()
    }


def test_writing_empties_the_dict_and_tells_its_progress(tmp_path):
    weights = {"a": mx.zeros((2, 3)), "b": mx.zeros((5,), mx.bfloat16)}
    written = []
    checkpoint.write(tmp_path / "w.safetensors", weights, written.append)
    assert weights == {}
    assert written == [24, 10]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    def stop(nbytes):
        raise KeyboardInterrupt

    file = tmp_path / "w.safetensors"
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(file, {"a": mx.zeros(3)}, stop)
    assert list(tmp_path.iterdir()) == []
    checkpoint.write_text(file, "old")
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(file, {"a": mx.zeros(3)}, stop)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [(file.name, "old")]


def test_shards_are_split_and_indexed_as_in_mlx_lm(tmp_path):
    weights = {name: mx.full((10,), i) for i, name in enumerate("abcde")}
    checkpoint.write_shards(tmp_path, dict(weights), max_shard_bytes=80)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in checkpoint.find_shards(tmp_path)] == names
    index = checkpoint.read_index(tmp_path / checkpoint.INDEX_FILE)
    assert index == dict(zip("abcde", [names[i] for i in (0, 0, 1, 1, 2)], strict=True))
    for name, file in index.items():
        assert mx.array_equal(mx.load(str(tmp_path / file))[name], weights[name])


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    weights = {name: mx.zeros(10) for name in "abc"}
    checkpoint.write_shards(tmp_path, weights, max_shard_bytes=1)
    assert len(checkpoint.find_shards(tmp_path)) == 3


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
        (b"[" * 100_000, b"", "its header is not JSON"),
        (b'{"a": %s}' % (b"9" * 5000), b"", "its header is not JSON"),
        (b"[]", b"", "its header is not a JSON object"),
        (b"null", b"", "its header is not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", "its metadata is not a map of texts"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it has no weight_map"),
        ("[]", "it has no weight_map"),
        ('{"weight_map": 5}', "it has no weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": 5}}', "outside its folder"),
    ],
)
def test_a_bad_index_is_one_line(tmp_path, text, message):
    (tmp_path / checkpoint.INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        checkpoint.find_shards(tmp_path)


def test_a_shard_that_the_index_names_must_be_there(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / checkpoint.INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names model-1.safetensors, which is not"):
        checkpoint.find_shards(tmp_path)


def test_a_folder_without_weights_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="has no model.*safetensors file"):
        checkpoint.find_shards(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="only as pickles"):
        checkpoint.find_shards(tmp_path)


def test_a_folder_appears_when_its_block_has_ended(tmp_path):
    path = tmp_path / "new" / "deep" / "out"
    with appearing_folder(path) as folder:
        (folder / "file").write_text("x")
        assert not path.exists()
    assert [f.name for f in path.parent.iterdir()] == ["out"]
    assert (path / "file").read_text() == "x"
    (path.parent / "other").mkdir()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_whose_block_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        with appearing_folder(tmp_path / "new" / "deep" / "out") as folder:
            (folder / "file").touch()
            raise error
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_beside_it_is_left_alone(tmp_path):
    others = tmp_path / "new" / "others"
    with pytest.raises(ValueError, match="my own"):
        with appearing_folder(tmp_path / "new" / "out"):
            others.mkdir()
            raise ValueError("my own")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", others]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_path_is_never_touched(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="out exists already.*--mlx-path"):
        with appearing_folder(path):
            pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_made_in_the_meantime_wins(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ValueError, match="Another program has made"):
        with appearing_folder(path) as folder:
            (folder / "ours").touch()
            path.mkdir()
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, number):
    with pytest.raises(ValueError, match="out could not be written.*free some space"):
        with appearing_folder(tmp_path / "out") as folder:
            (folder / "file").touch()
            raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_keep_their_names(tmp_path):
    with pytest.raises(PermissionError):
        with appearing_folder(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied", "/source")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "out[1]"
    killed = f"""
import os, signal
from pathlib import Path
from mlx_budget.files.tensors import appearing_folder
with appearing_folder(Path({str(path)!r})) as folder:
    (folder / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", killed], check=False)
    assert run.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out[1].") and left.name.endswith(".incomplete")
    with appearing_folder(path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_still_at_work_keeps_its_folder(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(ValueError, match="Another program"):
        with appearing_folder(path) as first:
            with appearing_folder(path) as second:
                assert first.exists() and second.exists() and first != second
    assert list(tmp_path.iterdir()) == [path]
