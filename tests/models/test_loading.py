"""Loading a model with its predictor, and all that can be wrong with them."""

import inspect
import json
import shutil

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from conversions import REFERENCE
from counting import counting
from mlx_budget import demo, load, stream_generate


@pytest.fixture
def copy(converted, tmp_path):
    """A copy of the converted fixture, to be spoilt."""
    return shutil.copytree(converted, tmp_path / "model")


@pytest.fixture
def apart(copy, tmp_path):
    """Model and predictor in folders of their own."""
    folder = tmp_path / "predictor"
    folder.mkdir()
    for name in ("predictor.safetensors", "predictor_config.json"):
        (copy / name).rename(folder / name)
    return copy, folder


def change_config(folder, **changes) -> None:
    file = folder / "predictor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_stock_mlx_lm_opens_the_converted_folder(converted, loaded):
    model, _ = mlx_lm.load(str(converted))
    ids = mx.array([[5, 6, 7]])
    assert mx.array_equal(model(ids), loaded[0](ids))


def test_the_predictor_beside_the_model_is_found(converted, loaded):
    found = dict(tree_flatten(loaded[2].parameters()))
    saved = mx.load(str(converted / "predictor.safetensors"))
    assert found.keys() == saved.keys()
    assert all(mx.array_equal(found[name], saved[name]) for name in saved)


def test_a_predictor_of_its_own_is_attached(apart, loaded, golden):
    model, predictor = apart
    case = golden[0][1]
    parts = load(str(model), str(predictor))
    responses = stream_generate(
        *parts[:2],
        case["prompt_ids"],
        predictor=parts[2],
        thinking_budget=case["budget"],
        hard_stop=None,
        max_tokens=case["max_new"],
    )
    assert [r.token for r in responses] == case["guided_tokens"]


def test_no_predictor_is_none_and_false_stays_false(apart, converted):
    assert load(str(apart[0]))[2] is None
    assert load(str(converted), predictor=False)[2] is False


def test_a_predictor_object_is_checked_and_taken(apart, loaded):
    assert load(str(apart[0]), loaded[2])[2] is loaded[2]


def test_adapters_are_applied_and_guided(converted, loaded, golden, tmp_path):
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, _, _ = load(str(converted))
    settings = {"rank": 2, "scale": 10.0, "dropout": 0.0}
    linear_to_lora_layers(model, 4, settings)
    mx.random.seed(0)
    weights = {
        k: mx.random.normal(v.shape) * 0.3
        for k, v in mlx_lm.tuner.trainer.tree_flatten(model.trainable_parameters())
        if "lora" in k
    }
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(
            {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": settings}
        )
    )
    prompt = golden[0][1]["prompt_ids"]
    adapted = load(str(converted), adapter_path=str(tmp_path))

    def tokens(model, tokenizer, predictor) -> list[int]:
        options = {"predictor": predictor, "thinking_budget": 5, "max_tokens": 40}
        return [r.token for r in stream_generate(model, tokenizer, prompt, **options)]

    encoded = []
    guided = tokens(*adapted[:2], counting(adapted[2], encoded.append))
    assert guided != tokens(*loaded)
    assert encoded
    assert guided != tokens(*adapted[:2], False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_width": 32}, "expects hidden states of width 32, and this model has"),
        ({"model_layers": 5}, "expects a number of layers of 5, and this model has 4"),
    ],
)
def test_a_predictor_for_another_model_is_refused(copy, changes, message):
    change_config(copy, **changes)
    if "model_width" in changes:
        weights = mx.load(str(copy / "predictor.safetensors"))
        weights["cls"] = weights["cls"][:32]
        weights["projection.weight"] = weights["projection.weight"][:, :32]
        mx.save_safetensors(str(copy / "predictor.safetensors"), weights)
    with pytest.raises(ValueError, match=f"another model.*{message}"):
        load(str(copy))


def test_a_predictor_for_another_vocabulary_is_refused(copy):
    change_config(copy, vocab_size=400)
    weights = mx.load(str(copy / "predictor.safetensors"))
    for name in ("concentration_head.weight", "rate_head.weight"):
        weights[name] = weights[name][:400]
    mx.save_safetensors(str(copy / "predictor.safetensors"), weights)
    with pytest.raises(ValueError, match="a vocabulary of 400, and this model has 448"):
        load(str(copy))


def test_an_unconverted_checkpoint_says_what_to_do():
    with pytest.raises(ValueError, match="not converted yet: run `mlx-budget convert"):
        load(str(REFERENCE))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "config.json").unlink(), "no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "not valid JSON"),
        (lambda p: (p / "config.json").write_text("{}"), "names no model_type"),
        (
            lambda p: (p / "config.json").write_text('{"model_type": "qwen2"}'),
            "cannot be loaded .TypeError",
        ),
        (
            lambda p: (p / "config.json").write_text('{"model_type": "abacus"}'),
            "abacus not supported",
        ),
        (lambda p: (p / "tokenizer.json").unlink(), "cannot be loaded"),
        (
            lambda p: (p / "model.safetensors").unlink(),
            "is incomplete|not a checkpoint",
        ),
        (
            lambda p: (p / "model.safetensors").write_bytes(b"\x09" * 400),
            "not a safetensors file",
        ),
        (
            lambda p: (p / "predictor.safetensors").write_bytes(
                (p / "predictor.safetensors").read_bytes()[:-9]
            ),
            "truncated",
        ),
        (lambda p: (p / "predictor.safetensors").unlink(), "predictor.safetensors"),
        (lambda p: (p / "predictor_config.json").unlink(), "predictor_config.json"),
        (lambda p: change_config(p, colour="red"), "unknown key 'colour'"),
        (lambda p: change_config(p, format_version=2), "upgrade with"),
        (lambda p: change_config(p, heads=5), "5 attention heads do not divide"),
    ],
)
def test_spoilt_folders_are_refused_in_one_line(copy, spoil, message):
    spoil(copy)
    with pytest.raises(ValueError, match=message) as e:
        load(str(copy))
    assert "\n" not in str(e.value)


def test_missing_folders_are_named(converted):
    with pytest.raises(ValueError, match=r"There is no folder \./nope"):
        load("./nope")
    with pytest.raises(ValueError, match=r"no adapter folder \./nope"):
        load(str(converted), adapter_path="./nope")
    with pytest.raises(ValueError, match="./nope"):
        load(str(converted), "./nope")


def test_settings_of_a_cache_do_not_decide_what_is_trusted(converted, monkeypatch):
    seen = {}
    original = mlx_lm.load

    def spy(*args, tokenizer_config, **kwargs):
        seen.update(tokenizer_config)
        return original(*args, tokenizer_config=tokenizer_config, **kwargs)

    spy.__signature__ = inspect.signature(original)
    monkeypatch.setattr(mlx_lm, "load", spy)
    load(str(converted), tokenizer_config={"trust_remote_code": True})
    assert seen["trust_remote_code"] is False


def test_code_in_a_folder_runs_only_when_trusted(copy, tmp_path):
    mark = tmp_path / "ran"
    (copy / "custom.py").write_text(
        "from mlx_lm.models.qwen2 import Model, ModelArgs\n"
        f"open({str(mark)!r}, 'w').close()\n"
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_file": "custom.py"}))
    with pytest.raises(ValueError, match="trust"):
        load(str(copy))
    assert not mark.exists()
    load(str(copy), trust_remote_code=True)
    assert mark.exists()


def test_the_built_in_model_has_no_revisions():
    with pytest.raises(ValueError, match="names on the Hub; demo is built in"):
        load("demo", revision="main")


def test_the_built_in_model_has_the_weights_of_its_file():
    """However they lie in memory."""
    stored = dequantize_model(mlx_lm.load(str(demo.FOLDER))[0])
    found = dict(tree_flatten(load("demo")[0].parameters()))
    expected = dict(tree_flatten(stored.parameters()))
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    "config, message",
    [("{", "not valid JSON"), ("[]", "JSON object"), ("{}", "no adapters.safetensors")],
)
def test_spoilt_adapters_are_named(converted, tmp_path, config, message):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        load(str(converted), adapter_path=str(tmp_path))
