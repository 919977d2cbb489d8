"""Gamma maths in float32 against SciPy's in float64, over every range it meets."""

import math
import operator
from collections.abc import Callable
from functools import reduce

import mlx.core as mx
import numpy as np
import pytest
from scipy import special, stats

from mlx_budget.method import gamma

EPS = float(np.finfo(np.float32).eps)
FLOAT32 = np.finfo(np.float32)

CONCENTRATIONS = np.array([1, 1.0001, 8, 5000, *np.geomspace(1.3, 4000, 24)])
BUDGETS = np.array([1, 2, 10, 100, 1000, 30_000, 1_000_000])
# How far from the mean to look, in standard deviations and in multiples of the mean.
DEVIATIONS = np.array([*np.linspace(-9, 9, 37), -0.01, 0.01])
MULTIPLES = np.array([0, 1e-30, *np.geomspace(1e-6, 30, 30), 1e4])


def float32(values: np.ndarray | list[float] | float) -> np.ndarray:
    return np.asarray(values).astype(np.float32)


def call(f: Callable[..., mx.array], *arguments: np.ndarray) -> np.ndarray:
    return np.array(f(*map(mx.array, arguments))).astype(np.float64)


def rates_around_the_mean(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Rates that put the mean of Gamma(a, rate) at x, around x and far from it."""
    around = a + np.sqrt(a) * DEVIATIONS
    z = np.concatenate([np.maximum(around, 0), a * MULTIPLES], axis=-1)
    return float32(z / x)


def exact_log_cdf(a: np.ndarray, z: np.ndarray) -> np.ndarray:
    """log P(a, z) for z <= a in float64, from its power series (DLMF 8.7.1)."""
    a, z = a.astype(np.float64), z.astype(np.float64)
    term = total = np.ones(np.broadcast_shapes(a.shape, z.shape))
    for k in range(1, 2000):
        term = term * z / (a + k)
        total = total + term
    return a * np.log(z) - z - special.gammaln(a + 1) + np.log(total)


def test_cdf_is_right_around_the_mean_and_in_both_tails() -> None:
    x = float32(np.log1p(BUDGETS))[:, None, None]
    a = float32(CONCENTRATIONS)[:, None]
    rate = rates_around_the_mean(x, a)
    got = call(gamma.cdf, x, a, rate)
    z = x.astype(np.float64) * rate
    want = special.gammainc(a.astype(np.float64), z)
    assert want.min() == 0 and want.max() == 1
    assert np.abs(got - want).max() < 1e-5
    visible = want > 1e-6
    assert (np.abs(got - want)[visible] / want[visible]).max() < 1e-4


def test_cdf_of_an_exponential_by_hand() -> None:
    # Gamma(1, rate) at x has probability 1 - exp(-rate x).
    got = call(gamma.cdf, float32([1, 2, 3]), float32(1), float32(0.5))
    want = [1 - math.exp(-0.5), 1 - math.exp(-1), 1 - math.exp(-1.5)]
    assert got == pytest.approx(want, abs=1e-6)


def test_cdf_is_0_at_0_and_1_at_infinity() -> None:
    a, rate = float32(CONCENTRATIONS)[:, None], float32([1e-30, 1, 33, 1e30, np.inf])
    assert np.all(call(gamma.cdf, float32(0), a, rate) == 0)
    assert np.all(call(gamma.log_cdf, float32(0), a, rate) == -np.inf)
    assert np.all(call(gamma.cdf, float32(np.inf), a, rate) == 1)


def every_magnitude() -> np.ndarray:
    denormal = [1e-45, 1e-42, 1e-39]
    ends = [0, FLOAT32.tiny, FLOAT32.max, np.inf]
    return float32([*ends, *denormal, *np.geomspace(1e-38, 3.4e38, 39)])


def test_cdf_is_a_probability_for_every_float32() -> None:
    v = every_magnitude()
    x, a, rate = (w.ravel() for w in np.meshgrid(v, v, v))
    # Infinity times 0: see the next test.
    defined = (x < np.inf) | (rate > 0)
    probability = call(gamma.cdf, x, a, rate)[defined]
    log_probability = call(gamma.log_cdf, x, a, rate)[defined]
    assert probability.min() == 0 and probability.max() == 1
    assert not np.isnan(probability).any()
    assert log_probability.max() <= 0
    assert not np.isnan(log_probability).any()


def test_cdf_is_a_probability_at_infinity_times_0() -> None:
    got = call(gamma.cdf, float32(np.inf), every_magnitude(), float32(0))
    assert np.all((got >= 0) & (got <= 1))


@pytest.mark.parametrize("a", [1, 1.0001, 8, 77.7, 900, 5000])
def test_log_cdf_does_not_fall_as_x_grows(a: float) -> None:
    # Every decade; and densely where the two branches of the evaluation meet.
    everywhere, seam = (
        a * np.geomspace(1e-20, 20, 4001),
        (a + 8) * np.linspace(0.9999, 1.0001, 1001),
    )
    x = np.unique(float32([*everywhere, *seam]))
    got = call(gamma.log_cdf, x, float32(a), float32(1))
    # Two roundings of a sum of a few terms: 8 units in the last place.
    assert np.all(np.diff(got) >= -8 * EPS * np.maximum(1, np.abs(got[1:])))


def test_log_cdf_stays_right_far_below_underflow() -> None:
    a = float32(CONCENTRATIONS)[:, None]
    z = float32(a * np.geomspace(1e-30, 1, 40))
    want = exact_log_cdf(a, z)
    by_scipy = stats.gamma.logcdf(z.astype(np.float64), a.astype(np.float64))
    known = np.isfinite(by_scipy)
    assert want[known] == pytest.approx(by_scipy[known], rel=1e-9, abs=1e-11)
    assert want.min() < -300_000
    got = call(gamma.log_cdf, z, a, float32(1))
    assert got == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_cdf_falls_with_concentration() -> None:
    a = float32(np.geomspace(1, 5000, 2000))
    got = call(gamma.cdf, float32(math.log(101)), a, float32(12))
    assert np.all(np.diff(got) <= 1e-6)
    assert got[0] > 0.99 and got[-1] == 0


def test_arguments_broadcast_whatever_was_called_before() -> None:
    x, a, rate = float32([0.7, 2, 5]), float32([1, 9, 200, 3000]), float32([10, 33])
    shapes = [
        ((3, 1, 1), (4, 1), (2,)),
        ((), (4,), (2, 1)),
        ((3, 1, 1), (4, 1), (2,)),
    ]
    for x_shape, a_shape, rate_shape in shapes:
        arguments = [
            v[: reduce(operator.mul, shape, 1)].reshape(shape)
            for v, shape in ((x, x_shape), (a, a_shape), (rate, rate_shape))
        ]
        for f in (gamma.cdf, gamma.log_cdf, gamma.log_pdf):
            got = call(f, *arguments)
            assert got.shape == np.broadcast_shapes(x_shape, a_shape, rate_shape)
            one_by_one = [
                f(*map(mx.array, point)).item() for point in np.nditer(arguments)
            ]
            assert got.ravel() == pytest.approx(one_by_one, rel=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.int32])
def test_results_are_float32_whatever_goes_in(dtype: mx.Dtype) -> None:
    x, a, rate = (mx.array(v, dtype=dtype) for v in (3, 30, 10))
    wide = [v.astype(mx.float32) for v in (x, a, rate)]
    for f in (gamma.cdf, gamma.log_cdf, gamma.log_pdf):
        got = f(x, a, rate)
        assert got.dtype == mx.float32
        assert got.item() == f(*wide).item()


def log_pdf_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = [1e-3, 0.3, 0.9999, 1, 7.9999, 8, 5000, *np.geomspace(2e-3, 4000, 24)]
    rate = np.geomspace(1e-2, 500, 25)
    x = np.log1p(BUDGETS)
    return float32(x)[:, None, None], float32(a)[:, None], float32(rate)


def test_log_pdf_is_right() -> None:
    x, a, rate = log_pdf_grid()
    want = stats.gamma.logpdf(*map(np.float64, (x, a)), scale=1 / np.float64(rate))
    got = call(gamma.log_pdf, x, a, rate)
    # A sum of a few terms no larger than its value, or of order 10: 1e-5 is 80 EPS.
    assert np.all(np.abs(got - want) <= 1e-5 * np.maximum(1, np.abs(want)))


def test_log_pdf_by_hand() -> None:
    # Gamma(1, 2): 2 exp(-2x). Gamma(3, 2): 4 x^2 exp(-2x).
    got = call(gamma.log_pdf, float32([1.5, 1.5]), float32([1, 3]), float32(2))
    want = [math.log(2) - 3, math.log(4 * 1.5**2) - 3]
    assert got == pytest.approx(want, abs=1e-6)


def test_gradient_of_log_pdf_is_right() -> None:
    x, a, rate = log_pdf_grid()
    shape = np.broadcast_shapes(x.shape, a.shape, rate.shape)
    by_a, by_rate = mx.grad(
        lambda a, rate: gamma.log_pdf(mx.array(x), a, rate).sum(), argnums=(0, 1)
    )(mx.broadcast_to(mx.array(a), shape), mx.broadcast_to(mx.array(rate), shape))
    x, a, rate = map(np.float64, (x, a, rate))
    want = np.log(rate * x) - special.digamma(a)
    # Terms of size rate x / a cancel: that times EPS is left over.
    error = np.abs(np.array(by_a) - want)
    assert np.all(error <= 1e-5 * np.maximum(1, np.abs(want)) + 4 * EPS * rate * x / a)
    want = a / rate - x
    error = np.abs(np.array(by_rate) - want)
    assert np.all(error <= 1e-5 * np.maximum(1, np.abs(want)))


def gradients(
    x: float | np.ndarray, a: np.ndarray, rate: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of log_pdf, by concentration and by rate, in float64."""
    x, a, rate = (float32(v) for v in np.broadcast_arrays(x, a, rate))
    found = mx.grad(
        lambda a, rate: gamma.log_pdf(mx.array(x), a, rate).sum(), argnums=(0, 1)
    )(mx.array(a), mx.array(rate))
    by_a, by_rate = (np.array(g).astype(np.float64) for g in found)
    return by_a, by_rate


@pytest.mark.parametrize("rate", [1e-2, 1, 30, 500, 1e4])
@pytest.mark.parametrize("length", [1, 100, 1_000_000])
def test_gradient_of_log_pdf_is_finite(rate: float, length: int) -> None:
    # The smallest concentration of the golden checkpoint is 1.8e-20; softplus gives 0
    # far below 0.
    a = float32([0, 1e-45, *np.geomspace(1e-38, 1e6, 200)])
    x = math.log1p(length)
    assert np.isfinite(call(gamma.log_pdf, float32(x), a, float32(rate))).all()
    assert np.isfinite(gradients(x, a, rate)).all()


def test_gradient_of_log_pdf_is_right_from_tiny_to_huge_concentrations() -> None:
    around_1 = [1 - EPS / 2, 1, 1 + EPS]
    a = float32([2e-38, 1e-30, 1e-20, 1e-8, 1e-3, 0.5, *around_1, 1.5, 30, 1e4, 1e6])
    x = float32(np.log1p(BUDGETS))[:, None]
    by_a, by_rate = gradients(x, a, 30)
    a, x = np.float64(a), np.float64(x)
    want = np.log(30 * x) - special.digamma(a)
    assert by_a == pytest.approx(want, rel=1e-5, abs=1e-5 + 4 * EPS * 30 * x.max())
    assert by_rate == pytest.approx(a / 30 - x, rel=1e-5, abs=1e-5)


def test_log_pdf_and_its_gradient_do_not_jump_at_a_concentration_of_1() -> None:
    a = float32(1 + np.arange(-40, 41) * EPS)
    x, rate = float32([4.6, 0.2])
    values = call(gamma.log_pdf, x, a, rate)
    by_a, _ = gradients(x, a, rate)
    x, a, rate = map(np.float64, (x, a, rate))
    want = stats.gamma.logpdf(x, a, scale=1 / rate)
    assert values == pytest.approx(want, rel=0, abs=1e-5)
    want = np.log(rate * x) - special.digamma(a)
    assert by_a == pytest.approx(want, rel=0, abs=1e-5)


def test_mode_by_hand() -> None:
    a, rate = mx.array([3.0, 1.0, 0.5, 11.0]), mx.array([4.0, 2.0, 2.0, 0.5])
    assert gamma.mode(a, rate).tolist() == [0.5, 0.0, 0.0, 20.0]


def test_mode_is_where_the_density_is_highest() -> None:
    a, rate = float32([1.5, 8, 300]), float32(20)
    mode = call(gamma.mode, a, rate)
    there = call(gamma.log_pdf, float32(mode), a, rate)
    assert np.all(there > call(gamma.log_pdf, float32(mode * 0.98), a, rate))
    assert np.all(there > call(gamma.log_pdf, float32(mode * 1.02), a, rate))


QUANTILE_CONCENTRATIONS = float32([0.3, 1, 1.0001, 8, 77.7, 900, 5000])[:, None]
NEAR_0 = float32([1e-37, 1e-30, 1e-12, 1e-6])
MIDDLE = float32([1e-3, 0.1, 0.5, 0.9, 0.999])
NEAR_1 = float32([1 - 1e-5, 1 - 1e-6, 1 - EPS, 1 - EPS / 2])


@pytest.mark.parametrize("rate", [0.25, 16])
def test_quantile_is_right(rate: float) -> None:
    q, a = np.concatenate([NEAR_0, MIDDLE]), QUANTILE_CONCENTRATIONS
    got = call(gamma.quantile, q, a, float32(rate))
    want = stats.gamma.ppf(*map(np.float64, (q, a)), scale=1 / rate)
    normal = want * min(1, rate) > FLOAT32.tiny
    # An error of 1e-6 in the tail of 1e-3 beyond the last q moves x by 1e-3 / rate.
    assert got[normal] == pytest.approx(want[normal], rel=1e-4, abs=1e-3 / rate)
    low = normal & (q < 0.5)
    assert low.sum() >= 30
    # log(rate x) is found to one unit in its last place, 7.6e-6 at log(1e-30).
    assert got[low] == pytest.approx(want[low], rel=1e-5, abs=0)
    # The others, of concentrations up to 1 with tiny q, are too small for float32.
    assert np.all(got[~normal] * min(1, rate) <= FLOAT32.tiny)


@pytest.mark.parametrize("q", [*NEAR_0, *MIDDLE, *NEAR_1])
def test_quantile_inverts_cdf(q: np.float32) -> None:
    a, rate = QUANTILE_CONCENTRATIONS[1:], float32(25)
    x = call(gamma.quantile, q, a, rate)
    got = call(gamma.cdf, float32(x), a, rate)
    # log(rate x) is found to one unit in the last place of log(5000), 9.5e-7, which
    # moves the probability by at most 9.5e-7 sqrt(5000 / 2 pi), relative to q by at
    # most 5000 times 9.5e-7.
    assert got == pytest.approx(np.full_like(got, q), abs=3e-5)
    assert got == pytest.approx(np.full_like(got, q), rel=5e-3)


@pytest.mark.parametrize("q", NEAR_1)
def test_quantile_near_1_is_large_but_finite(q: np.float32) -> None:
    a, rate = QUANTILE_CONCENTRATIONS, 25
    got = call(gamma.quantile, q, a, float32(rate))
    # A probability is known to 1e-6: x is between the quantiles that far from q, and
    # not far above the last x that float32 can tell from certainty.
    a = a.astype(np.float64)
    assert np.all(got >= stats.gamma.isf(1 - float(q) + 1e-6, a, scale=1 / rate))
    assert np.all(got <= stats.gamma.isf(1e-9, a, scale=1 / rate))


def test_quantile_takes_numbers_and_broadcasts() -> None:
    # The median of Gamma(1, rate) is log(2) / rate.
    got = gamma.quantile(0.5, mx.ones((2, 1)), mx.array([1.0, 10.0, 20.0]))
    assert got.shape == (2, 3)
    want = [math.log(2), math.log(2) / 10, math.log(2) / 20]
    assert np.array(got) == pytest.approx(np.array([want, want]), rel=1e-5)
