"""The predicted thinking length at the first thinking token."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mlx_budget import estimate
from mlx_budget.engine.recorder import active_recorder
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.guidance import GuidanceThresholds


def test_it_reads_the_golden_prediction(loaded, golden):
    cases, arrays = golden
    for case in cases:
        found = estimate(*loaded, case["prompt_ids"])
        key = case["id"]
        assert found.token == case["plain_tokens"][0]
        alpha = arrays[f"{key}.alpha"][0, found.token]
        lam = arrays[f"{key}.lam"][0, found.token]
        assert found.concentration == pytest.approx(alpha, rel=1e-3)
        assert found.rate == pytest.approx(lam, rel=1e-3)
        gamma = stats.gamma(found.concentration, scale=1 / found.rate)
        for length, q in ((found.low, 0.1), (found.median, 0.5), (found.high, 0.9)):
            assert length == pytest.approx(math.expm1(gamma.ppf(q)), rel=1e-4)
        mode = math.expm1((found.concentration - 1) / found.rate)
        assert found.mode == pytest.approx(mode, rel=1e-4)
    assert active_recorder(loaded[0]) is None


def test_chunked_prefill_changes_nothing(loaded, golden):
    prompt = golden[0][0]["prompt_ids"]
    whole = estimate(*loaded, prompt)
    chunked = estimate(*loaded, prompt, prefill_step_size=5)
    assert np.isclose(whole.median, chunked.median, rtol=1e-3)


def test_the_block_is_opened_where_the_prompt_does_not(loaded, golden):
    prompt = golden[0][0]["prompt_ids"]
    assert prompt[-1] == 423
    before = list(prompt)
    assert estimate(*loaded, prompt[:-1]) == estimate(*loaded, prompt)
    assert prompt == before


def test_trust_follows_the_thresholds(loaded, golden):
    model, tokenizer, predictor = loaded
    prompt = golden.cases[0]["prompt_ids"]
    found = estimate(*loaded, prompt)
    concentration, rate, mode = found.concentration, found.rate, found.mode
    for thresholds, trusted in (
        (GuidanceThresholds(), rate >= 10 and concentration > 1 and mode >= 0.9),
        (GuidanceThresholds(0, 0, 0), True),
        (GuidanceThresholds(rate * 1.01, 0, 0), False),
        (GuidanceThresholds(0, concentration * 1.01, 0), False),
        (GuidanceThresholds(0, 0, mode * 1.01), False),
    ):
        other = EncoderPredictor(replace(predictor.config, thresholds=thresholds))
        other.update(predictor.parameters())
        assert estimate(model, tokenizer, other, prompt).trusted is trusted


@pytest.mark.parametrize("predictor", [None, False])
def test_a_predictor_is_needed(loaded, predictor):
    with pytest.raises(ValueError, match="--predictor"):
        estimate(loaded[0], loaded[1], predictor, [5])


def test_an_empty_prompt_is_refused(loaded):
    with pytest.raises(ValueError, match="prompt is empty"):
        estimate(*loaded, [])
