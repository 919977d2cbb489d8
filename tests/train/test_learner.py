"""What is trained: its losses against SciPy, its first guess, and what it exports."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from scipy import stats

from mlx_budget.method.guidance import GuidanceThresholds
from mlx_budget.method.predictor import ReplyProgress
from mlx_budget.method.predictor_config import PredictorConfig
from mlx_budget.train.baselines import fit_gamma
from mlx_budget.train.learner import Learner

TOKENS = np.array([3, 8, 20, 21, 47], np.int32)
NOTHING_CERTAIN = np.zeros(len(TOKENS), int)
CONFIG = PredictorConfig(
    base_model="tiny",
    model_width=24,
    model_layers=3,
    vocab_size=50,
    width=32,
    layers=2,
    heads=4,
    intermediate=64,
    known_tokens=len(TOKENS),
    thresholds=GuidanceThresholds(0, 0, 0),
)
RARE = 4  # the row of the token that comes twice


def draw(n: int = 200) -> tuple[mx.array, np.ndarray, np.ndarray]:
    """States that tell the length, rows of the next tokens, lengths of 5 to 500.

    The last token comes twice, and the lengths are 2 then.
    """
    rng = np.random.default_rng(0)
    x = rng.uniform(np.log(5), np.log(500), n)
    states = rng.normal(0, 1, (n, CONFIG.model_layers + 1, CONFIG.model_width))
    states[..., 0] += 2 * (x[:, None] - x.mean())
    rows, lengths = rng.integers(0, RARE, n), np.exp(x).astype(np.int32)
    rows[[20, 70]], lengths[[20, 70]] = RARE, 2
    return mx.array(states, dtype=mx.float32), rows, lengths


@pytest.fixture(scope="module")
def data():
    return draw()


def make(data, seed: int = 0) -> Learner:
    _, rows, lengths = data
    mx.random.seed(seed)
    return Learner(CONFIG, TOKENS, TOKENS[rows], lengths)


def batch(data, chosen=None) -> tuple[mx.array, mx.array, mx.array]:
    states, rows, lengths = data
    chosen = np.arange(len(rows)) if chosen is None else chosen
    return states[mx.array(chosen)], mx.array(rows[chosen]), mx.array(lengths[chosen])


def train(learner: Learner, data, steps: int, rate: float = 2e-3) -> list[float]:
    """The loss before each of some updates."""
    optimizer, losses = optim.Adam(rate), []
    rng = np.random.default_rng(1)
    step = nn.value_and_grad(learner, lambda *b: learner.losses(*b).mean())
    for _ in range(steps):
        loss, gradients = step(*batch(data, rng.choice(len(data[1]), 32)))
        optimizer.update(learner, gradients)
        mx.eval(learner.trainable_parameters(), optimizer.state)
        losses.append(loss.item())
    return losses


def without_states(learner: Learner) -> Learner:
    """The same, blind to hidden states: nothing but a constant is left of them."""
    norm = learner.predictor.layers[-1].output_norm
    norm.weight = mx.zeros_like(norm.weight)
    return learner


def medians(learner: Learner, data, rows) -> np.ndarray:
    """Predicted median lengths if these tokens came next."""
    states = data[0]
    outputs = learner.outputs(states, mx.array(np.broadcast_to(rows, len(states))))
    a, rate = (np.array(v, np.float64) for v in outputs)
    return np.expm1(stats.gamma.ppf(0.5, a, scale=1 / rate))


@pytest.mark.parametrize("updates", [0, 5])
def test_losses_are_those_of_the_exported_predictor_by_scipy(data, updates):
    learner = make(data)
    train(learner, data, updates)
    states, rows, lengths = batch(data)
    predictor = learner.export(np.arange(len(TOKENS)), NOTHING_CERTAIN)
    places = np.arange(len(lengths)), TOKENS[np.array(rows)]
    a, rate = (np.array(v, np.float64)[places] for v in predictor(states))
    x = np.log1p(np.array(lengths, np.float64))
    want = -stats.gamma.logpdf(x, a, scale=1 / rate)
    # The rounding of float32 outputs of up to 300 weighs as much as they do.
    found = np.array(learner.losses(states, rows, lengths))
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)
    assert np.ptp(want) > 1


def test_the_exported_predictor_is_the_learner_for_the_tokens_it_knows(data):
    learner = make(data)
    train(learner, data, 5)
    known = np.array([0, 2, 4])
    predictor = learner.export(known, NOTHING_CERTAIN)
    assert predictor.config.known_tokens == 3
    assert predictor.tokens.tolist() == [3, 20, 47]
    assert predictor.tokens.dtype == mx.int32
    assert not predictor.training
    found = [np.array(v) for v in predictor(data[0])]
    for row in range(len(TOKENS)):
        want = learner.outputs(data[0], mx.full(len(data[0]), row, dtype=mx.int32))
        for ours, theirs in zip(found, want, strict=True):
            if row in known:
                np.testing.assert_allclose(ours[:, TOKENS[row]], theirs, rtol=1e-4)
            else:
                assert (ours[:, TOKENS[row]] == 0).all()


def test_an_exported_predictor_loads(data, tmp_path):
    predictor = make(data).export(np.array([1, 3]), np.array([0, 6, 0, 0, 0]))
    predictor.save(tmp_path)
    found = type(predictor).load(tmp_path)
    for a, b in zip(found(data[0][:4]), predictor(data[0][:4]), strict=True):
        assert mx.array_equal(a, b)


def test_a_certain_length_is_exported_and_the_closing_markers_stays_learnt(data):
    learner = make(data)
    certain = np.array([1, 6, 0, 0, 0])
    predictor = learner.export(np.arange(len(TOKENS)), certain)
    learnt = learner.export(np.arange(len(TOKENS)), NOTHING_CERTAIN)
    assert not learnt.config.has_certain_lengths
    for budget, share in ((5, 0), (6, 1)):
        weights = [
            np.exp(p.log_weights(p.outputs(p.encode(data[0]), ReplyProgress()), budget))
            for p in (predictor, learnt)
        ]
        np.testing.assert_allclose(weights[0][:, 1], share, atol=1e-3)
        others = [0, 2, 3, 4]
        np.testing.assert_array_equal(*(w[:, others] for w in weights))


def test_the_first_guess_is_a_gamma_for_each_token(data):
    learner = without_states(make(data))
    _, rows, lengths = data
    x = np.log1p(lengths.astype(np.float64))
    # Ten lengths of the whole set, at its 5 %, 15 % ... 95 % quantiles, besides.
    prior = np.quantile(x, np.arange(0.05, 1, 0.1))
    for row in range(len(TOKENS)):
        want = fit_gamma(np.concatenate([prior, x[rows == row]]))
        states = data[0][:5]
        found = learner.outputs(states, mx.full(5, row, dtype=mx.int32))
        for ours, theirs in zip(found, want, strict=True):
            # float32 sums of 32 products.
            np.testing.assert_allclose(ours, np.full(5, theirs), rtol=1e-5)


def test_one_length_makes_no_gamma_without_end(data):
    mx.random.seed(0)
    ones = np.ones(50, np.int32)
    learner = without_states(Learner(CONFIG, TOKENS, TOKENS[data[1][:50]], ones))
    for row in range(len(TOKENS)):
        a, rate = learner.outputs(data[0][:1], mx.array([row]))
        assert max(a.item(), rate.item()) == pytest.approx(300, rel=1e-4)
        assert a.item() / rate.item() == pytest.approx(np.log(2), rel=1e-4)


def test_initial_weights_are_the_seeds(data):
    one, same, other = (
        dict(tree_flatten(make(data, seed).parameters())) for seed in (0, 0, 1)
    )
    assert all(mx.array_equal(one[name], same[name]) for name in one)
    different = [n for n in one if not mx.array_equal(one[n], other[n])]
    assert "predictor.layers.0.query.weight" in different
    assert {"shared", "own", "predictor.cls"} <= set(different)


def test_the_heads_of_the_predictor_are_not_trained(data):
    names = {name for name, _ in tree_flatten(make(data).trainable_parameters())}
    assert {"shared", "own", "predictor.cls", "predictor.projection.bias"} <= names
    assert not {n for n in names if "head." in n or "tokens" in n}


@pytest.mark.parametrize("length", [1, 100_000])
def test_gradients_are_finite_for_extreme_lengths(data, length):
    learner = make(data)
    states, rows, _ = batch(data)
    lengths = mx.full(len(rows), length, dtype=mx.int32)
    for scale in (1.0, 1e-3, 30.0):
        learner.shared = make(data).shared * scale
        loss, gradients = nn.value_and_grad(
            learner, lambda *b: learner.losses(*b).mean()
        )(states, rows, lengths)
        assert np.isfinite(loss.item())
        for name, gradient in tree_flatten(gradients):
            assert mx.isfinite(gradient).all().item(), (name, scale)


def test_only_rows_of_the_batch_have_gradients(data):
    learner = make(data)
    chosen = np.flatnonzero(np.isin(data[1], [1, 3]))
    gradients = nn.value_and_grad(learner, lambda *b: learner.losses(*b).mean())(
        *batch(data, chosen)
    )[1]
    sizes = mx.abs(gradients["own"]).sum(axis=(0, 2))
    assert (sizes > 0).tolist() == [False, True, False, True, False]


def test_a_token_seen_twice_is_first_guessed_much_as_any(data):
    learner = without_states(make(data))
    rare = np.log(medians(learner, data, RARE)[0])
    common = np.log([medians(learner, data, row)[0] for row in range(RARE)])
    # Both of its lengths were 2, and those of the others are 5 to 500.
    assert 0 < common.mean() - rare < (common.mean() - np.log(2)) / 3


def test_a_token_seen_twice_follows_hidden_states_as_the_others_do(data):
    learner = make(data)
    train(learner, data, 100)
    rare = np.log(medians(learner, data, RARE))
    common = np.log(medians(learner, data, 0))
    # Its two lengths are the same: it has learned nothing of states by itself.
    assert np.corrcoef(rare, common)[0, 1] > 0.9
    assert np.ptp(rare) > 0.1


def test_training_lowers_the_loss_and_learns_the_lengths(data):
    learner = make(data)
    before = learner.losses(*batch(data)).mean().item()
    losses = train(learner, data, 100)
    after = learner.losses(*batch(data)).mean().item()
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5
    assert after < before - 0.5
    common = data[1] != RARE
    found = np.log(medians(learner, data, data[1]))[common]
    assert np.corrcoef(found, np.log(data[2])[common])[0, 1] > 0.8
