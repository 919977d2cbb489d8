"""What lengths alone say: the likeliest Gamma distributions against SciPy."""

import math

import numpy as np
import pytest
from scipy import special, stats

from mlx_budget.train import baselines
from mlx_budget.train.baselines import (
    LEAST_COUNT,
    MAX_CONCENTRATION,
    fit_gamma,
    fit_tokens,
)


@pytest.mark.parametrize("concentration", [0.05, 0.7, 1, 4, 60, 3000])
def test_fit_gamma_is_the_maximum_likelihood_of_scipy(concentration: float) -> None:
    x = np.random.default_rng(1).gamma(concentration, 0.2, 2000)
    a, _, scale = stats.gamma.fit(x, floc=0)
    assert fit_gamma(x) == pytest.approx((a, 1 / scale), rel=1e-6)


def test_the_fit_of_two_samples_solves_the_equations_of_the_maximum() -> None:
    a, rate = fit_gamma(np.array([1.0, 3.0]))
    # The mean is 2, and the mean of the logs log(3) / 2.
    assert a / rate == pytest.approx(2, rel=1e-12)
    want = math.log(2) - math.log(3) / 2
    assert math.log(a) - special.digamma(a) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("x", [[3.0], [3.0] * 7, [3.0, 3.0 + 1e-12], [3.0, 3.01]])
def test_the_fit_of_equal_samples_is_narrow_but_finite(x: list[float]) -> None:
    a, rate = fit_gamma(np.array(x))
    assert a == MAX_CONCENTRATION
    assert a / rate == pytest.approx(3, rel=2e-3)


@pytest.mark.parametrize("x", [[], [1.0, 0.0], [1.0, -1.0], [math.nan], [math.inf]])
def test_what_no_gamma_gives_is_refused(x: list[float]) -> None:
    with pytest.raises(ValueError) as e:
        fit_gamma(np.array(x))
    assert str(e.value) == (
        "A Gamma distribution can be fitted to numbers above 0 alone."
    )


def test_digamma_and_trigamma_are_those_of_scipy() -> None:
    for a in np.geomspace(1e-6, 1e6, 97):
        assert baselines._digamma(a) == pytest.approx(special.digamma(a), rel=1e-12)
        assert baselines._trigamma(a) == pytest.approx(
            special.polygamma(1, a), rel=1e-12
        )


def test_a_token_seen_often_has_a_gamma_of_its_own_and_a_rare_one_that_of_all():
    rng = np.random.default_rng(3)
    tokens = np.repeat([4, 9], [30, LEAST_COUNT - 1])
    lengths = rng.integers(2, 90, len(tokens))
    found = fit_tokens(tokens, lengths)
    x = np.log1p(lengths)
    assert found.overall == pytest.approx(fit_gamma(x))
    a, rate = found.at(np.array([9, 4, 7]))
    own = fit_gamma(x[:30])
    assert own != pytest.approx(found.overall, rel=1e-3)
    assert (a[1], rate[1]) == pytest.approx(own)
    for place in (0, 2):  # rare, and never seen
        assert (a[place], rate[place]) == pytest.approx(found.overall)


def test_a_length_is_open_unless_the_token_always_came_with_the_same():
    often, rare = LEAST_COUNT, LEAST_COUNT - 1
    cases = {
        1: [7] * often,  # settled
        2: [7] * rare,  # may have been chance
        3: [1],  # closes thinking, by definition of L
        4: [7] * often + [8],
        5: [1, 1, 2],
    }
    tokens = np.repeat(list(cases), [len(v) for v in cases.values()])
    found = fit_tokens(tokens, np.concatenate(list(cases.values())))
    is_open = found.is_open(np.array([1, 2, 3, 4, 5, 99]))
    assert is_open.tolist() == [False, True, False, True, True, True]
