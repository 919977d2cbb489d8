"""Guidance on distributions small enough to compute by hand, and on golden steps."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import special

from mlx_budget.method.guidance import (
    GuidanceThresholds,
    guided_logprobs,
    length_to_log,
    log_to_length,
    log_weights,
)

TRUST_ALL = GuidanceThresholds(min_rate=0, min_concentration=0, min_mode=0)


def weights(
    concentration: list[float],
    rate: list[float],
    remaining: float,
    thresholds: GuidanceThresholds = TRUST_ALL,
) -> list[float]:
    """The weights of one row."""
    found = log_weights(
        mx.array([concentration]), mx.array([rate]), remaining, thresholds
    )
    assert found.dtype == mx.float32
    return mx.exp(found)[0].tolist()


def guided(logprobs: list[float], weights: list[float], temp: float) -> np.ndarray:
    """The guided probabilities of one row."""
    found = guided_logprobs(
        mx.array([logprobs]), mx.log(mx.array([weights])), temp=temp
    )
    assert found.dtype == mx.float32
    return np.array(mx.exp(found)[0])


def erlang_cdf(n: int, z: float) -> float:
    """Probability that a sum of n unit exponentials is at most z."""
    return 1 - math.exp(-z) * sum(z**k / math.factorial(k) for k in range(n))


def test_lengths_and_their_logs_by_hand() -> None:
    assert length_to_log(1).item() == pytest.approx(math.log(2))
    assert length_to_log(mx.array([[0], [9]])).tolist() == [
        [0],
        [pytest.approx(math.log(10))],
    ]
    assert log_to_length(mx.array(math.log(10))).item() == pytest.approx(9, rel=1e-6)
    assert log_to_length(length_to_log(1_000_000)).item() == pytest.approx(
        1e6, rel=1e-5
    )


def test_weights_of_a_vocabulary_of_4_by_hand() -> None:
    # With 1 token left, x = log 2 and Gamma(1, r) has z = r log 2, exp(-z) = 2^-r;
    # Gamma(2, r) at most x has probability 1 - (1 + z) exp(-z).
    got = weights([1, 1, 2, 2], [1, 3, 1, 3], remaining=1)
    want = [
        1 / 2,
        7 / 8,
        1 - (1 + math.log(2)) / 2,
        1 - (1 + 3 * math.log(2)) / 8,
    ]
    assert got == pytest.approx(want, rel=1e-5)


def test_weights_within_the_default_thresholds_by_hand() -> None:
    # Modes of exp(7 / 10) - 1 = 1.01, exp(19 / 20) - 1 = 1.59 and exp(2) - 1 = 6.4
    # tokens: the longer a candidate, the less it fits 3 tokens.
    got = weights([8, 20, 21], [10, 20, 10], 3, GuidanceThresholds())
    x = math.log(4)
    want = [erlang_cdf(8, 10 * x), erlang_cdf(20, 20 * x), erlang_cdf(21, 10 * x)]
    assert got == pytest.approx(want, rel=1e-4)
    assert want == sorted(want, reverse=True)


def test_weights_grow_with_the_budget() -> None:
    budgets = mx.array([[1.0], [10.0], [100.0], [10_000.0]])
    rows = mx.full((4, 1), 50.0), mx.full((4, 1), 12.0)
    got = np.array(mx.exp(log_weights(*rows, budgets)))[:, 0]
    want = [erlang_cdf(50, 12 * math.log(b + 1)) for b in (1, 10, 100, 10_000)]
    assert got == pytest.approx(np.array(want), rel=1e-4, abs=1e-6)
    assert np.all(np.diff(got) > 0)


def test_a_rate_below_its_threshold_gives_weight_0() -> None:
    thresholds = GuidanceThresholds(min_rate=10, min_concentration=0, min_mode=0)
    below = np.nextafter(np.float32(10), np.float32(0)).item()
    got = weights([9, 9, 9], [below, 10, 11], 5, thresholds)
    assert got[0] == 0
    assert got[1:] == pytest.approx(
        [erlang_cdf(9, 10 * math.log(6)), erlang_cdf(9, 11 * math.log(6))], rel=1e-4
    )


def test_a_concentration_at_its_threshold_gives_weight_0() -> None:
    thresholds = GuidanceThresholds(min_rate=0, min_concentration=1, min_mode=0)
    above = np.nextafter(np.float32(1), np.float32(2)).item()
    got = weights([0.5, 1, above], [12, 12, 12], 5, thresholds)
    assert got[:2] == [0, 0]
    assert got[2] == pytest.approx(1, abs=1e-5)


def test_a_mode_below_its_threshold_gives_weight_0() -> None:
    # exp((a - 1) / 10) - 1 is 0.9 for a = 1 + 10 log(1.9).
    thresholds = GuidanceThresholds(min_rate=0, min_concentration=0, min_mode=0.9)
    a = 1 + 10 * math.log(1.9)
    got = weights([a - 1e-4, a + 1e-4], [10, 10], 5, thresholds)
    assert got[0] == 0
    assert got[1] == pytest.approx(special.gammainc(a, 10 * math.log(6)), rel=1e-4)


def test_a_mode_at_its_threshold_is_trusted() -> None:
    thresholds = GuidanceThresholds(min_rate=0, min_concentration=0, min_mode=0)
    assert thresholds.trust(mx.array([1.0, 0.5]), mx.array(3.0)).tolist() == [True] * 2


@pytest.mark.parametrize(
    ("concentration", "rate", "trusted"),
    [
        (7.4186, 10, True),
        (7.4185, 10, False),  # its mode is 0.89999 tokens
        (9, 9.9999, False),
        (1, 10, False),
        (1e30, 10, True),
        (0, 0, False),
    ],
)
def test_the_default_thresholds_are_those_of_the_paper(
    concentration: float, rate: float, trusted: bool
) -> None:
    defaults = GuidanceThresholds()
    assert vars(defaults) == {"min_rate": 10, "min_concentration": 1, "min_mode": 0.9}
    found = defaults.trust(mx.array(float(concentration)), mx.array(float(rate)))
    assert found.item() is trusted


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["min_rate", "min_concentration", "min_mode"])
def test_thresholds_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError) as e:
        GuidanceThresholds(**{name: value})
    assert str(e.value) == f"{name} must be finite and >= 0, not {value}."


@pytest.mark.parametrize("value", [None, "10", True, [10]])
def test_invalid_thresholds_are_refused(value: object) -> None:
    with pytest.raises(ValueError) as e:
        GuidanceThresholds(min_rate=value)
    assert str(e.value) == f"min_rate must be a number, not {value!r}."


def test_weights_below_the_smallest_normal_float32_are_0() -> None:
    # With 1 token left and rate 10, each step in concentration divides the weight by
    # about nine: from 2e-32 at 57 to 7e-45 at 70.
    a = np.arange(57, 71)
    want = special.gammainc(a, 10 * math.log(2))
    # In logs, since MLX's exp would flush the small ones to 0 in any case.
    got = log_weights(mx.array(a[None]), mx.array([[10.0]]), 1)
    visible = want >= np.finfo(np.float32).tiny
    assert 0 < visible.sum() < len(a)
    got = np.array(got, np.float64)[0]
    assert (got > -np.inf).tolist() == visible.tolist()
    assert np.exp(got)[visible] == pytest.approx(want[visible], rel=1e-4, abs=0)


def test_a_row_without_weights_is_certain_of_the_models_own_choice() -> None:
    logprobs = np.log([0.1, 0.2, 0.4, 0.3]).tolist()
    for temp in (0, 0.5, 1, 3):
        assert guided(logprobs, [0, 0, 0, 0], temp).tolist() == [0, 0, 1, 0]


def test_a_row_whose_weights_all_meet_impossible_tokens_is_certain_too() -> None:
    logprobs = [-math.inf, math.log(0.25), math.log(0.75), -math.inf]
    assert guided(logprobs, [1, 0, 0, 0.5], 1.0).tolist() == [0, 0, 1, 0]


def test_impossible_tokens_stay_impossible() -> None:
    logprobs = [-math.inf, math.log(0.75), math.log(0.25), -math.inf]
    for temp in (0, 0.1, 1, 10):
        got = guided(logprobs, [1, 1e-30, 1e-30, 1], temp)
        assert got[0] == got[3] == 0
        assert got.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temp", [0.3, 0.6, 1, 2.5])
def test_guidance_multiplies_the_distribution_at_the_temperature(temp: float) -> None:
    logits = np.array([2.0, -1.0, 0.5, 1.5, -3.0])
    w = np.array([0.01, 1.0, 0.5, 0.0, 1e-20])
    logprobs = logits - np.log(np.exp(logits).sum())
    hot = np.exp(logits / temp) / np.exp(logits / temp).sum()
    want = hot * w / (hot * w).sum()
    got = guided(logprobs.tolist(), w.tolist(), temp)
    # The roundings of logits / T and of the weight's log, up to 46, come to 1e-5.
    assert got == pytest.approx(want, rel=1e-5)
    assert got[3] == 0


def test_temperature_0_wants_the_argmax_of_probability_times_weight() -> None:
    # 0.5 * 0.3 < 0.3 * 0.6 > 0.2 * 0.7; dividing the log-probabilities by a small
    # temperature would choose the first, as the model would.
    logprobs, w = np.log([0.5, 0.3, 0.2]), [0.3, 0.6, 0.7]
    got = guided(logprobs.tolist(), w, 0)
    assert got == pytest.approx(np.array([0.15, 0.18, 0.14]) / 0.47, rel=1e-5)
    assert got.argmax() == 1
    assert guided(logprobs.tolist(), w, 0.1).argmax() == 0


def test_guidance_does_not_depend_on_the_scale_of_weights() -> None:
    logprobs = np.log([0.5, 0.25, 0.25]).tolist()
    small = guided(logprobs, [0, 1e-37, 3e-37], 1.0)
    assert small == pytest.approx(np.array([0, 0.25, 0.75]), rel=2e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logprobs_are_guided_in_float32(dtype: mx.Dtype) -> None:
    logprobs = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]])).astype(dtype)
    w = mx.log(mx.array([[0.2, 0.3, 0.0, 1.0]]))
    got = guided_logprobs(logprobs, w, temp=0.7)
    assert got.dtype == mx.float32
    assert mx.array_equal(got, guided_logprobs(logprobs.astype(mx.float32), w, 0.7))
    # Half precision would be off by 1e-3 and more.
    assert mx.exp(got).sum().item() == pytest.approx(1, abs=1e-6)


def golden_guided(steps: dict[str, np.ndarray], rows: slice | list[int]) -> np.ndarray:
    logits = mx.array(steps["logits"][rows])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    found = log_weights(
        *(mx.array(steps[name][rows]) for name in ("alpha", "lam", "remaining"))
    )
    return np.array(mx.exp(guided_logprobs(logprobs, found)))


def test_golden_probabilities_are_reproduced(
    golden_steps: dict[str, np.ndarray],
) -> None:
    got, want = golden_guided(golden_steps, slice(None)), golden_steps["probs"]
    assert got.shape == want.shape == (72, 448)
    likely = want > 1e-6
    assert got[likely] == pytest.approx(want[likely], rel=1e-3)
    assert got[~likely].max() < 1.001e-6
    assert np.array_equal(got.argmax(axis=1), want.argmax(axis=1))


def test_rows_do_not_touch_each_other(golden_steps: dict[str, np.ndarray]) -> None:
    # Every seventh of the rows, with budgets left from 1 to 1000, in another order.
    rows = list(range(70, -1, -7))
    assert len(set(golden_steps["remaining"][rows].ravel())) > 4
    together = golden_guided(golden_steps, rows)
    for i, row in enumerate(rows):
        alone = golden_guided(golden_steps, [row])
        assert together[i] == pytest.approx(alone[0], rel=1e-5, abs=1e-12)


def test_a_row_without_weights_leaves_the_others_alone() -> None:
    logprobs = mx.log(mx.array([[0.25, 0.75], [0.25, 0.75]]))
    w = mx.log(mx.array([[0.0, 0.0], [0.9, 0.1]]))
    got = np.array(mx.exp(guided_logprobs(logprobs, w)))
    assert got == pytest.approx(np.array([[0, 1], [0.75, 0.25]]), abs=1e-6)


def test_one_budget_serves_every_row() -> None:
    rows = mx.array([[30.0, 40.0], [25.0, 60.0]]), mx.array([[10.0, 12.0]] * 2)
    by_number = log_weights(*rows, 50)
    by_row = log_weights(*rows, mx.array([[50], [50]]))
    assert mx.array_equal(by_number, by_row)
    assert by_number.shape == (2, 2)
