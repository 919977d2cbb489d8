"""The fused kernel: its body compiled as C++ here, the real thing on a GPU."""

import ctypes
import os
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from scipy import special

from mlx_budget.method import gamma, guidance, kernels
from mlx_budget.method.guidance import GuidanceThresholds, Window

# What Metal and CUDA name otherwise: the rest of the source is the kernel's own.
CPP_DIALECT = """
#include <cmath>
#define BUDGET_FN static inline
#define BUDGET_INFINITY INFINITY
#define BUDGET_EXP expf
#define BUDGET_LOG logf
#define BUDGET_SQRT sqrtf
#define BUDGET_ABS fabsf
#define BUDGET_MIN fminf
#define BUDGET_MAX fmaxf
"""
ENTRIES = """
extern "C" void log_weights(
    const float* concentration_output, const float* rate_output,
    const float* log_most, const float* log_below, const float* settings,
    const unsigned* sizes, float* log_weight) {
  for (unsigned index = 0; index < sizes[0] + 3; ++index) {%s}
}
extern "C" void log_regularized_gamma(
    const float* a, const float* z, float* out, unsigned n) {
  for (unsigned i = 0; i < n; ++i) out[i] = budget_log_regularized_gamma(a[i], z[i]);
}
extern "C" void log_1m_exp(const float* d, float* out, unsigned n) {
  for (unsigned i = 0; i < n; ++i) out[i] = budget_log_1m_exp(d[i]);
}
extern "C" void softplus(const float* x, float* out, unsigned n) {
  for (unsigned i = 0; i < n; ++i) out[i] = budget_softplus(x[i]);
}
"""
TRUST_ALL = GuidanceThresholds(0, 0, 0)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> ctypes.CDLL:
    """The kernel's source, compiled as C++ without any licence to be inexact."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("kernel")
    source, library = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(CPP_DIALECT + kernels.FUNCTIONS + ENTRIES % kernels.BODY)
    strict = ["-O2", "-Wall", "-Wextra", "-Wdouble-promotion", "-Werror"]
    command = [compiler, "-shared", "-fPIC", *strict, "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def call(function, *inputs: np.ndarray) -> np.ndarray:
    """A C function over arrays of float32: inputs, output, size."""
    arrays = [np.ascontiguousarray(a, np.float32) for a in inputs]
    out = np.empty_like(arrays[0])
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*arrays, out)]
    function(*pointers, ctypes.c_uint(out.size))
    return out


def cpp_log_weights(compiled, concentration, rate, window, thresholds) -> np.ndarray:
    shape = concentration.shape
    if not isinstance(window, Window):
        window = Window(mx.array(np.asarray(window, np.float32)))
    bounds = (np.array(bound).reshape(-1) for bound in window.log_bounds())
    # A guard behind the end: no thread may write there, though the grid goes on.
    out = np.full(concentration.size + 3, 7.0, np.float32)
    inputs = (
        np.ascontiguousarray(concentration, np.float32),
        np.ascontiguousarray(rate, np.float32),
        *(np.ascontiguousarray(np.broadcast_to(b, shape[:1])) for b in bounds),
        np.array(kernels.kernel_settings(thresholds), np.float32),
        np.array([concentration.size, shape[1]], np.uint32),
        out,
    )
    compiled.log_weights(*(a.ctypes.data_as(ctypes.c_void_p) for a in inputs))
    assert (out[-3:] == 7).all()
    return out[:-3].reshape(shape)


def outputs(seed: int, shape=(4, 5000)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Head outputs around the budgets, over all concentrations the method can have."""
    rng = np.random.default_rng(seed)
    a = np.exp(rng.uniform(0, np.log(5000), shape))
    remaining = np.array([[1.0], [37], [2000], [1e6]])
    spread = np.maximum(1 + rng.uniform(-9, 9, shape) / np.sqrt(a), 0.01)
    rate = a * spread / np.log1p(remaining)
    return inverse_softplus(a), inverse_softplus(rate), remaining.astype(np.float32)


def inverse_softplus(y: np.ndarray) -> np.ndarray:
    return (y + np.log(-np.expm1(-y))).astype(np.float32)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x.astype(np.float64))


def scipy_weights(concentration, rate, remaining) -> np.ndarray:
    x = np.log1p(remaining.astype(np.float64))
    return special.gammainc(softplus(concentration), softplus(rate) * x)


def test_softplus_keeps_its_relative_accuracy(compiled):
    x = np.linspace(-80, 80, 20_001).astype(np.float32)
    # Three float32 operations, each right to an ulp or two.
    np.testing.assert_allclose(call(compiled.softplus, x), softplus(x), rtol=5e-7)


def test_the_body_agrees_with_scipy(compiled):
    concentration, rate, remaining = outputs(0)
    found = np.exp(cpp_log_weights(compiled, concentration, rate, remaining, TRUST_ALL))
    want = scipy_weights(concentration, rate, remaining)
    assert np.abs(found - want).max() <= 1e-5
    seen = want > 1e-6
    assert seen.sum() > 10_000
    assert (np.abs(found - want)[seen] / want[seen]).max() <= 1e-4


def test_the_body_agrees_with_plain_mlx(compiled):
    concentration, rate, remaining = outputs(1)
    for thresholds in (TRUST_ALL, GuidanceThresholds()):
        found = cpp_log_weights(compiled, concentration, rate, remaining, thresholds)
        want = plain(concentration, rate, remaining, thresholds)
        assert_same_log_weights(found, want)
        assert (found == -np.inf).any() and (found > -1).any()


def test_concentrations_below_1_count_where_no_threshold_keeps_them_out(compiled):
    # A predictor that knows some tokens has thresholds of 0, as the mode is here.
    rng = np.random.default_rng(7)
    a = np.exp(rng.uniform(np.log(0.01), 0, (4, 2000)))
    rate = np.exp(rng.uniform(np.log(0.01), np.log(10), a.shape))
    remaining = np.array([[1.0], [37], [2000], [1e6]], np.float32)
    pair = inverse_softplus(a), inverse_softplus(rate)
    found = cpp_log_weights(compiled, *pair, remaining, TRUST_ALL)
    assert (found > -np.inf).all()
    assert_same_log_weights(found, plain(*pair, remaining, TRUST_ALL))
    want = scipy_weights(*pair, remaining)
    assert np.abs(np.exp(found) - want).max() <= 1e-5
    for thresholds in (GuidanceThresholds(0, 1, 0), GuidanceThresholds(0, 0, 0.1)):
        found = cpp_log_weights(compiled, *pair, remaining, thresholds)
        assert (found == -np.inf).all()
        assert (plain(*pair, remaining, thresholds) == -np.inf).all()


def test_the_log_cdf_stays_right_where_the_cdf_underflows(compiled):
    a = np.exp(np.random.default_rng(2).uniform(0, np.log(5000), 20_000))
    z = a * np.random.default_rng(3).uniform(1e-4, 1.5, a.shape)
    a, z = a.astype(np.float32), z.astype(np.float32)
    found = call(compiled.log_regularized_gamma, a, z)
    want = np.array(gamma.log_cdf(mx.array(z), mx.array(a), mx.array(1.0)))
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)
    assert want.min() < -10_000


def windows(remaining: np.ndarray, share: float) -> Window:
    """One that begins at a share of what is left, in each row."""
    least = np.floor(share * remaining)
    return Window(mx.array(remaining), mx.array(least))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_windows_agree_with_plain_mlx_and_with_scipy(compiled, share):
    concentration, rate, remaining = outputs(8)
    window = windows(remaining, share)
    for thresholds in (TRUST_ALL, GuidanceThresholds()):
        found = cpp_log_weights(compiled, concentration, rate, window, thresholds)
        assert_same_windows(found, plain(concentration, rate, window, thresholds))
    found = cpp_log_weights(compiled, concentration, rate, window, TRUST_ALL)
    below = np.maximum(np.floor(share * remaining) - 1, 0)
    want = scipy_weights(concentration, rate, remaining)
    want -= scipy_weights(concentration, rate, below)
    assert np.abs(np.exp(found) - want).max() <= 1e-5
    # The first row has one token left, and so no floor.
    assert (
        found[0]
        == cpp_log_weights(
            compiled, concentration[:1], rate[:1], remaining[:1], TRUST_ALL
        )
    ).all()
    assert (found[1:] < guidance.LOG_OUTSIDE / 2).sum() > 300
    assert (found[1:] > -1).sum() > 100


def test_a_floor_alone_agrees_with_plain_mlx(compiled):
    concentration, rate, remaining = outputs(9)
    window = Window(least=mx.array(remaining))
    found = cpp_log_weights(compiled, concentration, rate, window, TRUST_ALL)
    assert_same_windows(found, plain(concentration, rate, window, TRUST_ALL))
    assert (found[0] == 0).all()  # neither floor nor ceiling


def test_one_ulp_of_difference_is_a_chance_and_none_is_none(compiled):
    """Bounds that are the same in float32 leave the published weight, second."""
    pair = np.array([[30.0, 45]]), np.array([[10.0, 10]])
    # log(2^31) and log(2^31 + 1) are one number.
    window = Window(2.0**31, 2.0**31)
    found = cpp_log_weights(compiled, *pair, window, TRUST_ALL)
    assert found == pytest.approx(np.full((1, 2), guidance.LOG_OUTSIDE))
    assert plain(*pair, window, TRUST_ALL) == pytest.approx(found)


def test_the_log_of_one_less_an_exponential_keeps_its_relative_accuracy(compiled):
    d = -np.exp(np.linspace(np.log(1e-7), np.log(90), 20_001)).astype(np.float32)
    found = call(compiled.log_1m_exp, d)
    want = np.log(-np.expm1(d.astype(np.float64)))
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=2.5e-7)


@pytest.mark.parametrize("extreme", [-1e30, -100.0, 0.0, 100.0, 1e6, 3e38])
def test_extreme_outputs_give_no_nan(compiled, extreme):
    others = np.array([-1e30, -100, -1, 0, 1, 12, 100, 1e6, 3e38], np.float32)
    first = np.full((1, others.size), extreme, np.float32)
    for pair in ((first, others[None]), (others[None], first)):
        for remaining in (1.0, 2.0e9):
            for window in (Window(remaining), Window(remaining, 0.9 * remaining)):
                found = cpp_log_weights(compiled, *pair, window, TRUST_ALL)
                assert not np.isnan(found).any()
                assert (found <= 0).all()
                assert not np.isnan(plain(*pair, window, TRUST_ALL)).any()


def test_not_a_number_is_not_trusted(compiled):
    pair = np.array([[np.nan, 100.0]]), np.array([[12.0, np.nan]])
    found = cpp_log_weights(compiled, *pair, np.array([[50.0]]), TRUST_ALL)
    assert (found == -np.inf).all()


def test_thresholds_by_hand(compiled):
    # softplus(30) = 30 to float32, so the outputs are the parameters themselves.
    concentration = np.array([[30.0, 30, 30, 19]])
    rate = np.array([[30.0, 20, 40, 30]])
    thresholds = GuidanceThresholds(min_rate=25, min_concentration=18, min_mode=1)
    # Modes in tokens: exp(29 / 30) - 1 = 1.6; not trusted at a rate of 20;
    # exp(29 / 40) - 1 = 1.06; exp(18 / 30) - 1 = 0.8.
    found = cpp_log_weights(
        compiled, concentration, rate, np.array([[3.0]]), thresholds
    )
    assert (found[0] > -np.inf).tolist() == [True, False, True, False]


def test_each_row_has_its_own_budget(compiled):
    concentration, rate, remaining = outputs(4, (4, 7))
    together = cpp_log_weights(compiled, concentration, rate, remaining, TRUST_ALL)
    for row in range(4):
        alone = cpp_log_weights(
            compiled,
            concentration[row : row + 1],
            rate[row : row + 1],
            remaining[row : row + 1],
            TRUST_ALL,
        )
        assert (together[row] == alone[0]).all()


@pytest.mark.parametrize(
    "window",
    [
        50,
        50.0,
        mx.array(50.0),
        mx.full((4, 1), 50.0),
        Window(50, 40),
        Window(least=mx.array([[0], [1], [40], [50]])),
        Window(mx.array([[30], [40], [50], [60]]), 20),
    ],
)
def test_the_wrapper_gives_the_kernel_what_it_names(compiled, monkeypatch, window):
    def kernel(inputs, grid, threadgroup, output_shapes, output_dtypes):
        named = dict(zip(kernels.INPUTS, map(np.array, inputs), strict=True))
        assert grid == (named["concentration_output"].size, 1, 1)
        assert threadgroup[0] <= grid[0]
        out = np.empty(grid[0] + 3, np.float32)
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (*named.values(), out)]
        compiled.log_weights(*pointers)
        assert output_dtypes == [mx.float32]
        return [mx.array(out[:-3]).reshape(output_shapes[0])]

    monkeypatch.setattr(kernels, "_kernel", lambda *_: kernel)
    concentration, rate, _ = outputs(5, (4, 9))
    pair = mx.array(concentration), mx.array(rate)
    found = kernels.log_weights(*pair, window, GuidanceThresholds())
    want = kernels.plain_log_weights(*pair, window, GuidanceThresholds())
    assert_same_windows(np.array(found), np.array(want))


def test_a_kernel_is_kept_for_each_type_and_size():
    """MLX keeps compiled kernels by name alone."""
    names = []

    def make(name, **_):
        names.append(name)
        return name

    for variant in ("float32_many_few", "bfloat16_many_few", "float32_many_few"):
        kernels._build(make, "", "", variant)
    assert len(set(names)) == len(names) == 2


@pytest.mark.metal
@pytest.mark.skipif(not mx.metal.is_available(), reason="needs a Mac with Metal")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_metal_kernel(dtype):
    assert mx.default_device() == mx.gpu
    check_on_gpu(dtype)


@pytest.mark.cuda
@pytest.mark.skipif(not mx.cuda.is_available(), reason="needs MLX with CUDA")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_cuda_kernel(dtype):
    assert mx.default_device() == mx.gpu
    check_on_gpu(dtype)


@pytest.mark.parametrize("dialect", [kernels._METAL_DIALECT, kernels._CUDA_DIALECT])
def test_every_dialect_defines_the_same_words(dialect):
    def words(text: str) -> set[str]:
        return {line.split()[1] for line in text.splitlines() if "#define" in line}

    assert words(dialect) == words(CPP_DIALECT)


def check_on_gpu(dtype: mx.Dtype) -> None:
    """`log_weights` on the default device against plain MLX on the CPU."""
    concentration, rate, remaining = outputs(6)
    pair = [mx.array(v).astype(dtype) for v in (concentration, rate)]
    found = kernels.log_weights(*pair, mx.array(remaining), TRUST_ALL)
    assert found.dtype == mx.float32
    with mx.stream(mx.cpu):
        want = kernels.plain_log_weights(*pair, mx.array(remaining), TRUST_ALL)
    assert_same_log_weights(np.array(found), np.array(want))
    window = windows(remaining, 0.9)
    found = kernels.log_weights(*pair, window, TRUST_ALL)
    with mx.stream(mx.cpu):
        want = kernels.plain_log_weights(*pair, window, TRUST_ALL)
    assert_same_windows(np.array(found), np.array(want))


def plain(concentration, rate, window, thresholds) -> np.ndarray:
    if not isinstance(window, Window):
        window = mx.array(window)
    pair = mx.array(concentration), mx.array(rate)
    return np.array(kernels.plain_log_weights(*pair, window, thresholds))


def assert_same_log_weights(
    found: np.ndarray, want: np.ndarray, slack: float = 0
) -> None:
    """Equal but for rounding, which may move a candidate across a threshold."""
    cut = guidance.LOG_SMALLEST_WEIGHT + 0.01
    agree = (found == -np.inf) == (want == -np.inf)
    assert (agree | (np.maximum(found, want) < cut)).mean() > 0.9999
    both = np.isfinite(found) & np.isfinite(want)
    # Each is within 2.5e-6 of the true probability (see test_gamma).
    np.testing.assert_allclose(found[both], want[both], rtol=2e-5, atol=5e-6 + slack)


def assert_same_windows(found: np.ndarray, want: np.ndarray) -> None:
    """As `assert_same_log_weights`, for differences of two such probabilities."""
    # What is outside has its published weight, to an ulp of 200.
    outside = guidance.LOG_OUTSIDE / 2
    agree = (found > outside) == (want > outside)
    assert agree.mean() > 0.999
    is_out = (found < outside) & (want < outside)
    if is_out.any():
        pair = (w[is_out] - np.float32(guidance.LOG_OUTSIDE) for w in (found, want))
        assert_same_log_weights(*pair, slack=2e-5)
    both = (found > outside) & (want > outside)
    assert np.abs(np.exp(found) - np.exp(want))[both].max(initial=0) <= 5e-6
    likely = both & (want > np.log(1e-3))
    np.testing.assert_allclose(found[likely], want[likely], atol=5e-3)
