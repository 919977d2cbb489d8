"""What is wrong with a predictor's files is named in one line."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_budget.method.predictor import CONFIG_FILE, WEIGHTS_FILE, Predictor
from mlx_budget.method.predictor_config import FORMAT_VERSION
from tiny_predictor import TINY, make_tiny, tensors


def saved(path: Path, change: Callable[[dict[str, mx.array]], object]) -> Path:
    """A predictor folder whose tensors were changed."""
    make_tiny().save(path)
    weights = tensors(make_tiny())
    change(weights)
    mx.save_safetensors(str(path / WEIGHTS_FILE), weights)
    return path


def configured(path: Path, **values: object) -> Path:
    """A predictor folder whose settings were changed."""
    make_tiny().save(path)
    config = {**asdict(TINY), **values}
    (path / CONFIG_FILE).write_text(json.dumps(config))
    return path


def load_error(path: Path) -> str:
    with pytest.raises(ValueError) as e:
        Predictor.load(path)
    message = str(e.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, lambda w: w.pop("layers.1.up.bias"))
    assert load_error(path) == (
        f"/{WEIGHTS_FILE} lacks the predictor tensor layers.1.up.bias (64,)."
    )


def test_an_extra_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, lambda w: w.update({"layers.2.up.bias": mx.zeros((7,))}))
    assert load_error(path) == (
        f"/{WEIGHTS_FILE} has a tensor layers.2.up.bias (7,) that no predictor of this "
        "configuration has."
    )


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    path = saved(tmp_path, lambda w: w.update({"rate_head.weight": mx.zeros((32, 11))}))
    assert load_error(path) == (
        f"/{WEIGHTS_FILE}: predictor tensor rate_head.weight has shape (32, 11), "
        "expected (11, 32)."
    )


def test_weights_and_quantisation_must_agree(tmp_path: Path) -> None:
    path = configured(tmp_path, quantization={"bits": 4, "group_size": 32})
    assert "projection.weight has shape (32, 64), expected (32, 8)" in load_error(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 3}, "unknown key 'depth'."),
        ({"thresholds": {"max_rate": 3}}, "unknown key 'max_rate' in thresholds."),
        (
            {"thresholds": {"min_rate": -3}},
            "min_rate must be finite and >= 0, not -3.",
        ),
        (
            {"format_version": FORMAT_VERSION + 1},
            f"its format version {FORMAT_VERSION + 1} is newer than the "
            f"{FORMAT_VERSION} that this release reads: upgrade with `pip install -U "
            '"mlx-budget @ git+https://github.com/mlx-budget/mlx-budget"`.',
        ),
        ({"format_version": 0}, "format_version must be an integer >= 1, not 0."),
        ({"format_version": "1"}, "format_version must be an integer >= 1, not '1'."),
        (
            {"heads": 5},
            "5 attention heads do not divide the predictor's width of 32: pass "
            "--predictor-heads with a divisor of 32.",
        ),
        ({"heads": 0}, "heads of a predictor must be an integer >= 1, not 0."),
        ({"layers": "2"}, "layers of a predictor must be an integer >= 1, not '2'."),
        ({"width": 32.0}, "width of a predictor must be an integer >= 1, not 32.0."),
        ({"vocab_size": True}, "vocab_size of a predictor must be an integer >= 1, "),
        ({"quantization": {"bits": 4}}, "quantization must be null or "),
    ],
)
def test_bad_settings_are_named(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    error = load_error(configured(tmp_path, **values))
    assert error.startswith(f"/{CONFIG_FILE} cannot be read: {message}")


@pytest.mark.parametrize(
    "values",
    [
        {"quantization": {"bits": 3, "group_size": 32}},
        {"quantization": {"bits": 7, "group_size": 32}},
        {"quantization": {"bits": "4", "group_size": 32}},
        {"quantization": {"bits": 4, "group_size": 0}},
        {"quantization": {"bits": 4, "group_size": 16}},
        {"layer_norm_eps": None},
        {"layer_norm_eps": -1.0},
        {"norm": "both"},
        {"norm": None},
        {"standardize_inputs": 1},
        {"base_model": 3},
    ],
)
def test_settings_of_a_wrong_kind_are_named(
    tmp_path: Path, values: dict[str, object]
) -> None:
    error = load_error(configured(tmp_path, **values))
    assert error.startswith(f"/{CONFIG_FILE} cannot be read: ")
    assert next(iter(values)) in error


@pytest.mark.parametrize("name", ["vocab_size", "format_version", "base_model"])
def test_missing_settings_are_named(tmp_path: Path, name: str) -> None:
    make_tiny().save(tmp_path)
    config = asdict(TINY)
    del config[name]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    error = load_error(tmp_path)
    assert error.startswith(f"/{CONFIG_FILE} cannot be read: ") and name in error


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("", "is not valid JSON"), ("[]", "must hold a JSON")],
)
def test_a_damaged_config_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    make_tiny().save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(text)
    assert load_error(tmp_path).startswith(f"/{CONFIG_FILE} {message}")


def test_missing_files_are_named(tmp_path: Path) -> None:
    make_tiny().save(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    assert load_error(tmp_path).startswith(f"/{WEIGHTS_FILE} does not exist")
    (tmp_path / CONFIG_FILE).unlink()
    assert load_error(tmp_path) == (
        f" is not a predictor folder: it has no {CONFIG_FILE}. Make one with "
        "`mlx-budget convert` or `mlx-budget train`."
    )


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_truncated_weights_are_an_error(tmp_path: Path, size: int) -> None:
    make_tiny().save(tmp_path)
    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:size])
    assert load_error(tmp_path).startswith(
        f"/{WEIGHTS_FILE} is truncated or not a safetensors file: "
    )
