"""The same numbers on the GPU of a Mac as on its CPU."""

import mlx.core as mx
import numpy as np
import pytest
from scipy import special

from golden_run import golden_run
from mlx_budget.method import gamma

pytestmark = [
    pytest.mark.metal,
    pytest.mark.skipif(not mx.metal.is_available(), reason="needs a Mac with Metal"),
]


def test_the_gamma_cdf_on_metal():
    rng = np.random.default_rng(0)
    a = np.exp(rng.uniform(0, np.log(5000), 100_000)).astype(np.float32)
    x = np.log(1 + 10 ** rng.uniform(0, 6, a.shape)).astype(np.float32)
    spread = 1 + rng.uniform(-8, 8, a.shape) / np.sqrt(a)
    rate = (a * np.abs(spread) / x).astype(np.float32)
    with mx.stream(mx.gpu):
        found = np.array(gamma.cdf(mx.array(x), mx.array(a), mx.array(rate)))
    want = special.gammainc(a.astype(float), rate.astype(float) * x.astype(float))
    assert np.abs(found - want).max() <= 1e-5
    seen = want > 1e-6
    assert (np.abs(found - want)[seen] / want[seen]).max() <= 1e-4


@pytest.mark.parametrize("i", range(12))
def test_golden_tokens_on_metal(loaded, golden, i):
    assert mx.default_device() == mx.gpu
    tokens, _ = golden_run(loaded, golden.cases[i])
    assert tokens == golden.cases[i]["guided_tokens"]
