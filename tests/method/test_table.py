"""The table: a Gamma distribution for each token, from counts alone."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from mlx_budget import Predictor
from mlx_budget.method.guidance import Window
from mlx_budget.method.predictor import ReplyProgress
from mlx_budget.method.priors import PRIOR, make_prior
from mlx_budget.method.table import STAGES, LengthCounts, TablePredictor, stage_of

CLOSE, V = 9, 12
START = ReplyProgress()


def counted(*seen: tuple[int, int, int]) -> LengthCounts:
    """Of (token, thinking tokens before it, L)."""
    return LengthCounts.of(*(np.array(column) for column in zip(*seen, strict=True)))


def table(counts: LengthCounts, **options) -> TablePredictor:
    return TablePredictor("model", V, CLOSE, counts, **options)


def weights(predictor, window, progress=START) -> np.ndarray:
    outputs = predictor.outputs(None, progress)
    return np.exp(np.array(predictor.log_weights(outputs, window))[0])


def test_a_stage_doubles_the_length_of_the_one_before():
    assert stage_of(np.array([0, 1, 2, 3, 6, 7, 14, 15])).tolist() == [
        *(0, 1, 1, 2, 2, 3, 3, 4)
    ]
    assert stage_of(10**9) == STAGES - 1


def test_counts_add_up():
    whole = counted((3, 0, 5), (3, 4, 2), (1, 0, 9))
    parts = counted((3, 0, 5)) + counted((3, 4, 2), (1, 0, 9))
    assert whole.tokens.tolist() == parts.tokens.tolist() == [1, 3]
    np.testing.assert_allclose(whole.sums, parts.sums)
    assert whole.number == 3
    assert whole.sums[1, 1, 0] == pytest.approx(math.log(6))
    assert (LengthCounts.nothing() + whole).number == 3


def test_many_lengths_of_a_token_are_its_distribution():
    rng = np.random.default_rng(0)
    x = rng.gamma(40, 1 / 10, 4000)  # log(L + 1), mean 4 and variance 0.4
    lengths = np.expm1(x)
    other = np.full(4000, 30.0)
    seen = LengthCounts.of(
        np.repeat([3, 4], 4000), np.zeros(8000), np.concatenate([lengths, other])
    )
    found = weights(table(seen), 60)
    expected = stats.gamma.cdf(math.log(61), 40, scale=1 / 10)
    assert found[3] == pytest.approx(expected, abs=0.02)
    assert found[4] == pytest.approx(1, abs=0.01)


def test_lengths_fall_as_the_reply_goes_on():
    seen = counted(*[(3, 0, 100)] * 50, *[(3, 63, 20)] * 50)
    early, late = (weights(table(seen), 40, ReplyProgress(t))[3] for t in (0, 64))
    assert early < 0.05 and late > 0.95


def test_the_closing_marker_ends_thinking_for_sure():
    predictor = table(counted((3, 0, 50), (CLOSE, 7, 1)))
    assert weights(predictor, 1)[CLOSE] == pytest.approx(1, abs=1e-6)
    assert weights(predictor, Window(50, 1))[CLOSE] == pytest.approx(1, abs=1e-6)
    assert weights(predictor, Window(50, 2))[CLOSE] == 0


def test_a_token_seen_once_follows_all_others():
    seen = counted(*[(3, 0, 20)] * 40, (4, 0, 200))
    mean, _ = table(seen).moments(None)
    rare = mean[list(table(seen)._tokens).index(4), 0]
    assert math.log(21) < rare < 0.5 * (math.log(21) + math.log(201))


def test_unseen_tokens_share_one_distribution_and_are_not_ruled_out():
    predictor = table(counted(*[(3, 0, 20)] * 10, *[(4, 0, 60)] * 10))
    found = weights(predictor, 40)
    assert found[0] == found[1] == found[11]
    assert found[4] < found[0] < found[3]


def test_candidates_are_the_same_alone_and_among_all():
    predictor = table(counted((3, 0, 20), (4, 0, 60), (4, 2, 9)))
    candidates = mx.array([[4, 11, CLOSE]])
    some = predictor.outputs(None, ReplyProgress(2), candidates)
    every = predictor.outputs(None, ReplyProgress(2))
    for one, all_of in zip(some, every, strict=True):
        assert one.tolist() == [[all_of[0, t].item() for t in (4, 11, CLOSE)]]


def test_a_prior_is_in_units_of_the_budget():
    prior = make_prior("model", V, CLOSE, endings=(5,))
    assert not prior.knows_lengths
    for budget in (50, 5000):
        rest, end = (
            weights(prior, budget // 2, ReplyProgress(0, budget))[t] for t in (0, 5)
        )
        mean = math.log1p(PRIOR.share * budget)
        shape = mean**2 / PRIOR.deviation**2
        expected = stats.gamma.cdf(math.log(budget // 2 + 1), shape, scale=mean / shape)
        assert rest == pytest.approx(expected, abs=1e-3)
        assert end > 0.99


def test_what_was_seen_outweighs_a_prior():
    few, many = (counted(*[(3, 0, 400)] * n) for n in (1, 2000))
    progress = ReplyProgress(0, 50)
    weight = [
        weights(make_prior("model", V, CLOSE, counts=c), 50, progress)[3]
        for c in (few, many)
    ]
    assert weight[1] < 0.01 < weight[0]


def test_a_table_without_a_vocabulary_takes_that_of_its_model():
    prior = make_prior("model", None, CLOSE)
    prior.check_vocabulary(V)
    assert weights(prior, 5, ReplyProgress(0, 5)).shape == (V,)
    with pytest.raises(ValueError, match="a vocabulary of 12, and this model has 13"):
        prior.check_vocabulary(13)


def test_save_and_load(tmp_path):
    predictor = table(counted((3, 0, 20), (4, 0, 60), (4, 2, 9)))
    predictor.save(tmp_path)
    found = Predictor.load(tmp_path)
    assert isinstance(found, TablePredictor) and not found.reads_states
    for t in (0, 2):
        np.testing.assert_allclose(
            weights(found, 30, ReplyProgress(t)),
            weights(predictor, 30, ReplyProgress(t)),
            rtol=1e-5,
        )
    config = json.loads((tmp_path / "predictor_config.json").read_text())
    assert config["kind"] == "table" and config["base_model"] == "model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "tree"}, "of a kind 'tree' that this release does not read"),
        ({"format_version": 3}, "has the format version 3"),
        ({"vocab_size": 0}, "cannot have vocab_size = 0"),
        ({"closing": -1}, "cannot have closing = -1"),
        ({"vocab_size": 4}, "must be from 0 to 3, not 3 to 9"),
        ({"colour": 1}, "has an unknown key 'colour'"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path, changes, message):
    table(counted((3, 0, 20))).save(tmp_path)
    file = tmp_path / "predictor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        Predictor.load(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"sums": np.ones((3, 1, STAGES))}, "lacks the predictor tensor tokens"),
        (
            {"tokens": np.array([1, 2]), "sums": np.ones((3, 1, STAGES))},
            "expected .K,. and .3, K, 18.",
        ),
        (
            {"tokens": np.array([2, 1]), "sums": np.ones((3, 2, STAGES))},
            "in ascending order",
        ),
        (
            {"tokens": np.array([1]), "sums": np.full((3, 1, STAGES), np.nan)},
            "sums must be finite",
        ),
    ],
)
def test_damaged_counts_are_refused(tmp_path, tensors, message):
    table(counted((3, 0, 20))).save(tmp_path)
    types = {"tokens": mx.int32, "sums": mx.float32}
    arrays = {
        k: mx.array(v.astype(np.float32)).astype(types[k]) for k, v in tensors.items()
    }
    mx.save_safetensors(str(tmp_path / "predictor.safetensors"), arrays)
    with pytest.raises(ValueError, match=message):
        Predictor.load(tmp_path)
