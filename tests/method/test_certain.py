"""Lengths that are certain: enough is enough, and one token less is not."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_budget.method import certain, kernels
from mlx_budget.method.guidance import GuidanceThresholds, Window, log_weights
from mlx_budget.method.table import LengthCounts, TablePredictor

CLOSE, HEADING, LINE, V = 2, 5, 7, 12
LENGTHS = (2, 3, 6, 10, 25, 50)
ANY = GuidanceThresholds()


def weights(length: int, window: Window | int) -> float:
    parameters = certain.parameters_of(mx.array([[length]]))
    return float(mx.exp(log_weights(*parameters, window)))


@pytest.mark.parametrize("length", LENGTHS)
def test_as_many_tokens_are_enough_and_one_less_is_not(length):
    assert weights(length, length) == pytest.approx(1, abs=0.02)
    assert weights(length, length + 1) == pytest.approx(1, abs=1e-3)
    assert weights(length, length - 1) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("length", LENGTHS)
def test_it_ends_within_a_window_that_holds_it_alone(length):
    assert weights(length, Window(length, length)) == pytest.approx(1, abs=0.05)
    assert weights(length, Window(length + 9, length + 1)) < 0.02


def test_the_kernels_weight_is_the_same():
    lengths = mx.array([LENGTHS])
    for budget in (1, 2, 5, 6, 24, 25, 400):
        parameters = certain.parameters_of(lengths)
        np.testing.assert_allclose(
            np.exp(kernels.log_weights(*parameters, budget, ANY)),
            np.exp(log_weights(*parameters, budget, ANY)),
            atol=1e-5,
        )


def counted(*triples: tuple[int, int, int]) -> LengthCounts:
    tokens, used, lengths = (np.array(v) for v in zip(*triples, strict=True))
    return LengthCounts.of(tokens, used, lengths)


def table(counts: LengthCounts, folder=None) -> TablePredictor:
    predictor = TablePredictor("model", V, CLOSE, counts)
    if folder is None:
        return predictor
    predictor.save(folder)
    return TablePredictor.load(folder)


def at(predictor: TablePredictor, tokens: list[int]) -> list[int]:
    return predictor.certain_at(np.array(tokens)).tolist()


@pytest.mark.parametrize("number", [10, 3000])
def test_a_token_that_always_came_with_one_length_is_certain(number, tmp_path):
    stages = [0, 20, 90]
    seen = [(HEADING, stages[i % 3], 6) for i in range(number)]
    seen += [(LINE, 0, 20 + i % 7) for i in range(number)]
    for predictor in (table(counted(*seen)), table(counted(*seen), tmp_path)):
        assert at(predictor, [HEADING, LINE, CLOSE, 11]) == [6, 0, 1, 0]


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param([(HEADING, 0, 6)] * 9, id="too few"),
        pytest.param([(HEADING, 0, 6)] * 900 + [(HEADING, 0, 7)], id="once longer"),
        pytest.param([(HEADING, 0, 300)] * 900 + [(HEADING, 0, 200)], id="once less"),
    ],
)
def test_no_other_token_is(seen, tmp_path):
    assert at(table(counted(*seen, (LINE, 0, 9)), tmp_path), [HEADING]) == [0]
