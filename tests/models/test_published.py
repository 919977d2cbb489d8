"""Which published predictor fits a model, by what is known of it without a download."""

import json

import pytest

from mlx_budget.files.tensors import named_tensors
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.predictor_config import PredictorConfig
from mlx_budget.models.published import PUBLISHED, fitting

QWEN = "senfu/Qwen3-8B-BG"
SMALL = "senfu/DeepSeek-R1-Distill-Qwen-7B-BG"
LARGE = "senfu/DeepSeek-R1-Distill-Qwen-32B-BG"
BUILDS = {
    "Qwen/Qwen3-8B": QWEN,
    "mlx-community/Qwen3-8B-4bit": QWEN,
    "mlx-community/Qwen3-8B-4bit-DWQ-053125": QWEN,
    "mlx-community/Qwen3-8B-bf16": QWEN,
    "lmstudio-community/Qwen3-8B-MLX-8bit": QWEN,
    "Qwen/Qwen3-8B-FP8": QWEN,
    "nightmedia/Qwen3-8B-q8-hi-mlx": QWEN,
    "someone/Qwen3-8B-Q4_K_M": QWEN,
    "/models/qwen3-8b-mixed_4_6": QWEN,
    "mlx-community/DeepSeek-R1-Distill-Qwen-7B-4bit": SMALL,
    "mlx-community/DeepSeek-R1-Distill-Qwen-7B-Q8-mlx": SMALL,
    "mlx-community/DeepSeek-R1-Distill-Qwen-32B-6bit": LARGE,
    "mlx-community/DeepSeek-R1-Distill-Qwen-32B-MLX-mxfp4": LARGE,
}
OTHERS = (
    "demo",
    "Qwen/Qwen3-8B-Base",
    "mlx-community/DeepSeek-R1-0528-Qwen3-8B-4bit",
    "mlx-community/Qwen3-VL-8B-Thinking-4bit",
    "mlx-community/Qwen3-80B-4bit",
    "mlx-community/Qwen3-8B-v2-4bit",
    "mlx-community/Qwen3-8B-2507-4bit",
    "someone/Qwen3-8B-q8-abliterated",
    "someone/Qwen3-8B-abliterated-4bit",
    "mlx-community/DeepSeek-R1-Distill-Qwen-14B-4bit",
    "mlx-community/DeepSeek-R1-Distill-Llama-8B-4bit",
)


@pytest.mark.parametrize("name", BUILDS)
def test_builds_of_a_base_model_are_known_by_name(name):
    found = fitting(name)
    assert found is not None and found.name == BUILDS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_have_none(name):
    assert fitting(name) is None


@pytest.mark.parametrize(
    ("file", "text", "fits"),
    [
        ("config.json", '{"base_model": "Qwen/Qwen3-8B"}', True),
        ("config.json", '{"_name_or_path": "Qwen/Qwen3-8B"}', True),
        ("config.json", '{"base_model": "Qwen/Qwen3-8B-Base"}', False),
        ("README.md", "---\nbase_model: Qwen/Qwen3-8B\ntags:\n- mlx\n---\n", True),
        ("README.md", '---\nbase_model:\n- "Qwen/Qwen3-8B"\n---\nText', True),
        (
            "README.md",
            "---\nbase_model: Qwen/Qwen3-8B\nbase_model_relation: finetune\n---\n",
            False,
        ),
        ("README.md", "---\nbase_model:\n- Qwen/Qwen3-8B\n- a/b\n---\n", False),
        ("README.md", "base_model: Qwen/Qwen3-8B\n", False),
        ("config.json", "no JSON", False),
    ],
)
def test_the_files_of_a_model_tell_its_origin(tmp_path, file, text, fits):
    (tmp_path / file).write_text(text)
    assert (fitting("my-model", tmp_path) is not None) == fits


def test_a_model_of_other_sizes_is_none_of_them_whatever_it_is_called(tmp_path):
    sizes = {"hidden_size": 4096, "num_hidden_layers": 36, "vocab_size": 151936}
    for key in sizes:
        (tmp_path / "config.json").write_text(json.dumps({**sizes, key: 64}))
        assert fitting("Qwen/Qwen3-8B", tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    assert fitting("Qwen/Qwen3-8B", tmp_path) is not None


def test_sizes_are_those_of_a_predictor_in_sixteen_bits():
    for published in PUBLISHED:
        predictor = EncoderPredictor(
            PredictorConfig(
                published.base_model,
                published.model_width,
                published.model_layers,
                published.vocab_size,
            )
        )
        weights = named_tensors(predictor.parameters())
        assert published.nbytes == sum(2 * w.size for w in weights.values())
