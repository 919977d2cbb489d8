"""A model's weights in one or several files, as mlx-lm lays them out."""

import json

import mlx.core as mx
import pytest

from mlx_budget.files.shards import INDEX_FILE, find_shards, read_index, write_shards


def test_shards_are_split_and_indexed_as_in_mlx_lm(tmp_path):
    weights = {name: mx.full((10,), i) for i, name in enumerate("abcde")}
    write_shards(tmp_path, dict(weights), max_shard_bytes=80)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in find_shards(tmp_path)] == names
    index = read_index(tmp_path / INDEX_FILE)
    assert index == dict(zip("abcde", [names[i] for i in (0, 0, 1, 1, 2)], strict=True))
    for name, file in index.items():
        assert mx.array_equal(mx.load(str(tmp_path / file))[name], weights[name])


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    weights = {name: mx.zeros(10) for name in "abc"}
    write_shards(tmp_path, weights, max_shard_bytes=1)
    assert len(find_shards(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it has no weight_map"),
        ("[]", "it has no weight_map"),
        ("[" * 100_000, "it has no weight_map"),
        ('{"weight_map": 5}', "it has no weight_map"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "/x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": 5}}', "outside its folder"),
    ],
)
def test_a_bad_index_is_one_line(tmp_path, text, message):
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        find_shards(tmp_path)


def test_a_shard_that_the_index_names_must_be_there(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names model-1.safetensors, which is not"):
        find_shards(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no model.*safetensors file"):
        find_shards(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="only as pickles"):
        find_shards(tmp_path)
