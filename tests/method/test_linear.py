"""The linear predictor: a table, shifted by a probe of one layer's hidden state."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_budget import Predictor
from mlx_budget.method.linear import LinearPredictor, Probe
from mlx_budget.method.predictor import ReplyProgress
from mlx_budget.method.table import LengthCounts, TablePredictor

CLOSE, V, LAYERS, WIDTH = 9, 12, 2, 3
COUNTS = LengthCounts.of(
    np.array([3, 3, 4]), np.array([0, 4, 0]), np.array([20, 9, 60])
)


def make(spread: float = 2.0) -> LinearPredictor:
    weight = np.array([0.5, 0.0, -1.0], np.float32)
    return LinearPredictor(
        "model", V, CLOSE, COUNTS, Probe(1, LAYERS, weight, 0.25, spread)
    )


def states(*of_layer: list[float]) -> mx.array:
    """Hidden states (B, N + 1, D) of which layer 1 is given."""
    filled = np.full((len(of_layer), LAYERS + 1, WIDTH), 7.0, np.float32)
    filled[:, 1] = of_layer
    return mx.array(filled)


def test_the_probe_reads_its_layer_alone():
    encoding = make().encode(states([2, 5, 1], [0, 5, 0]))
    np.testing.assert_allclose(np.array(encoding), [[0.25], [0.25]])
    encoding = make().encode(states([2, 5, 0]))
    np.testing.assert_allclose(np.array(encoding), [[1.25]])


def test_means_are_shifted_and_variances_grow_for_all_but_the_closing_marker():
    predictor = make(spread=2.0)
    table = TablePredictor("model", V, CLOSE, COUNTS)
    progress = ReplyProgress(0)

    def moments(outputs):
        concentration, rate = (np.array(o)[0] for o in outputs)
        return concentration / rate, concentration / rate**2

    mean, variance = moments(predictor.outputs(mx.array([[0.75]]), progress))
    plain_mean, plain_variance = moments(table.outputs(None, progress))
    others = [t for t in range(V) if t != CLOSE]
    np.testing.assert_allclose(mean[others], plain_mean[others] + 0.75, rtol=1e-5)
    np.testing.assert_allclose(variance[others], plain_variance[others] * 2, rtol=1e-5)
    assert mean[CLOSE] == pytest.approx(math.log(1.5))


def test_no_mean_falls_below_the_shortest_length():
    outputs = make().outputs(mx.array([[-50.0]]), ReplyProgress())
    concentration, rate = (np.array(o)[0] for o in outputs)
    np.testing.assert_allclose(concentration / rate, math.log(1.5), rtol=1e-5)


def test_positions_have_what_single_steps_have():
    predictor = make()
    read = predictor.encode(states([2, 5, 1], [0, 1, 1], [1, 1, 0]))
    tokens, used = np.array([3, 4, 11]), np.array([0, 5, 2])
    concentration, rate = predictor.at_positions(tokens, used, read)
    for i, (token, t) in enumerate(zip(tokens, used, strict=True)):
        outputs = predictor.outputs(
            read[i : i + 1], ReplyProgress(int(t)), mx.array([[int(token)]])
        )
        assert outputs[0].item() == pytest.approx(concentration[i], rel=1e-5)
        assert outputs[1].item() == pytest.approx(rate[i], rel=1e-5)


def test_a_model_of_other_sizes_is_refused():
    predictor = make()
    predictor.check_sizes(WIDTH, LAYERS, V)
    for sizes, what in (
        ((WIDTH + 1, LAYERS, V), "hidden states of width 3, and this model has 4"),
        ((WIDTH, LAYERS + 1, V), "a number of layers of 2, and this model has 3"),
        ((WIDTH, LAYERS, V + 1), "a vocabulary of 12, and this model has 13"),
    ):
        with pytest.raises(ValueError, match=what):
            predictor.check_sizes(*sizes)


def test_save_and_load(tmp_path):
    predictor = make()
    predictor.save(tmp_path)
    found = Predictor.load(tmp_path)
    assert isinstance(found, LinearPredictor) and found.reads_states
    here = states([2, 5, 1])
    for ours, theirs in zip(
        predictor.outputs(predictor.encode(here), ReplyProgress(4)),
        found.outputs(found.encode(here), ReplyProgress(4)),
        strict=True,
    ):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_width": 4}, r"probe.weight has shape \(3,\), expected \(4,\)"),
        ({"layer": 3}, "its layer or variance is invalid"),
        ({"layer": -1}, "cannot have layer = -1"),
    ],
)
def test_a_damaged_probe_is_refused(tmp_path, change, message):
    make().save(tmp_path)
    file = tmp_path / "predictor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        Predictor.load(tmp_path)
