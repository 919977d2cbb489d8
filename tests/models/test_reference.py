"""The map between the reference's predictor tensors and ours, with no file read."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from conversions import REFERENCE
from mlx_budget import PredictorConfig
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.models.reference import (
    is_predictor_tensor,
    predictor_name,
    predictor_sizes,
    reference_name,
)

# D = 8, V = 10, P = 128, two layers, 24 in between.
LAYER = {
    "attention.self.query.weight": (128, 128),
    "attention.self.query.bias": (128,),
    "attention.self.key.weight": (128, 128),
    "attention.self.key.bias": (128,),
    "attention.self.value.weight": (128, 128),
    "attention.self.value.bias": (128,),
    "attention.output.dense.weight": (128, 128),
    "attention.output.dense.bias": (128,),
    "attention.output.LayerNorm.weight": (128,),
    "attention.output.LayerNorm.bias": (128,),
    "intermediate.dense.weight": (24, 128),
    "intermediate.dense.bias": (24,),
    "output.dense.weight": (128, 24),
    "output.dense.bias": (128,),
    "output.LayerNorm.weight": (128,),
    "output.LayerNorm.bias": (128,),
}
SHAPES = {
    "cls_token": (1, 1, 8),
    "encoder.0.weight": (128, 8),
    "encoder.0.bias": (128,),
    **{f"encoder.1.layer.{i}.{k}": shape for i in (0, 1) for k, shape in LAYER.items()},
    "alpha_head.weight": (10, 128),
    "lam_head.weight": (10, 128),
}
SIZES = {
    "model_width": 8,
    "vocab_size": 10,
    "width": 128,
    "layers": 2,
    "heads": 2,
    "intermediate": 24,
}


def without(name: str) -> dict:
    return {k: shape for k, shape in SHAPES.items() if k != name}


def test_sizes_are_read_off_the_shapes():
    assert predictor_sizes(SHAPES) == SIZES


def test_heads_given_are_taken():
    assert predictor_sizes(SHAPES, heads=4) == {**SIZES, "heads": 4}


def test_names_and_shapes_are_those_of_a_predictor_of_these_sizes():
    predictor = EncoderPredictor(
        PredictorConfig(base_model="m", model_layers=3, **SIZES)
    )
    ours = {k: v.shape for k, v in tree_flatten(predictor.parameters())}
    expected = {**SHAPES, "cls_token": (8,)}
    assert ours == {predictor_name(k): shape for k, shape in expected.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_names_go_there_and_back(name):
    assert predictor_name(name) != name
    assert reference_name(predictor_name(name)) == name


def test_an_unknown_name_stays_as_it_is():
    for name in ("encoder.2.weight", "encoder.1.layer.0.crossattention.self.key.bias"):
        assert predictor_name(name) == name


def test_the_fixture_has_the_reference_names():
    names = mx.load(str(REFERENCE / "model.safetensors"))
    shapes = {k: v.shape for k, v in names.items() if is_predictor_tensor(k)}
    used = json.loads((REFERENCE / "bert_config_used.json").read_text())
    sizes = predictor_sizes(shapes, heads=used["num_attention_heads"])
    assert sizes["layers"] == used["num_hidden_layers"]
    assert sizes["intermediate"] == used["intermediate_size"]
    own = {k for k in names if not is_predictor_tensor(k)}
    assert all(k.startswith(("model.", "lm_head.")) for k in own)


@pytest.mark.parametrize(
    "name",
    [
        "cls_token",
        "encoder.0.weight",
        "alpha_head.weight",
        "encoder.1.layer.0.intermediate.dense.weight",
    ],
)
def test_a_missing_tensor_that_tells_a_size_is_named(name):
    with pytest.raises(ValueError, match=f"lacks the predictor tensor {name}"):
        predictor_sizes(without(name))


@pytest.mark.parametrize("shape", [(8,), (1, 1, 8, 1), (1, 1, 0)])
def test_a_shape_without_a_size_is_named(shape):
    with pytest.raises(ValueError, match="Predictor tensor cls_token has shape"):
        predictor_sizes({**SHAPES, "cls_token": shape})


def test_a_width_that_64_does_not_divide_needs_its_heads():
    shapes = {**SHAPES, "encoder.0.weight": (100, 8)}
    with pytest.raises(ValueError, match="100 wide.*--predictor-heads"):
        predictor_sizes(shapes)
    assert predictor_sizes(shapes, heads=5)["heads"] == 5


@pytest.mark.parametrize("layer", ["2", "7", "4000000000", "9" * 5000])
def test_a_stray_tensor_makes_no_layer(layer):
    name = f"encoder.1.layer.{layer}.output.dense.bias"
    assert predictor_sizes({**SHAPES, name: (128,)})["layers"] == 2


def test_a_missing_tensor_leaves_its_layer():
    assert predictor_sizes(without("encoder.1.layer.1.output.dense.bias")) == SIZES


def test_a_layer_left_out_does_not_count():
    shapes = {k.replace("layer.1.", "layer.5."): shape for k, shape in SHAPES.items()}
    assert predictor_sizes(shapes)["layers"] == 2
