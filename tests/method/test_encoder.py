"""The encoder's GELU against SciPy, and its layer at the positions that are read."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy import special

from mlx_budget.method.encoder import EncoderLayer, gelu
from tiny_predictor import hidden_states, make_tiny


def exact_gelu(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x * special.ndtr(x)


def test_gelu_by_hand() -> None:
    # Phi(1) = 0.8413447, Phi(-2) = 0.0227501.
    got = gelu(mx.array([0.0, 1.0, -1.0, -2.0])).tolist()
    assert got == pytest.approx([0, 0.8413447, -0.1586553, -0.0455003], abs=2e-7)


def test_gelu_is_exact_to_the_rounding_of_float32() -> None:
    x = np.linspace(-20, 20, 400_001).astype(np.float32)
    got = gelu(mx.array(x))
    assert got.dtype == mx.float32
    # Each polynomial of erf is rounded ten times, and their quotient thrice more, by up
    # to 6e-8 of erf each, then x / 2 scales that: at worst 7e-7 |x|, and half of it is
    # plenty for roundings that do not all go one way.
    error = np.abs(np.array(got, np.float64) - exact_gelu(x))
    assert (error / np.maximum(1, np.abs(x))).max() < 4e-7


def test_gelu_of_large_numbers_is_the_number_or_0() -> None:
    # Large enough to lose all of the normal distribution's tail, up to an overflow of
    # the square of x; float32's largest number is 3.4e38.
    large = [6.0, 100.0, 1e10, 1e30, 3e38]
    got = gelu(mx.array(large))
    # A unit or two in the last place of erf, which is 1 there.
    assert got.tolist() == pytest.approx(large, rel=2**-23)
    # x Phi(-x) is 6e-9 at 6.
    small = gelu(-mx.array(large)) / mx.array(large)
    assert mx.abs(small).max().item() < 2**-23


def test_gelu_of_infinity() -> None:
    assert gelu(mx.array([np.inf])).item() == np.inf


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_gelu_in_half_precision_is_that_of_mlx(dtype: mx.Dtype) -> None:
    x = mx.linspace(-20, 20, 40_001).astype(dtype)
    got = gelu(x)
    assert got.dtype == dtype
    got, x = (np.array(v.astype(mx.float32), np.float64) for v in (got, x))
    want = np.array(nn.gelu(mx.array(x, dtype=mx.float32)), np.float64)
    # Half a unit in the last place to round each of two numbers that are all but the
    # same; 4e-7 |x| is float32's own error, which shows in the tail below 0.
    unit = mx.finfo(dtype).eps * np.abs(want)
    assert np.all(np.abs(got - want) <= unit + 4e-7 * np.abs(x) + 2**-24)


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4)])
def test_gelu_is_elementwise_in_every_shape(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).uniform(-9, 9, shape).astype(np.float32)
    got = gelu(mx.array(x))
    assert got.shape == shape
    assert np.array(got) == pytest.approx(exact_gelu(x), abs=4e-6)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_a_layer_gives_the_outputs_that_are_asked_for(outputs: int, norm: str) -> None:
    mx.random.seed(0)
    layer = EncoderLayer(32, 4, 64, eps=1e-5, norm=norm)
    x = mx.random.normal((3, 5, 32))
    full = layer(x)
    assert full.shape == (3, 5, 32)
    got = layer(x, outputs=outputs)
    assert got.shape == (3, outputs, 32)
    # float32 sums of 64 numbers, in another order; outputs are normed to about 1.
    assert mx.abs(got - full[:, :outputs]).max().item() < 1e-5
    # The outputs see every position, those that are left out too.
    moved = layer(mx.concatenate([x[:, :-1], -x[:, -1:]], axis=1), outputs=outputs)
    assert mx.abs(got - moved).max().item() > 1e-3


def test_a_predictor_reads_the_first_position_of_its_last_layer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor, h = make_tiny(), hidden_states()
    found = predictor.encode(h)
    asked = []
    call = EncoderLayer.__call__

    def compute_all(self, x: mx.array, outputs: int | None = None) -> mx.array:
        asked.append(outputs)
        return call(self, x)[:, :outputs]

    monkeypatch.setattr(EncoderLayer, "__call__", compute_all)
    # Normed outputs times weights of about 1, as above.
    assert mx.abs(found - predictor.encode(h)).max().item() < 1e-4
    assert asked == [None, 1]
