"""Windows: the weight of ending between two bounds, and what guidance by it samples."""

import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import special, stats

from mlx_budget.method import guidance
from mlx_budget.method.guidance import (
    LOG_OUTSIDE,
    GuidanceThresholds,
    Window,
    guided_logprobs,
    log_event_weights,
    log_weights,
)

TRUST_ALL = GuidanceThresholds(min_rate=0, min_concentration=0, min_mode=0)


def weights(
    concentration: list[float], rate: list[float], window: Window, **thresholds: float
) -> np.ndarray:
    """The log-weights of one row."""
    trusted = GuidanceThresholds(**{**vars(TRUST_ALL), **thresholds})
    found = log_weights(mx.array([concentration]), mx.array([rate]), window, trusted)
    assert found.dtype == mx.float32
    return np.array(found, np.float64)[0]


def log_event(concentration: float, rate: float, low: float, high: float) -> float:
    """log P(low <= L <= high) in double precision, right in both tails."""
    z_low, z_high = rate * math.log(low), rate * math.log1p(high)
    lower = special.gammainc(concentration, [z_low, z_high])
    upper = special.gammaincc(concentration, [z_low, z_high])
    is_above = lower[0] > 0.5
    difference = upper[0] - upper[1] if is_above else lower[1] - lower[0]
    return math.log(difference)


def test_a_window_by_hand() -> None:
    # Gamma(1, r) is exponential: between log 3 and log 8 it has 3^-r - 8^-r.
    got = np.exp(weights([1, 1, 1], [1, 2, 3], Window(most=7, least=3)))
    want = [1 / 3 - 1 / 8, 1 / 9 - 1 / 64, 1 / 27 - 1 / 512]
    assert got == pytest.approx(want, rel=2e-5)


def test_a_window_of_two_erlang_terms_by_hand() -> None:
    # P(Gamma(2, 1) <= x) is 1 - (1 + x) exp(-x).
    got = np.exp(weights([2], [1], Window(most=9, least=5)))
    assert got == pytest.approx(
        [(1 + math.log(5)) / 5 - (1 + math.log(10)) / 10], rel=2e-5
    )


def test_lengths_that_are_certain_are_in_a_window_or_not() -> None:
    # A Gamma as narrow as this, 0.0055 wide, is at log(L + 1) = 3, L = 19.1.
    a, rate = 3e5, 1e5
    got = [
        math.exp(weights([a], [rate], Window(most, least))[0])
        for most, least in ((18, 1), (20, 18), (25, 21), (20, 0), (math.inf, 19))
    ]
    assert got == pytest.approx([0, 1, 0, 1, 1], abs=1e-3)


@pytest.mark.parametrize("least", [0, 1, mx.array(1.0), mx.array([[0], [1]])])
@pytest.mark.parametrize("most", [1, 7, 90.0, 100_000])
def test_without_a_floor_it_is_the_published_weight_bit_for_bit(most, least) -> None:
    rng = np.random.default_rng(0)
    rate = mx.array(rng.uniform(8, 30, (2, 500)), dtype=mx.float32)
    concentration = rate * mx.array(rng.uniform(0, 8, (2, 500)), dtype=mx.float32)
    got = log_weights(concentration, rate, Window(most, least))
    want = log_weights(concentration, rate, most)
    assert mx.array_equal(got, want)
    assert -mx.inf < got.max().item() and got.min().item() == -mx.inf


def test_a_floor_alone_leaves_the_upper_tail() -> None:
    # Of an exponential variable above log 40: 40^-r.
    window = Window(least=40)
    got = weights([1, 1, 1], [0.5, 1, 2], window)
    assert got == pytest.approx(-math.log(40) * np.array([0.5, 1, 2]), rel=1e-4)
    assert weights([1e4], [10], window) == pytest.approx([0], abs=1e-6)


def test_everything_is_within_a_window_without_bounds() -> None:
    assert weights([1, 50, 1e4, 1e8], [10] * 4, Window()).tolist() == [0] * 4


@pytest.mark.parametrize("high", [20, 90, 1000, 20_000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_windows_are_right_in_both_tails(high: int, share: float) -> None:
    """Where float32 probabilities would underflow, or their difference vanish."""
    low = math.floor(share * high)
    rate = np.array([10.0, 15, 20, 40])[:, None]
    middle = math.log(0.95 * high)
    spread = np.linspace(0.5, 2, 31)[None]
    a, rate = np.broadcast_arrays(np.float32(rate * middle * spread), np.float32(rate))
    got = np.array(log_weights(mx.array(a), mx.array(rate), Window(high, low)))
    want = np.vectorize(log_event)(a.astype(np.float64), rate, low, high)
    seen = want > guidance.LOG_SMALLEST_WEIGHT + 1
    assert seen.sum() > 60 and want[seen].min() < -30
    # Three roundings of float32 in a difference that is a tenth of its terms or less,
    # 2e-6 / 0.01, and its tails, which log_cdf has to 1e-4 and less.
    likely = want > math.log(1e-6)
    assert np.abs(got - want)[likely].max() < 2e-3
    assert np.abs(got - want)[seen].max() < 2e-2


def test_candidates_outside_the_window_come_second_by_their_published_weight() -> None:
    # Narrow distributions at L = 19 and 400 tokens, a window from 100 to 200.
    a, rate = [3e4, 6e4], [1e4, 1e4]
    got = weights(a, rate, Window(most=200, least=100))
    assert got[0] == pytest.approx(LOG_OUTSIDE)
    assert got[1] == -math.inf  # too long for the published weight too
    # Beside a candidate with any chance they have none.
    logprobs = mx.log(mx.array([[0.999, 0.001]]))
    some = mx.array([[LOG_OUTSIDE, -87.0]])
    assert mx.exp(guided_logprobs(logprobs, some)).tolist() == [[0, 1]]
    # Among themselves they are as the model has them, where all are short enough.
    both = mx.array([[LOG_OUTSIDE, LOG_OUTSIDE]])
    assert mx.exp(guided_logprobs(logprobs, both)).tolist() == [
        pytest.approx([0.999, 0.001], rel=1e-4)
    ]


def test_thresholds_hold_within_a_window() -> None:
    window = Window(most=50, least=5)
    a = [10 * math.log(20)] * 2
    got = weights(a, [9.99, 10], window, min_rate=10)
    assert got[0] == -math.inf and got[1] > -1


def test_each_row_has_its_own_window() -> None:
    rows = mx.array([[30.0, 45]] * 4), mx.array([[10.0, 10]] * 4)
    most, least = mx.array([[30], [60], [60], [1e9]]), mx.array([[20], [1], [50], [40]])
    together = np.array(log_weights(*rows, Window(most, least), TRUST_ALL))
    for row in range(4):
        alone = weights([30, 45], [10, 10], Window(most[row].item(), least[row].item()))
        assert together[row] == pytest.approx(alone, rel=1e-6)
    # One bound for all rows, and one for each.
    mixed = np.array(log_weights(*rows, Window(100, least), TRUST_ALL))
    assert mixed[0] == pytest.approx(weights([30, 45], [10, 10], Window(100, 20)))


@pytest.mark.parametrize(
    ("most", "least"), [(0, 0), (5, 6), (math.nan, 0), (9, math.nan), (-1, -2)]
)
def test_windows_that_no_length_can_meet_are_refused(most, least) -> None:
    with pytest.raises(ValueError, match=f"not at {most} for one that begins at"):
        Window(most, least)


class Chain:
    """Thinking as a Markov chain of lines, the law of whose length is known exactly.

    Token 0 is the closing marker; each other token opens a line of so many tokens, the
    rest of which follow by themselves.
    """

    lines = np.array([1, 1, 3, 7, 2])
    # From each line to the next.
    steps = np.array(
        [
            [1, 0, 0, 0, 0],
            [0.30, 0.20, 0.30, 0.10, 0.10],
            [0.15, 0.25, 0.20, 0.25, 0.15],
            [0.05, 0.10, 0.30, 0.50, 0.05],
            [0.60, 0.00, 0.00, 0.40, 0.00],
        ]
    )
    start = np.array([0, 0.4, 0.3, 0.3, 0])
    longest = 4000

    def __init__(self) -> None:
        # Row n: the chance of each candidate that exactly n tokens are to come.
        law = np.zeros((self.longest + 1, 5))
        law[1, 0] = 1
        for n in range(2, self.longest + 1):
            for token in range(1, 5):
                after = n - self.lines[token]
                if after >= 1:
                    law[n, token] = self.steps[token] @ law[after]
        self.law = law
        self.cdf = np.cumsum(law, axis=0)

    def log_weights(self, window: Window) -> mx.array:
        """What `guidance.log_weights` gives for a predictor that is exact."""
        most = int(min(window.most, self.longest))
        below = min(max(int(window.least) - 1, 0), self.longest)
        with np.errstate(divide="ignore"):
            logs = np.log(np.minimum(self.cdf[[most, below]], 1))
        at_most, shorter = mx.array(logs.astype(np.float32))
        if not window.has_floor:
            return at_most[None]
        return log_event_weights(at_most, shorter, mx.array(True))[None]

    def guided(self, line: int | None, used: int, low: int, high: float) -> np.ndarray:
        """The guided choice of a line, both bounds counted down."""
        logs = self.start if line is None else self.steps[line]
        with np.errstate(divide="ignore"):
            logprobs = mx.array(np.log(logs), dtype=mx.float32)[None]
        if low - used > 1:
            logprobs[:, 0] = -mx.inf  # as the engine has it: the close has L = 1
        window = Window(max(high - used, 1), low - used)
        guided = guided_logprobs(logprobs, self.log_weights(window))
        return np.array(mx.exp(guided), np.float64)[0]

    def guided_law(self, low: int, high: float) -> np.ndarray:
        """The law of the whole length under guidance, exactly."""
        law = np.zeros(self.longest + 1)
        reached = {(None, 0): 1.0}
        while reached:
            state = min(reached, key=lambda s: s[1])
            chance, (line, used) = reached.pop(state), state
            for token, p in enumerate(self.guided(line, used, low, high)):
                after = used + int(self.lines[token])
                if token == 0:
                    law[after] += chance * p
                elif chance * p > 1e-12:
                    assert after < 300
                    key = (token, after)
                    reached[key] = reached.get(key, 0) + chance * p
        return law

    def true_law(self, low: int, high: float) -> np.ndarray:
        """The model's own law, conditioned on the window."""
        law = self.law @ self.start
        n = np.arange(len(law))
        law = np.where((n >= low) & (n <= high), law, 0)
        return law / law.sum()


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


@pytest.mark.parametrize(
    ("low", "high"), [(0, 12), (10, 12), (11, 11), (30, 40), (60, 66), (25, math.inf)]
)
def test_guidance_samples_the_models_law_given_the_window(chain, low, high) -> None:
    """Every length has its conditional probability, by summing over all replies."""
    want = chain.true_law(low, high)
    if high < math.inf:
        assert chain.guided_law(low, high) == pytest.approx(want, abs=1e-5)
    else:
        # With no ceiling replies go on: once the floor is reached, as the model has it.
        assert chain.guided(1, 25, low, high) == pytest.approx(chain.steps[1])
        assert chain.guided(1, 24, low, high) == pytest.approx(chain.steps[1])
        left = chain.steps[1] * (1 - chain.cdf[2])
        assert chain.guided(1, 22, low, high) == pytest.approx(left / left.sum())


def test_the_weights_of_a_reply_multiply_to_the_event(chain) -> None:
    """The h-transform: a reply's chance is that given the event, line by line."""
    reply, low, high = [3, 2, 2, 4, 3, 0], 20, 30
    guided, own, used = 1.0, 1.0, 0
    for before, line in zip([None, *reply], reply, strict=False):
        guided *= chain.guided(before, used, low, high)[line]
        own *= chain.start[line] if before is None else chain.steps[before][line]
        used += int(chain.lines[line])
    assert used == 23
    law = chain.law @ chain.start
    assert guided == pytest.approx(own / law[low : high + 1].sum(), rel=1e-5)


def test_guided_frequencies_are_the_conditional_ones(chain) -> None:
    """4,000 replies: a false alarm is one in 10,000 for each other seed."""
    rng = np.random.default_rng(1)
    low, high, n = 15, 20, 4000
    choices: dict[tuple, np.ndarray] = {}
    lengths = []
    for _ in range(n):
        line, used = None, 0
        while line != 0:
            if (line, used) not in choices:
                choices[line, used] = chain.guided(line, used, low, high)
            p = choices[line, used]
            line = int(rng.choice(5, p=p / p.sum()))
            used += int(chain.lines[line])
        lengths.append(used)
    want = chain.true_law(low, high)[low : high + 1]
    found = np.bincount(lengths, minlength=high + 1)[low : high + 1]
    assert found.sum() == n
    assert stats.chisquare(found, n * want).pvalue > 1e-4


def test_a_floor_out_of_reach_leaves_the_models_own_lines(chain) -> None:
    """Only the close is certain here: it is not taken before the floor."""
    window = Window(most=3, least=3)
    logprobs = mx.log(mx.array([[0.9, 0.04, 0.06]]))
    # Both other lines end sooner, or later, than the window does.
    for at_most in (1.0, 0.5):
        log_most = mx.log(mx.array([[1.0, at_most, at_most]]))
        found = log_event_weights(log_most, log_most, mx.array(window.has_floor))
        logprobs[:, 0] = -mx.inf
        got = mx.exp(guided_logprobs(logprobs, found))[0].tolist()
        assert got == pytest.approx([0, 0.4, 0.6], rel=1e-4)
    # Where they cannot end in time either, the likeliest is certain, as published.
    never = mx.log(mx.array([[1.0, 0, 0]]))
    found = log_event_weights(never, never, mx.array(True))
    assert mx.exp(guided_logprobs(logprobs, found)).tolist() == [[0, 0, 1]]
