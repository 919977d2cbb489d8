"""Conversion: what comes out is the model that went in, or one line and nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from conftest import REFERENCE
from fake_hub import FakeHub
from mlx_budget import Predictor, checkpoint, load, make_budget_sampler, stream_generate
from mlx_budget.cli import cli
from mlx_budget.reference import is_predictor_tensor, predictor_name

ROOT = Path(__file__).parents[1]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CASE = json.loads((REFERENCE / "golden.json").read_text())[1]
PROMPT = mx.array([[5, 6, 7, 8, 9]])
WIDTH, VOCABULARY = 64, 448
COMMON = {
    "hidden_size": WIDTH,
    "vocab_size": VOCABULARY,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
ARCHITECTURES = {
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3, tied": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_moe": {"model_type": "qwen3_moe", **EXPERTS},
    "llama": {"model_type": "llama"},
    "gemma2": {"model_type": "gemma2", "query_pre_attn_scalar": 16},
}


def random(shape) -> mx.array:
    return mx.random.normal(shape) * 0.1


def source_model(config: dict):
    """A model with random weights, in float32."""
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    weights = [(k, random(v.shape)) for k, v in tree_flatten(model.parameters())]
    return model.load_weights(weights).eval()


def hub_weights(model) -> dict[str, mx.array]:
    """The weights of a model by their names on the Hub: one tensor for each expert."""
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if "switch_mlp" in name:
            for i, expert in enumerate(value):
                weights[name.replace("switch_mlp", f"experts.{i}")] = expert
        else:
            weights[name] = value
    return weights


def predictor_weights() -> dict[str, mx.array]:
    """A random predictor in the reference's names: P = 64, one layer."""
    p, between = 64, 32
    layer = {"intermediate.dense": (between, p), "output.dense": (p, between)}
    for part in "self.query", "self.key", "self.value", "output.dense":
        layer[f"attention.{part}"] = (p, p)
    shapes = {"encoder.0": (p, WIDTH)}
    shapes |= {f"encoder.1.layer.0.{name}": shape for name, shape in layer.items()}
    weights = {"cls_token": random((1, 1, WIDTH))}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = random(shape)
        weights[f"{name}.bias"] = random(shape[:1])
    for name in "attention.output.LayerNorm", "output.LayerNorm":
        weights[f"encoder.1.layer.0.{name}.weight"] = random((p,)) + 1
        weights[f"encoder.1.layer.0.{name}.bias"] = random((p,))
    for name in "alpha_head", "lam_head":
        weights[f"{name}.weight"] = random((VOCABULARY, p))
    return weights


def write_folder(folder: Path, config: dict, *shards: dict[str, mx.array]) -> Path:
    """A checkpoint of these shards, with the fixture's tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER:
        shutil.copy(REFERENCE / name, folder)
    index = {}
    for i, shard in enumerate(shards, 1):
        many = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else many
        mx.save_safetensors(str(folder / file), shard, {"format": "pt"})
        index.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def deal(weights: dict[str, mx.array], shards: int) -> list[dict[str, mx.array]]:
    """Deals tensors out, so that each shard holds some of all."""
    return [dict(list(weights.items())[i::shards]) for i in range(shards)]


def apart(weights: dict[str, mx.array]) -> list[dict[str, mx.array]]:
    """Two shards: the model, and the predictor."""
    return [
        {k: v for k, v in weights.items() if is_predictor_tensor(k) == own}
        for own in (False, True)
    ]


def fixture_weights() -> dict[str, mx.array]:
    return mx.load(str(REFERENCE / "model.safetensors"))


def fixture_config() -> dict:
    return json.loads((REFERENCE / "config.json").read_text())


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the fixture, to be spoilt."""
    return write_folder(tmp_path / "copy", fixture_config(), fixture_weights())


@pytest.fixture
def out(tmp_path) -> Path:
    """Where the output shall appear: two folders that are not there yet."""
    return tmp_path / "new" / "out"


def run(source, out, *options):
    """The command, in process; the fixture's predictor has four heads."""
    names = ["--hf-path", str(source), "--mlx-path", str(out)]
    heads = [] if "--predictor-heads" in options else ["--predictor-heads", "4"]
    arguments = ["convert", *names, *heads, *map(str, options)]
    return CliRunner().invoke(cli, arguments)


def converts(source, out, *options) -> Path:
    result = run(source, out, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return out


def line_of(code: int, stdout: str, stderr: str) -> str:
    """The one line that a command ended with on bad input."""
    assert (code, stdout) == (2, ""), stderr
    (line,) = stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def fails(source, out, *options) -> str:
    """The one line of a conversion that left nothing."""
    result = run(source, out, *options)
    assert not out.parent.exists()
    return line_of(result.exit_code, result.stdout, result.stderr)


def dtypes(file: Path) -> set[str]:
    return {info.dtype for info in checkpoint.read_header(file).values()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def answers(folder: Path, **options) -> list[int]:
    """Ten tokens that a folder generates under a budget."""
    model, tokenizer, predictor = load(str(folder), **options)
    responses = stream_generate(
        model,
        tokenizer,
        CASE["prompt_ids"],
        predictor=predictor,
        thinking_budget=20,
        max_tokens=10,
    )
    return [response.token for response in responses]


# What comes out


def test_shards_give_every_golden_token_in_stock_mlx_lm(tmp_path, out, golden):
    shards = deal(fixture_weights(), 3)
    source = write_folder(tmp_path / "shards", fixture_config(), *shards)
    folder = converts(source, out, "--dtype", "float32")
    model, tokenizer = mlx_lm.load(str(folder))
    predictor = Predictor.load(folder)
    for case in golden.cases:
        sampler = make_budget_sampler(
            model,
            tokenizer,
            predictor,
            prompt=case["prompt_ids"],
            thinking_budget=case["budget"],
            hard_stop=None,
        )
        responses = mlx_lm.stream_generate(
            model,
            tokenizer,
            case["prompt_ids"],
            max_tokens=case["max_new"],
            sampler=sampler,
        )
        assert [r.token for r in responses] == case["guided_tokens"], case["id"]


def test_bfloat16_shards_convert_and_generate(tmp_path, out):
    weights = {k: v.astype(mx.bfloat16) for k, v in fixture_weights().items()}
    source = write_folder(tmp_path / "bf16", fixture_config(), *deal(weights, 2))
    folder = converts(source, out)
    assert dtypes(folder / "model.safetensors") == {"BF16"}
    assert dtypes(folder / "predictor.safetensors") == {"BF16"}
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


def change(folder: Path, **tensors) -> None:
    """Replaces tensors of a checkpoint in one file; None removes one."""
    file = folder / "model.safetensors"
    weights = {**mx.load(str(file)), **tensors}
    mx.eval(weights)
    checkpoint.write(file, {k: v for k, v in weights.items() if v is not None})


def test_no_such_folder(tmp_path, out):
    line = fails(tmp_path / "none", out)
    assert line == f"Error: There is no folder {tmp_path / 'none'}. Check the path."


def test_an_empty_folder_is_no_checkpoint(tmp_path, out):
    (tmp_path / "empty").mkdir()
    assert "empty is not a checkpoint: it has no config.json" in fails(
        tmp_path / "empty", out
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json names no model_type"),
        ('{"model_type": "none"}', "copy is no model that mlx-lm can load (Model type"),
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


def in_child(code: str, *arguments, **environment) -> subprocess.CompletedProcess:
    """Runs the command in a process of its own, after some code."""
    code += (
        "\nimport sys\nfrom mlx_budget.cli import cli\ncli(['convert', *sys.argv[1:]])"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


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


def test_a_killed_conversion_leaves_no_output_and_the_next_succeeds(out):
    kill = """
import os, signal
from mlx_budget import checkpoint
write = checkpoint.write
def write_and_die(file, weights, progress):
    write(file, weights, lambda nbytes: os.kill(os.getpid(), signal.SIGKILL))
checkpoint.write = write_and_die
"""
    options = ["--hf-path", REFERENCE, "--mlx-path", out, "--predictor-heads", 4]
    assert in_child(kill, *options).returncode == -signal.SIGKILL
    (left,) = out.parent.iterdir()
    assert left.name.startswith(".out.") and left.name.endswith(".incomplete")
    converts(REFERENCE, out)
    assert list(out.parent.iterdir()) == [out]
    assert len(answers(out)) == 10


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


@pytest.fixture
def hub(tmp_path):
    """Serves the fixture: in two shards, in one file as "v1", and as pickles."""
    weights, config = fixture_weights(), fixture_config()
    sharded = write_folder(tmp_path / "main", config, *apart(weights))
    v1 = write_folder(tmp_path / "v1", {**config, "made_up": 1}, weights)
    pickles = write_folder(tmp_path / "pickles", config)
    (pickles / "pytorch_model.bin").touch()
    folders = {"owner/tiny-BG": sharded, "owner/pickles": pickles}
    with FakeHub(folders, {"owner/tiny-BG": {"v1": v1}}) as hub:
        yield hub


@pytest.fixture
def from_hub(hub, tmp_path, out):
    """Converts a name on the Hub, in a process of its own."""

    def convert(name: str, *options, **environment) -> subprocess.CompletedProcess:
        names = ["--hf-path", name, "--mlx-path", out, "--predictor-heads", 4]
        environment = {**hub.environment(tmp_path / "home"), **environment}
        return in_child("", *names, *options, **environment)

    return convert


def test_a_name_on_the_hub_is_converted_and_uploaded(hub, from_hub, out):
    child = from_hub("owner/tiny-BG", "--revision", "v1", "--upload-repo", "me/tiny-4b")
    assert child.returncode == 0, child.stderr
    assert config_of(out)["made_up"] == 1
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert hub.uploaded == {"me/tiny-4b": files}
    assert Predictor.load(out).config.base_model == "owner/tiny-BG"
    card = files["README.md"].decode()
    assert "base_model: owner/tiny-BG\n" in card
    assert "mlx-budget generate --model me/tiny-4b " in card


def test_the_predictor_alone_downloads_its_own_shards_only(hub, from_hub, out):
    child = from_hub("owner/tiny-BG", "--predictor-only")
    assert child.returncode == 0, child.stderr
    assert hub.downloaded("owner/tiny-BG") == {
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    }
    assert Predictor.load(out).config.vocab_size == VOCABULARY


def test_a_tokenizer_and_nothing_else_is_taken_from_the_hub(hub, from_hub, copy, out):
    for name in TOKENIZER:
        (copy / name).unlink()
    child = from_hub(copy, "--tokenizer", "owner/tiny-BG")
    assert child.returncode == 0, child.stderr
    assert hub.downloaded("owner/tiny-BG") == set(TOKENIZER)
    assert len(answers(out)) == 10


@pytest.mark.parametrize(
    ("name", "options", "environment", "message"),
    [
        ("owner/none", [], {}, "There is no folder owner/none here and no such name"),
        ("owner/pickles", [], {}, "owner/pickles offers its weights only as pickles"),
        (
            "owner/tiny-BG",
            ["--upload-repo", "me/new"],
            {"HF_TOKEN": "other"},
            "The Hub refused me/new",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub, from_hub, out, name, options, environment, message
):
    child = from_hub(name, *options, **environment)
    assert message in line_of(child.returncode, child.stdout, child.stderr)
    assert not out.parent.exists()
    assert hub.uploaded == {}


def test_an_interrupted_download_is_one_line_and_leaves_nothing(hub, from_hub, out):
    file = "model-00001-of-00002.safetensors"
    hub.cut_after("owner/tiny-BG", file, 100_000, reset=True)
    child = from_hub("owner/tiny-BG")
    line = line_of(child.returncode, child.stdout, child.stderr)
    assert "owner/tiny-BG" in line and "try again" in line
    assert not out.parent.exists()


def test_a_checkpoint_that_fails_makes_no_repository(hub, from_hub, copy, out):
    change(copy, cls_token=None)
    child = from_hub(copy, "--upload-repo", "me/new")
    assert "cls_token" in line_of(child.returncode, child.stdout, child.stderr)
    assert hub.uploaded == {}
