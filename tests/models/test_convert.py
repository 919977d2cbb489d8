"""What `convert` makes of checkpoints of all kinds."""

import json
import signal
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from conversions import (
    ARCHITECTURES,
    COMMON,
    PROMPT,
    REFERENCE,
    TOKENIZER,
    answers,
    apart,
    config_of,
    converts,
    deal,
    dtypes,
    fails,
    fixture_config,
    fixture_weights,
    hub_weights,
    in_child,
    line_of,
    predictor_weights,
    run,
    source_model,
    write_folder,
)
from golden_run import golden_batch
from mlx_budget import Predictor, load
from mlx_budget.models.reference import predictor_name


def test_shards_give_every_golden_token_in_stock_mlx_lm(tmp_path, out, golden):
    shards = deal(fixture_weights(), 3)
    source = write_folder(tmp_path / "shards", fixture_config(), *shards)
    folder = converts(source, out, "--dtype", "float32")
    parts = *mlx_lm.load(str(folder)), Predictor.load(folder)
    found = [tokens for tokens, _ in golden_batch(parts, golden.cases)]
    assert found == [case["guided_tokens"] for case in golden.cases]


def test_bfloat16_shards_convert_and_generate(tmp_path, out):
    weights = {k: v.astype(mx.bfloat16) for k, v in fixture_weights().items()}
    source = write_folder(tmp_path / "bf16", fixture_config(), *deal(weights, 2))
    folder = converts(source, out)
    assert dtypes(folder / "model.safetensors") == {"BF16"}
    assert dtypes(folder / "predictor.safetensors") == {"BF16"}
    found = mx.load(str(folder / "model.safetensors"))
    predictor = dict(tree_flatten(Predictor.load(folder).parameters()))
    for name, value in weights.items():
        ours = found.get(name, predictor.get(predictor_name(name)))
        assert mx.array_equal(ours, value.reshape(ours.shape)), name
    assert len(answers(folder)) == 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_and_predictor_are_those_of_the_source(
    tmp_path, out, architecture, shards
):
    mx.random.seed(1)
    config = {**COMMON, **ARCHITECTURES[architecture]}
    model, predictor = source_model(config), predictor_weights()
    weights = {**hub_weights(model), **predictor}
    if config["tie_word_embeddings"] and shards == 1:  # saved by some, all the same
        weights["lm_head.weight"] = model.model.embed_tokens.weight
    source = write_folder(tmp_path / "source", config, *deal(weights, shards))
    folder = converts(source, out, "--predictor-heads", 1)
    stock, _ = mlx_lm.load(str(folder))
    assert mx.array_equal(stock(PROMPT), model(PROMPT))
    found = dict(tree_flatten(Predictor.load(folder).parameters()))
    assert len(found) == len(predictor)
    for name, value in predictor.items():
        assert mx.array_equal(found[predictor_name(name)], value.squeeze()), name


def test_settings_are_kept(copy, out):
    config = {**fixture_config(), "dtype": "float32", "made_up": [1, 2]}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "generation_config.json").write_text('{"temperature": 0.6}')
    (copy / "modeling.py").write_text("raise SystemExit")
    folder = converts(copy, out)
    assert config_of(folder) == config
    for name in (*TOKENIZER, "generation_config.json", "modeling.py"):
        assert (folder / name).read_bytes() == (copy / name).read_bytes()
    assert load(str(folder))[2].config.base_model == "copy"


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")]
)
def test_dtype_changes_the_model_and_its_predictor(tmp_path, out, dtype, stored):
    other = mx.float32 if dtype == "bfloat16" else mx.bfloat16
    weights = {k: v.astype(other) for k, v in fixture_weights().items()}
    source = write_folder(tmp_path / "source", fixture_config(), weights)
    folder = converts(source, out, "--dtype", dtype)
    assert dtypes(folder / "model.safetensors") == {stored}
    assert dtypes(folder / "predictor.safetensors") == {stored}
    assert config_of(folder)["torch_dtype"] == dtype
    expected = fixture_weights()["lm_head.weight"].astype(other)
    found = mx.load(str(folder / "model.safetensors"))["lm_head.weight"]
    assert mx.array_equal(found, expected.astype(getattr(mx, dtype)))


@pytest.mark.parametrize(
    ("options", "base", "predictor"),
    [
        (["-q"], (4, 64), 8),
        (["-q", "--q-bits", 8, "--q-group-size", 32], (8, 32), 8),
        (["-q", "--q-mode", "mxfp4", "--predictor-q-bits", "none"], (4, 32), None),
        (["-q", "--predictor-q-bits", 4], (4, 64), 4),
        (["-q", "--quant-predicate", "mixed_4_6"], (4, 64), 8),
        (["--predictor-q-bits", 8], None, 8),
        ([], None, None),
    ],
)
def test_quantised_folders_load_and_run(out, options, base, predictor):
    folder = converts(REFERENCE, out, *options)
    settings = config_of(folder).get("quantization")
    assert base == (settings and (settings["bits"], settings["group_size"]))
    stored = dtypes(folder / "model.safetensors")
    assert ("U32" in stored) == (base is not None)
    settings = Predictor.load(folder).config.quantization
    assert predictor == (settings and settings["bits"])
    assert len(answers(folder)) == 10


def test_the_predictor_alone_serves_a_quantised_build(tmp_path, out):
    whole = converts(REFERENCE, tmp_path / "whole", "-q", "--predictor-q-bits", "none")
    alone = converts(REFERENCE, out, "--predictor-only")
    assert {file.name for file in alone.iterdir()} == {
        "README.md",
        "predictor.safetensors",
        "predictor_config.json",
    }
    for name in "predictor.safetensors", "predictor_config.json":
        assert (alone / name).read_bytes() == (whole / name).read_bytes()
    expected = answers(whole)
    (whole / "predictor.safetensors").unlink()
    (whole / "predictor_config.json").unlink()
    assert answers(whole, predictor=str(alone)) == expected


def test_the_predictor_alone_needs_its_own_shards_only(tmp_path, out):
    shards = apart(fixture_weights())
    source = write_folder(tmp_path / "source", fixture_config(), *shards)
    (source / "model-00001-of-00002.safetensors").unlink()
    line = fails(source, out)
    assert "names model-00001-of-00002.safetensors, which is not there" in line
    converts(source, out, "--predictor-only")
    assert Predictor.load(out).config.model_layers == 4


def test_a_tokenizer_is_taken_from_elsewhere(copy, tmp_path, out):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in TOKENIZER:
        (copy / name).rename(elsewhere / name)
    line = fails(copy, out)
    assert f"{copy} has no usable tokenizer (" in line
    assert line.endswith("Take it from the base model with --tokenizer.")
    folder = converts(copy, out, "--tokenizer", elsewhere)
    assert answers(folder) == answers(converts(REFERENCE, tmp_path / "own"))


def test_progress_is_shown_while_writing(out):
    result = run(REFERENCE, out)
    assert "Writing: 100%" in result.stderr
    assert "1.47M/1.47M" in result.stderr
    assert result.stderr.splitlines()[-1] == f"Converted to {out}."


def test_the_model_card_says_what_it_is_and_how_to_use_it(tmp_path, out):
    card = (converts(REFERENCE, out, "-q") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mlx\n")
    assert "base_model" not in card  # a local folder is no name on the Hub
    assert "# out\n\nbg-qwen2-tiny with its thinking-length predictor" in card
    assert "mlx-budget generate --model out " in card
    assert "| language model weights | 4 bits, groups of 64 |" in card
    assert "| predictor weights | 8 bits, groups of 64 |" in card
    assert "| predictor | 2 layers, width 64, 4 heads |" in card
    alone = converts(REFERENCE, tmp_path / "alone", "--predictor-only") / "README.md"
    assert "generate --model BASE_MODEL --predictor alone " in alone.read_text()


# Bad input


def test_a_full_disk_is_one_line_and_leaves_nothing(out):
    # Files may not grow past 100 kB: the weights hit that while they are written.
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    options = ["--hf-path", REFERENCE, "--mlx-path", out, "--predictor-heads", 4]
    child = in_child(limit, *options)
    line = line_of(child.returncode, child.stdout, child.stderr)
    assert f"{out} could not be written (File too large): free some space" in line
    assert not out.parent.exists()


def test_a_killed_conversion_leaves_no_output_and_the_next_succeeds(out, converted):
    kill = """
import os, signal
from mlx_budget.files import shards
write = shards.write_tensors
def write_and_die(file, weights, progress):
    write(file, weights, lambda nbytes: os.kill(os.getpid(), signal.SIGKILL))
shards.write_tensors = write_and_die
"""
    options = ["--hf-path", REFERENCE, "--mlx-path", out, "--predictor-heads", 4]
    assert in_child(kill, *options).returncode == -signal.SIGKILL
    (left,) = out.parent.iterdir()
    assert left.name.startswith(".out.") and left.name.endswith(".incomplete")
    converts(REFERENCE, out)
    assert list(out.parent.iterdir()) == [out]
    assert answers(out) == answers(converted)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A checkpoint of some 100 MB in four shards; no tensor has more than 4."""
    config = {**COMMON, "model_type": "qwen2", "num_hidden_layers": 8}
    config |= {"intermediate_size": 32768}
    weights = {**hub_weights(source_model(config)), **predictor_weights()}
    weights = {k: v.astype(mx.bfloat16) for k, v in weights.items()}
    folder = tmp_path_factory.mktemp("large") / "source"
    return write_folder(folder, config, *deal(weights, 4))


@pytest.mark.parametrize("options", [[], ["-q", "--dtype", "float16"]])
def test_memory_stays_near_the_largest_tensor(large, out, options):
    # Without a collector, what a cycle holds on to stays: none may hold weights.
    measure = """
import atexit, gc, mlx.core as mx
gc.disable()
atexit.register(lambda: print(mx.get_peak_memory()))
"""
    names = ["--hf-path", large, "--mlx-path", out, "--predictor-heads", 1]
    child = in_child(measure, *names, *options)
    assert child.returncode == 0, child.stderr
    size = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    assert size > 100e6
    assert int(child.stdout) < 20e6


# The Hub
