"""What `convert` says of input it cannot use: one line, and nothing is written."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from conversions import (
    ARCHITECTURES,
    COMMON,
    PROMPT,
    REFERENCE,
    VOCABULARY,
    change,
    config_of,
    converts,
    fails,
    fixture_config,
    fixture_weights,
    hub_weights,
    line_of,
    predictor_weights,
    run,
    source_model,
    write_folder,
)
from mlx_budget import convert, load
from mlx_budget.models.reference import is_predictor_tensor


def code_that_tells(folder: Path) -> Path:
    """The file that exists once the code `custom.py` in a folder has run."""
    ran = folder.parent / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    code += "from mlx_lm.models.qwen2 import Model, ModelArgs\n"
    code += "from transformers import Qwen2Tokenizer as Custom\n"
    (folder / "custom.py").write_text(code)
    return ran


def test_code_of_the_model_runs_only_if_trusted(copy, out):
    ran = code_that_tells(copy)
    config = {**fixture_config(), "model_file": "custom.py"}
    (copy / "config.json").write_text(json.dumps(config))
    for options in [], ["--predictor-only"]:
        line = fails(copy, out, *options)
        assert f"{copy} comes with code that would have to run (custom.py)" in line
        assert "--trust-remote-code" in line
    assert not ran.exists()
    folder = converts(copy, out, "--trust-remote-code")
    assert ran.exists()
    assert config_of(folder) == config
    model, _, _ = load(str(folder), trust_remote_code=True)
    assert model(PROMPT).shape == (1, 5, VOCABULARY)


def test_code_of_the_tokenizer_runs_only_if_trusted(copy, out):
    ran = code_that_tells(copy)
    file = copy / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["tokenizer_class"] = "Custom"
    settings["auto_map"] = {"AutoTokenizer": ["custom.Custom", None]}
    file.write_text(json.dumps(settings))
    converts(copy, out)  # tokenizer.json does without code
    shutil.rmtree(out.parent)
    (copy / "tokenizer.json").rename(copy / "kept")
    line = fails(copy, out)
    assert f"{copy} has no usable tokenizer" in line
    assert line.endswith("--trust-remote-code if you trust its code.")
    assert not ran.exists()


def test_no_such_folder(tmp_path, out):
    line = fails(tmp_path / "none", out)
    assert line == f"Error: There is no folder {tmp_path / 'none'}. Check the path."


def test_an_empty_folder_is_refused(tmp_path, out):
    (tmp_path / "empty").mkdir()
    assert "empty is not a checkpoint: it has no config.json" in fails(
        tmp_path / "empty", out
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json names no model_type"),
        (
            '{"model_type": "none"}',
            "copy is no model that mlx-lm can load (Model type",
        ),
        ('{"model_type": "base"}', "copy is no model that mlx-lm can load"),
        ('{"model_type": ["qwen2"]}', "copy is no model that mlx-lm can load"),
        ('{"model_type": "qwen2"}', "config.json of"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--predictor-only"]])
def test_a_bad_config_is_named(copy, out, text, message, options):
    (copy / "config.json").write_text(text)
    assert message in fails(copy, out, *options)


@pytest.mark.parametrize("options", [[], ["--predictor-only"]])
def test_a_plain_model_has_no_predictor(copy, out, options):
    predictor = filter(is_predictor_tensor, fixture_weights())
    change(copy, **dict.fromkeys(predictor))
    line = fails(copy, out, *options)
    assert f"{copy} has no predictor tensors" in line
    assert "mlx_lm.convert" in line


def test_a_converted_folder_is_not_converted_again(converted, out):
    assert f"{converted} has been converted already" in fails(converted, out)


@pytest.mark.parametrize("options", [[], ["--predictor-only"]])
@pytest.mark.parametrize("keep", [0, 100, 100_000])
def test_a_truncated_file_is_named(copy, out, keep, options):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    line = fails(copy, out, *options)
    assert f"{file} is truncated or not a safetensors file" in line
    assert line.endswith("Download it again.")


def test_pickles_are_refused(copy, out):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    line = fails(copy, out)
    assert f"{copy} offers its weights only as pickles" in line
    assert line.endswith("Use a checkpoint in safetensors.")


SPOILT = {
    "missing": ({"encoder.1.layer.1.output.dense.bias": None}, "lacks"),
    "missing size": ({"alpha_head.weight": None}, "lacks"),
    "extra": ({"encoder.1.layer.1.output.other": mx.zeros(3)}, "has a tensor"),
    "extra layer": ({"encoder.1.layer.2.output.dense.bias": mx.zeros(3)}, "has a"),
    "far layer": ({"encoder.1.layer.999999999.up.bias": mx.zeros(3)}, "has a tensor"),
    "misshapen": ({"encoder.0.bias": mx.zeros(65)}, "has shape (65,), expected (64,)"),
    "misshapen cls": (
        {"cls_token": mx.zeros((1, 2, 64))},
        "has shape (1, 2, 64), expected (1, 1, 64)",
    ),
    "rank": ({"lam_head.weight": mx.zeros((448, 64, 1))}, "has shape (448, 64, 1)"),
    "empty": ({"encoder.0.weight": mx.zeros((0, 64))}, "has shape (0, 64)"),
    "integers": ({"encoder.0.bias": mx.zeros(64, mx.int32)}, "is of type I32"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("options", [[], ["--predictor-only"]])
def test_a_bad_predictor_tensor_is_named(copy, out, case, options):
    tensors, message = SPOILT[case]
    change(copy, **tensors)
    line = fails(copy, out, *options)
    (name,) = tensors
    assert name in line
    assert message in line


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"encoder.0.weight": mx.zeros((64, 32)), "cls_token": mx.zeros((1, 1, 32))},
            "it expects hidden states of width 32, and this model has 64.",
        ),
        (
            {k: mx.zeros((500, 64)) for k in ("alpha_head.weight", "lam_head.weight")},
            "it expects a vocabulary of 500, and this model has 448.",
        ),
    ],
)
@pytest.mark.parametrize("options", [[], ["--predictor-only"]])
def test_a_predictor_for_another_model_is_refused(copy, out, tensors, message, options):
    change(copy, **tensors)
    line = fails(copy, out, *options)
    assert "The predictor was made for another model (copy)" in line
    assert line.endswith(message)


def test_heads_must_divide_the_width(out):
    line = fails(REFERENCE, out, "--predictor-heads", 5)
    assert "5 attention heads do not divide the predictor's width of 64" in line
    assert "--predictor-heads" in line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.norm.weight", None, "Missing 1 parameters: model.norm.weight"),
        ("model.layers.9.odd", mx.zeros(3), "model.layers.9.odd"),
        ("model.norm.weight", mx.zeros(3), "model.norm.weight"),
    ],
)
def test_a_bad_tensor_of_the_model_is_named(copy, out, name, value, message):
    change(copy, **{name: value})
    line = fails(copy, out)
    assert f"{copy} does not hold the weights of its model" in line
    assert message in line


def test_a_missing_expert_is_named(tmp_path, out):
    config = {**COMMON, **ARCHITECTURES["qwen3_moe"]}
    weights = {**hub_weights(source_model(config)), **predictor_weights()}
    del weights["model.layers.1.mlp.experts.3.down_proj.weight"]
    source = write_folder(tmp_path / "source", config, weights)
    line = fails(source, out, "--predictor-heads", 1)
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--predictor-only", "-q"], "--predictor-q-bits"),
        (["--predictor-only", "--tokenizer", "x"], "leave out -q and --tokenizer"),
        (["--q-bits", 4], "add -q"),
        (["-q", "--q-bits", 7], "bits 7 is not supported"),
        (["-q", "--q-group-size", 100], "in groups of 100: give --q-group-size a"),
        (["-q", "--quant-predicate", "mixed_2_6", "--q-mode", "mxfp4"], "affine only"),
        (["--revision", "main"], "--revision is for names on the Hub"),
        (["--tokenizer", "/none"], "There is no folder /none"),
        (["--upload-repo", "a b"], "'a b' is neither"),
        (["--dtype", "float8"], "'float8' is not one of"),
    ],
)
def test_bad_options_are_one_line(out, options, message):
    assert message in fails(REFERENCE, out, *options)


def test_an_existing_output_is_never_touched(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    result = run(REFERENCE, out)
    line = line_of(result.exit_code, result.stdout, result.stderr)
    assert f"The output folder {out} exists already" in line
    assert list(tmp_path.rglob("*")) == [out, out / "mine"]


# Failing disks, kills, memory


@pytest.mark.parametrize(
    "options, message",
    [
        ({"q_mode": "mxfp4"}, "add -q"),
        ({"quantize": True, "q_bits": 99_999_999_999_999}, "at most 32"),
        ({"quantize": True, "q_bits": "4"}, "q_bits"),
        ({"quantize": True, "q_bits": 4.5}, "q_bits"),
        ({"quantize": True, "q_group_size": 0}, "q_group_size"),
        (
            {"quantize": True, "q_bits": 8, "quant_predicate": "mixed_2_6"},
            "leave --q-bits out",
        ),
    ],
)
def test_ways_to_quantise_that_cannot_be_are_refused_first(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "nothing"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
