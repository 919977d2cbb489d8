"""Whether predictions depend on the input: by hand, and dead and healthy predictors."""

import numpy as np
import pytest

from mlx_budget.train.collapse import LEAST_RESPONSE, has_collapsed, response


def found(means, tokens, lengths, concentration=50.0):
    a = np.full(len(means), concentration)
    return response(a, a / np.array(means), np.array(tokens), np.array(lengths))


def test_a_response_by_hand() -> None:
    # log(L + 1) is 1 or 3 times log(2): 1 times log(2) from the mean of its token.
    lengths = [1, 7, 1, 7]
    # The means of predictions are 0.1 from that of their token, whatever it is.
    assert found([2.0, 2.2, 5.0, 5.2], [4, 4, 9, 9], lengths) == pytest.approx(
        0.1 / np.log(2)
    )


def test_what_the_token_tells_is_no_response() -> None:
    assert found([2.0, 2.0, 5.0, 5.0], [4, 4, 9, 9], [1, 7, 1, 7]) == 0
    assert has_collapsed(found([2.0, 2.0, 5.0, 5.0], [4, 4, 9, 9], [1, 7, 1, 7]))


def test_rounding_is_no_response() -> None:
    rng = np.random.default_rng(0)
    means = (4.0 * (1 + 1e-7 * rng.normal(size=300))).astype(np.float32)
    assert has_collapsed(found(means, [1] * 300, rng.integers(1, 200, 300)))


def test_a_weak_predictor_has_not_collapsed() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, 30)
    x = np.log1p(lengths)
    # It explains a thousandth of the variance, and has thirty positions to show it.
    means = x.mean() + 0.03 * (x - x.mean())
    assert not has_collapsed(found(means, [1] * 30, lengths))
    assert found(means, [1] * 30, lengths) == pytest.approx(0.03)
    assert LEAST_RESPONSE < 0.03


def test_where_there_is_nothing_to_explain_nothing_is_said() -> None:
    for lengths in ([5, 5, 5], [1, 1, 1]):
        nothing = found([2.0, 2.0, 2.0], [4, 4, 4], lengths)
        assert nothing is None and not has_collapsed(nothing)
    assert found([2.0, 3.0], [4, 9], [5, 60]) is None
    assert found([], [], []) is None
    assert found([np.inf, 3.0], [4, 4], [5, 60]) is None
