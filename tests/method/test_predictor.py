"""The predictor against the golden numbers, plain NumPy, and damaged files."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scipy import special

from mlx_budget.method.guidance import GuidanceThresholds, guided_logprobs, log_weights
from mlx_budget.method.predictor import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Predictor,
    is_predictor_folder,
)
from mlx_budget.method.predictor_config import (
    FORMAT_VERSION,
    PredictorConfig,
)
from tiny_predictor import OURS, TINY, hidden_states, make_tiny, tensors

Loaded = tuple[nn.Module, TokenizerWrapper, Predictor]
Steps = dict[str, np.ndarray]


def assert_same(one: Predictor, other: Predictor) -> None:
    """The same configuration, tensors to the bit, and predictions."""
    assert one.config == other.config
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert mx.array_equal(value, theirs[name]), name
    h = hidden_states()
    for a, b in zip(one(h), other(h), strict=True):
        assert mx.array_equal(a, b)


def numpy_predictor(
    weights: dict[str, np.ndarray], config: PredictorConfig, hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Concentration and rate for one row of hidden states (N + 1, D), in float64."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(
            (centred**2).mean(axis=-1, keepdims=True) + config.layer_norm_eps
        )
        return y * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(x: np.ndarray, layer: str) -> np.ndarray:
        parts = [linear(x, f"{layer}.{part}") for part in ("query", "key", "value")]
        outputs = []
        for q, k, v in zip(
            *(np.split(p, config.heads, -1) for p in parts), strict=True
        ):
            scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            outputs.append(scores / scores.sum(axis=-1, keepdims=True) @ v)
        return linear(np.concatenate(outputs, axis=-1), f"{layer}.attention_output")

    def feed_forward(x: np.ndarray, layer: str) -> np.ndarray:
        up = linear(x, f"{layer}.up")
        gelu = up * (1 + special.erf(up / np.sqrt(2))) / 2
        return linear(gelu, f"{layer}.down")

    if config.standardize_inputs:
        hidden = (hidden - weights["input_mean"]) * weights["input_scale"]
    x = linear(np.vstack([weights["cls"], hidden]), "projection")
    for i in range(sum(name.endswith("up.weight") for name in weights)):
        layer = f"layers.{i}"
        norms = f"{layer}.attention_norm", f"{layer}.output_norm"
        if config.norm == "pre":
            x = x + attend(norm(x, norms[0]), layer)
            x = x + feed_forward(norm(x, norms[1]), layer)
        else:
            x = norm(x + attend(x, layer), norms[0])
            x = norm(x + feed_forward(x, layer), norms[1])
    if config.norm == "pre":
        x = norm(x, "final_norm")
    heads_out = (linear(x[0], f"{name}_head") for name in ("concentration", "rate"))
    return tuple(np.log1p(np.exp(y)) for y in heads_out)


@pytest.mark.parametrize(
    "config",
    [TINY, OURS, replace(OURS, standardize_inputs=False), replace(OURS, norm="post")],
)
def test_predictions_equal_a_numpy_forward_pass(config: PredictorConfig) -> None:
    predictor, h = make_tiny(config=config), hidden_states(3)
    weights = {k: np.array(v, np.float64) for k, v in tensors(predictor).items()}
    found = np.stack([np.array(v) for v in predictor(h)], axis=1)
    assert found.shape == (3, 2, TINY.vocab_size)
    for row, ours in zip(np.array(h, np.float64), found, strict=True):
        want = numpy_predictor(weights, config, row)
        assert ours == pytest.approx(np.array(want), rel=1e-4)


def test_golden_predictions_are_reproduced(loaded: Loaded, golden_steps: Steps) -> None:
    concentration, rate = loaded[2](mx.array(golden_steps["hidden"]))
    assert np.array(concentration) == pytest.approx(
        golden_steps["alpha"], rel=1e-3, abs=0
    )
    assert np.array(rate) == pytest.approx(golden_steps["lam"], rel=1e-3, abs=0)


def test_rows_of_a_batch_equal_single_rows(loaded: Loaded, golden_steps: Steps) -> None:
    predictor, hidden = loaded[2], mx.array(golden_steps["hidden"][::9])
    together = predictor(hidden)
    for i in range(len(hidden)):
        alone = predictor(hidden[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            assert b.shape == (1, 448)
            # What float32 sums in another order may differ by, as in the golden test.
            assert np.array(a[i]) == pytest.approx(np.array(b[0]), rel=1e-3, abs=0)


@pytest.mark.parametrize("weights", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_goes_in_and_float32_comes_out(
    dtype: mx.Dtype, weights: mx.Dtype
) -> None:
    predictor, h = make_tiny(weights), hidden_states().astype(dtype)
    found = predictor(h)
    # Rounding is all that half precision of the input may change.
    same = predictor(h.astype(mx.float32))
    exact = make_tiny()(h.astype(mx.float32))
    for ours, wide, want in zip(found, same, exact, strict=True):
        assert ours.dtype == mx.float32
        assert mx.array_equal(ours, wide)
        # Some ten roundings in a row, each of half a unit in the last place.
        unit = mx.finfo(weights).eps
        assert mx.mean(mx.abs(ours - want) / want).item() < 5 * unit


def test_the_published_sizes_are_the_defaults() -> None:
    config = PredictorConfig("base", model_width=3584, model_layers=28, vocab_size=9)
    assert (config.width, config.layers, config.heads) == (768, 12, 12)
    assert (config.intermediate, config.layer_norm_eps) == (3072, 1e-12)
    assert config.thresholds == GuidanceThresholds()
    assert config.quantization is None


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_saved_predictor_loads_exactly(
    tmp_path: Path, bits: int | None, dtype: mx.Dtype
) -> None:
    predictor = make_tiny(dtype)
    if bits is not None:
        predictor = predictor.quantize(bits, group_size=32)
        assert predictor.config.quantization == {"bits": bits, "group_size": 32}
    predictor.save(tmp_path)
    assert_same(Predictor.load(tmp_path), predictor)
    assert sorted(p.name for p in tmp_path.iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]


def test_the_config_file_holds_every_setting(tmp_path: Path) -> None:
    make_tiny().save(tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / CONFIG_FILE).read_text()
    assert json.loads(text) == {
        "base_model": "tiny",
        "model_width": 64,
        "model_layers": 3,
        "vocab_size": 11,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "intermediate": 64,
        "layer_norm_eps": 0.1,
        "norm": "post",
        "standardize_inputs": False,
        "known_tokens": None,
        "has_certain_lengths": False,
        "thresholds": {"min_rate": 12, "min_concentration": 2, "min_mode": 0.5},
        "quantization": None,
        "format_version": FORMAT_VERSION,
    }
    assert PredictorConfig.from_dict(json.loads(text)) == TINY


def test_a_config_without_the_newer_settings_is_that_of_the_published_checkpoints():
    values = {
        k: v
        for k, v in asdict(TINY).items()
        if k not in ("norm", "standardize_inputs", "has_certain_lengths")
    }
    assert PredictorConfig.from_dict(values) == TINY


def test_a_predictor_with_norms_before_its_layers_loads_exactly(tmp_path: Path) -> None:
    predictor = make_tiny(config=OURS)
    predictor.save(tmp_path)
    assert_same(Predictor.load(tmp_path), predictor)
    assert "final_norm.weight" in tensors(predictor)


def test_standardised_states_are_the_same_in_any_unit() -> None:
    predictor, h = make_tiny(config=OURS), hidden_states()
    want = predictor(h)
    predictor.input_mean = predictor.input_mean * 4 + 3
    predictor.input_scale = predictor.input_scale / 4
    for ours, theirs in zip(predictor(h * 4 + 3), want, strict=True):
        assert mx.allclose(ours, theirs, rtol=1e-4).item()
    other = predictor(h)
    assert not mx.allclose(other[0], want[0], rtol=1e-2).item()


def test_what_standardises_is_not_trained() -> None:
    names = {name for name, _ in tree_flatten(make_tiny(config=OURS).parameters())}
    trained = make_tiny(config=OURS).train().trainable_parameters()
    left_out = names - {name for name, _ in tree_flatten(trained)}
    assert left_out == {"input_mean", "input_scale"}


def test_saving_replaces_what_was_there(tmp_path: Path) -> None:
    make_tiny().save(tmp_path)
    loaded = Predictor.load(tmp_path)
    loaded.quantize(4, group_size=32).save(tmp_path)
    assert Predictor.load(tmp_path).config.quantization == {
        "bits": 4,
        "group_size": 32,
    }
    assert_same(loaded, make_tiny())


def test_a_loaded_predictor_no_longer_needs_its_files(tmp_path: Path) -> None:
    make_tiny().save(tmp_path)
    loaded = Predictor.load(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    assert_same(loaded, make_tiny())


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failing_save_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    if earlier:
        make_tiny().save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            make_tiny().quantize(4, group_size=32).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_predictor_folder_is_known_by_either_file(tmp_path: Path) -> None:
    assert not is_predictor_folder(tmp_path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        folder = tmp_path / name[-4:]
        folder.mkdir()
        (folder / name).touch()
        assert is_predictor_folder(folder)


def test_quantising_leaves_the_original_as_it_was() -> None:
    predictor = make_tiny()
    quantized = predictor.quantize(8, group_size=32)
    assert_same(predictor, make_tiny())
    assert quantized.config.thresholds == TINY.thresholds
    assert not quantized.training
    names = {k[: -len(".scales")] for k in tensors(quantized) if k.endswith("scales")}
    linear = {"query", "key", "value", "attention_output", "up", "down"}
    assert names == {
        "projection",
        "concentration_head",
        "rate_head",
        *(f"layers.{i}.{name}" for i in range(2) for name in linear),
    }


def test_layers_that_no_group_divides_stay_as_they_are() -> None:
    # Of the input widths 64 (D and the intermediate) and 32 (P), 64 divides the first.
    quantized = tensors(make_tiny().quantize(4))
    scaled = {k[: -len(".scales")] for k in quantized if k.endswith("scales")}
    assert scaled == {"projection", "layers.0.down", "layers.1.down"}
    assert mx.array_equal(
        quantized["rate_head.weight"], make_tiny().rate_head["weight"]
    )


@pytest.mark.parametrize("bits", [0, 2, 3, 5, 6, 16, -4])
def test_only_4_and_8_bits_are_offered(bits: int) -> None:
    with pytest.raises(ValueError) as e:
        make_tiny().quantize(bits)
    assert str(e.value) == (
        f"quantization of a predictor: bits must be one of (4, 8), not {bits}."
    )


def test_a_quantised_predictor_is_not_quantised_again(tmp_path: Path) -> None:
    quantized = make_tiny().quantize(8)
    quantized.save(tmp_path)
    for predictor in (quantized, Predictor.load(tmp_path)):
        with pytest.raises(ValueError, match="is quantised already"):
            predictor.quantize(4)


def before_softplus(y: mx.array | np.ndarray) -> np.ndarray:
    y = np.array(y, np.float64)
    return y + np.log(-np.expm1(-y))


def golden_guided(steps: Steps, concentration: mx.array, rate: mx.array) -> np.ndarray:
    logits = mx.array(steps["logits"])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    found = log_weights(concentration, rate, mx.array(steps["remaining"]))
    return np.array(mx.exp(guided_logprobs(logprobs, found)))


@pytest.mark.parametrize(
    ("bits", "logit_error", "distance"),
    [(None, 1e-5, 1e-4), (8, 0.03, 0.06), (4, 0.25, 0.5)],
)
def test_quantisation_drifts_as_far_as_its_steps(
    loaded: Loaded,
    golden_steps: Steps,
    bits: int | None,
    logit_error: float,
    distance: float,
) -> None:
    # The range of 64 normal weights is some 4.6 standard deviations, in 255 or 15
    # steps: rounding errs by 0.5 % or 9 % of the weights in root mean square, and so
    # do the outputs of a layer. A few layers in a row, part of them beside a residual,
    # make 1 % to 3 % or 10 % to 25 % of the heads' outputs. The guided probabilities
    # follow no simple law; the golden heads, drawn at random with outputs of +-60, are
    # many times as sensitive as trained ones.
    predictor = loaded[2] if bits is None else loaded[2].quantize(bits)
    found = predictor(mx.array(golden_steps["hidden"]))
    for ours, name in zip(found, ("alpha", "lam"), strict=True):
        want = before_softplus(golden_steps[name])
        error = np.linalg.norm(before_softplus(ours) - want) / np.linalg.norm(want)
        assert logit_error / 10 * (bits is not None) < error < logit_error
    guided = golden_guided(golden_steps, *found)
    moved = np.abs(guided - golden_steps["probs"]).sum(axis=1) / 2
    assert moved.mean() < distance
