"""Guidance from the likeliest tokens alone: as good as from all, or not used."""

import math

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from golden_run import golden_batch, golden_run
from mlx_budget import make_budget_sampler
from mlx_budget.method import candidates, guidance, kernels
from tiny_predictor import hidden_states, make_tiny

V = 300


class Weights:
    """Log-weights (B, V), and which tokens of them were asked for."""

    def __init__(self, weights: np.ndarray):
        with np.errstate(divide="ignore"):
            self.all = mx.array(np.log(weights), dtype=mx.float32)
        self.asked: list[mx.array | None] = []

    def __call__(self, tokens: mx.array | None) -> mx.array:
        self.asked.append(tokens)
        if tokens is None:
            return self.all
        return mx.take_along_axis(self.all, tokens, axis=-1)

    @property
    def went_full(self) -> bool:
        return any(tokens is None for tokens in self.asked)


def guided(logprobs, weights: Weights, temp=1.0, tolerance=1e-3, k=4) -> mx.array:
    logprobs = logprobs if isinstance(logprobs, mx.array) else mx.array(logprobs)
    found = candidates.guided_logprobs(logprobs, weights, temp, tolerance, k)
    assert found.dtype == mx.float32 and found.shape == logprobs.shape
    return found


def distance(one: mx.array, other: mx.array) -> np.ndarray:
    """Total variation distance of each row, from log-probabilities."""
    one, other = (np.exp(np.array(x, np.float64)) for x in (one, other))
    return np.abs(one - other).sum(axis=-1) / 2


def draw(seed: int, rows: int = 1, spread: float = 3.0) -> tuple[mx.array, Weights]:
    """Log-probabilities, and weights of which a third is 0 and many are small."""
    rng = np.random.default_rng(seed)
    logits = mx.array(rng.normal(0, spread, (rows, V)), dtype=mx.float32)
    weights = 10.0 ** rng.uniform(-6, 0, (rows, V)) * (rng.random((rows, V)) < 2 / 3)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True), Weights(weights)


def test_the_bound_by_hand() -> None:
    # Z = 0.5 * 0.5 + 0.25 = 0.5 and M = 0.1 + 0.15 = 0.25: M / (Z + M) is a third.
    kept, left_out = mx.log(mx.array([[0.25, 0.25]])), mx.log(mx.array([[0.1, 0.15]]))
    bound = candidates.total_variation_bound(kept, left_out)
    assert bound.tolist() == [pytest.approx(1 / 3, rel=1e-6)]


def test_the_bound_is_1_without_weights_and_0_without_mass_left_out() -> None:
    none = mx.array([[-math.inf, -math.inf]])
    some = mx.log(mx.array([[0.2, 0.3]]))
    assert candidates.total_variation_bound(none, some).tolist() == [1]
    assert candidates.total_variation_bound(none, none).tolist() == [1]
    assert candidates.total_variation_bound(some, none).tolist() == [0]


def test_two_candidates_of_four_by_hand() -> None:
    # The candidates are 1 and 3, guided 0.5 * 0.2 = 0.1 and 0.3 * 1 = 0.3, and 0.2 is
    # left out: the bound is 0.2 / 0.6.
    logprobs = np.log([[0.15, 0.5, 0.05, 0.3]])
    w = [[0.4, 0.2, 1.0, 1.0]]
    weights = Weights(np.array(w))
    found = np.array(mx.exp(guided(logprobs, weights, tolerance=0.34, k=2)))
    assert found == pytest.approx(np.array([[0, 0.25, 0, 0.75]]), rel=1e-5)
    assert [sorted(t[0].tolist()) for t in weights.asked] == [[1, 3]]
    # Just below the bound all four count: 0.06, 0.1, 0.05 and 0.3 of 0.51.
    weights = Weights(np.array(w))
    found = np.array(mx.exp(guided(logprobs, weights, tolerance=0.33, k=2)))
    assert found == pytest.approx(np.array([[6, 10, 5, 30]]) / 51, rel=1e-5)
    assert weights.asked[1] is None and len(weights.asked) == 2


@pytest.mark.parametrize("temp", [0.3, 1.0, 2.0])
def test_the_distance_to_the_whole_vocabulary_is_within_bound_and_tolerance(temp):
    tolerance, full = 0.02, 0
    for seed in range(60):
        logprobs, weights = draw(seed, spread=[2, 4, 8][seed % 3])
        k = [4, 16, 64][seed // 3 % 3]
        found = guided(logprobs, weights, temp, tolerance, k)
        want = guidance.guided_logprobs(logprobs, weights.all, temp)
        others, best = mx.split(mx.argsort(logprobs, axis=-1), [V - k], axis=-1)
        kept, left_out = (
            mx.take_along_axis(logprobs / temp + w, t, axis=-1)
            for w, t in ((weights.all, best), (mx.zeros(V), others))
        )
        bound = candidates.total_variation_bound(kept, left_out).item()
        # float32's own error of log-probabilities of up to 46 / 0.3 is 1e-5 at most.
        assert weights.went_full == (bound > tolerance)
        if weights.went_full:
            full += 1
            assert mx.array_equal(found, want)
        else:
            assert distance(found, want)[0] <= bound + 1e-5
    # Both ways were taken.
    assert 0 < full < 60


@pytest.mark.parametrize("k", [1, 4, 32])
def test_at_temperature_0_the_token_is_that_of_the_whole_vocabulary(k):
    full = 0
    for seed in range(60):
        logprobs, weights = draw(seed, spread=[1, 4, 12][seed % 3])
        found = guided(logprobs, weights, temp=0, k=k)
        want = guidance.guided_logprobs(logprobs, weights.all, 0)
        assert mx.argmax(found).item() == mx.argmax(want).item()
        full += weights.went_full
    assert 0 < full < 60 or k == 1


def test_at_temperature_0_a_tie_with_a_token_left_out_asks_for_all() -> None:
    # Guided, token 3 has 0.4 * 0.5, token 0 has 0.2 * 1, and token 1 as much again: the
    # first of them is wanted, and neither 0 nor 1 need be among two candidates.
    logprobs = np.log([[0.2, 0.2, 0.2, 0.4]])
    weights = Weights(np.array([[1, 1, 0.5, 0.5]]))
    assert mx.argmax(guided(logprobs, weights, temp=0, k=2)).item() == 0
    assert weights.went_full


def test_at_temperature_0_equal_candidates_give_the_first_token() -> None:
    logprobs = np.log([[0.05, 0.4, 0.4, 0.05, 0.1]])
    weights = Weights(np.array([[1, 0.5, 0.5, 1, 1]]))
    assert mx.argmax(guided(logprobs, weights, temp=0, k=3)).item() == 1
    assert not weights.went_full


@pytest.mark.parametrize("temp", [0, 0.3, 1.0, 2.0])
def test_candidates_without_weights_ask_for_all(temp) -> None:
    logprobs = np.log([[0.1, 0.4, 0.2, 0.3]])
    weights = Weights(np.array([[0.5, 0, 1, 0]]))
    found = guided(logprobs, weights, temp, k=2)
    assert weights.went_full
    want = guidance.guided_logprobs(mx.array(logprobs), weights.all, temp)
    assert mx.array_equal(found, want)
    assert mx.argmax(found).item() == 2


@pytest.mark.parametrize("tolerance", [1e-3, 1])
@pytest.mark.parametrize("temp", [0, 0.3, 1.0, 2.0])
def test_without_any_weight_the_models_own_choice_is_certain(temp, tolerance) -> None:
    logprobs, weights = np.log([[0.1, 0.4, 0.2, 0.3]]), Weights(np.zeros((1, 4)))
    found = guided(logprobs, weights, temp, tolerance, k=2)
    assert mx.exp(found).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("temp", [0, 0.3, 1.0, 2.0])
def test_tokens_that_the_model_rules_out_stay_out(temp, k) -> None:
    with np.errstate(divide="ignore"):
        logprobs = np.log([[0, 0.75, 0, 0.25, 0]])
    weights = Weights(np.array([[1, 0.1, 1, 0.9, 1]]))
    found = guided(logprobs, weights, temp, k=k)
    want = guidance.guided_logprobs(mx.array(logprobs), weights.all, temp)
    assert np.array(mx.exp(found)) == pytest.approx(np.array(mx.exp(want)), abs=1e-6)
    assert mx.exp(found)[0, ::2].tolist() == [0, 0, 0]
    # Nothing possible is left out of two candidates. At a temperature of 0 it would
    # have to be less likely than 0.25 * 0.9, and a third candidate of 0 is.
    assert weights.went_full == (k < (2 if temp else 3))


@pytest.mark.parametrize(("tolerance", "k"), [(0, 4), (0.5, V), (1.0, V + 1)])
@pytest.mark.parametrize("temp", [0, 1.0])
def test_no_tolerance_or_no_fewer_candidates_than_tokens_asks_for_all(
    temp, tolerance, k
) -> None:
    logprobs, weights = draw(0)
    found = guided(logprobs, weights, temp, tolerance, k)
    assert weights.asked == [None]
    want = guidance.guided_logprobs(logprobs, weights.all, temp)
    assert mx.array_equal(found, want)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("temp", [0, 0.7])
def test_half_precision_logprobs_are_guided_in_float32(dtype, temp) -> None:
    logprobs, weights = draw(1, spread=8)
    half = logprobs.astype(dtype)
    found = guided(half, weights, temp, tolerance=0.1, k=64)
    assert not weights.went_full
    want = guidance.guided_logprobs(half, weights.all, temp)
    assert mx.argmax(found).item() == mx.argmax(want).item()
    assert temp == 0 or distance(found, want)[0] <= 0.1
    # Half precision would be off by 1e-3 and more.
    assert mx.exp(found).sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("temp", [0, 1.0])
def test_rows_have_their_own_candidates(temp) -> None:
    logprobs, weights = draw(2, rows=5, spread=8)
    found = guided(logprobs, weights, temp, tolerance=0.3, k=64)
    assert not weights.went_full
    want = guidance.guided_logprobs(logprobs, weights.all, temp)
    assert found.argmax(axis=-1).tolist() == want.argmax(axis=-1).tolist()
    if temp:
        assert distance(found, want).max() <= 0.3


def test_one_row_that_needs_all_tokens_has_them_for_every_row() -> None:
    logprobs, weights = draw(3, rows=3, spread=8)
    weights.all[1] = mx.where(logprobs[1] > -20, -mx.inf, 0.0)
    found = guided(logprobs, weights, k=32)
    assert weights.went_full
    assert mx.array_equal(found, guidance.guided_logprobs(logprobs, weights.all, 1.0))


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_head_outputs_of_candidates_are_those_of_the_vocabulary(dtype, bits) -> None:
    predictor = make_tiny(dtype)
    if bits is not None:
        predictor = predictor.quantize(bits, group_size=32)
    x = predictor.encode(hidden_states())
    tokens = mx.array([[3, 0, 10, 3], [7, 9, 1, 2]])
    found, full = predictor.head_outputs(x, tokens), predictor.head_outputs(x)
    for some, all_ in zip(found, full, strict=True):
        assert some.shape == (2, 4) and all_.shape == (2, 11)
        want = mx.take_along_axis(all_, tokens, axis=-1).astype(mx.float32)
        # Sums of 32 products in another order, rounded to the type at the end.
        error = mx.abs(some.astype(mx.float32) - want).max() / mx.abs(want).max()
        assert error.item() <= 4 * mx.finfo(dtype).eps


@pytest.mark.parametrize("count", [4, 16])
def test_few_candidates_give_the_golden_tokens(loaded, cases, monkeypatch, count):
    monkeypatch.setattr(candidates, "CANDIDATES", count)
    alone = cases["p0_b40"]
    assert golden_run(loaded, alone) == (alone["guided_tokens"], alone["guided_steps"])
    together = list(cases.values())
    expected = [(case["guided_tokens"], case["guided_steps"]) for case in together]
    assert golden_batch(loaded, together) == expected


@pytest.mark.parametrize("tolerance", [0, 1e-3])
def test_the_vocabulary_is_evaluated_where_it_must_be(
    loaded, cases, monkeypatch, tolerance
):
    monkeypatch.setattr(candidates, "CANDIDATES", 16)
    case = cases["p0_b200"]
    prompt = case["prompt_ids"]
    sampler = make_budget_sampler(
        *loaded,
        prompt=prompt,
        thinking_budget=200,
        hard_stop=None,
        guidance_tolerance=tolerance,
    )
    for _ in mlx_lm.stream_generate(*loaded[:2], prompt, sampler=sampler):
        pass
    sampler.close()
    full, guided_steps = set(sampler.full_steps), set(sampler.guided_steps)
    assert full == guided_steps if tolerance == 0 else full < guided_steps


@pytest.mark.parametrize("tolerance", [1e-3, 0.1])
def test_golden_probabilities_are_within_the_tolerance(loaded, golden_steps, tolerance):
    predictor = loaded[2]
    logits = mx.array(golden_steps["logits"])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    encodings = predictor.encode(mx.array(golden_steps["hidden"]))
    fast = 0
    for i, want in enumerate(golden_steps["probs"]):
        asked = []

        def log_weights(tokens, i=i, asked=asked):
            asked.append(tokens)
            outputs = predictor.head_outputs(encodings[i : i + 1], tokens)
            remaining = float(golden_steps["remaining"][i, 0])
            return kernels.log_weights(*outputs, remaining, predictor.config.thresholds)

        found = guided(logprobs[i : i + 1], log_weights, 1.0, tolerance, 64)
        fast += asked[-1] is not None
        # 1e-3 is how far the golden predictions themselves are reproduced.
        got = np.exp(np.array(found[0], np.float64))
        assert np.abs(got - want).sum() / 2 <= tolerance + 1e-3
    assert fast > 0


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, "x"])
def test_a_tolerance_out_of_range_is_refused(loaded, tolerance):
    options = {"thinking_budget": 9, "guidance_tolerance": tolerance}
    with pytest.raises(ValueError, match=f"guidance_tolerance.*{tolerance!r}"):
        make_budget_sampler(*loaded, prompt=[5], **options)
