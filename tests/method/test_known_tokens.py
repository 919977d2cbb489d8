"""A predictor that knows some tokens is one in which all others have no weight."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator

from mlx_budget import Predictor, estimate, make_budget_sampler
from mlx_budget.method import candidates, kernels
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.method.guidance import GuidanceThresholds, guided_logprobs
from mlx_budget.method.predictor import CONFIG_FILE, WEIGHTS_FILE
from mlx_budget.method.predictor_config import PredictorConfig
from tiny_predictor import TINY, hidden_states, make_tiny, tensors

KNOWN = [1, 4, 5, 10]
ANY = GuidanceThresholds(0, 0, 0)


def knowing(whole: Predictor, known: list[int], **changes) -> Predictor:
    """A predictor with the rows that another, which knows all, has for some tokens."""
    config = replace(whole.config, known_tokens=len(known), **changes)
    predictor, tokens = EncoderPredictor(config), mx.array(known, dtype=mx.int32)
    weights = tensors(whole)
    for name in ("concentration_head.weight", "rate_head.weight"):
        weights[name] = weights[name][tokens]
    return predictor.load_weights([*weights.items(), ("tokens", tokens)]).eval()


def unknown(vocab_size: int, known: list[int]) -> np.ndarray:
    return np.setdiff1d(np.arange(vocab_size), known)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_known_tokens_have_the_predictions_of_one_that_knows_all(dtype) -> None:
    whole = make_tiny(dtype)
    others = unknown(TINY.vocab_size, KNOWN)
    for ours, all_ in zip(
        knowing(whole, KNOWN)(hidden_states()), whole(hidden_states()), strict=True
    ):
        assert ours.shape == (2, TINY.vocab_size) and ours.dtype == mx.float32
        # Sums of 32 products, perhaps in another order.
        want = np.array(all_)[:, KNOWN]
        rounding = 4 * mx.finfo(dtype).eps
        np.testing.assert_allclose(np.array(ours)[:, KNOWN], want, rtol=rounding)
        assert (np.array(ours)[:, others] == 0).all()


@pytest.mark.parametrize("temp", [0, 0.5, 1.0])
def test_the_guided_distribution_is_that_with_no_weight_elsewhere(temp) -> None:
    whole = make_tiny()
    ours = knowing(whole, KNOWN)
    found, want = (
        kernels.log_weights(*p.head_outputs(p.encode(hidden_states())), 30, ANY)
        for p in (ours, whole)
    )
    assert found.shape == (2, len(KNOWN)) and (found > -mx.inf).any().item()
    found = ours.over_vocabulary(found, -mx.inf)
    want = mx.where(mx.array(np.isin(np.arange(TINY.vocab_size), KNOWN)), want, -mx.inf)
    logits = mx.array(np.random.default_rng(2).normal(0, 2, want.shape), mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    pair = [np.exp(np.array(guided_logprobs(logprobs, w, temp))) for w in (found, want)]
    np.testing.assert_allclose(*pair, atol=1e-5)
    assert (pair[0][:, unknown(TINY.vocab_size, KNOWN)] == 0).all()


def test_values_are_put_in_the_places_of_their_tokens() -> None:
    ours = knowing(make_tiny(), [2, 9])
    values = mx.array([[3.0, 4.0], [5.0, 6.0]])
    row = [7.0] * TINY.vocab_size
    want = [row.copy(), row.copy()]
    want[0][2], want[0][9], want[1][2], want[1][9] = 3, 4, 5, 6
    assert ours.over_vocabulary(values, 7.0).tolist() == want
    whole = mx.zeros((2, TINY.vocab_size))
    assert make_tiny().over_vocabulary(whole, 7.0) is whole


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_known_tokens_are_saved_and_quantised(tmp_path: Path, bits) -> None:
    ours = knowing(make_tiny(), KNOWN)
    if bits is not None:
        ours = ours.quantize(bits, group_size=32)
        assert "concentration_head.scales" in tensors(ours)
    ours.save(tmp_path)
    found = Predictor.load(tmp_path)
    assert found.config == ours.config and found.config.known_tokens == len(KNOWN)
    assert found.tokens.tolist() == KNOWN and found.tokens.dtype == mx.int32
    for a, b in zip(found(hidden_states()), ours(hidden_states()), strict=True):
        assert mx.array_equal(a, b)


def test_known_tokens_are_not_trained() -> None:
    ours = knowing(make_tiny(), KNOWN)
    ours.train()
    assert "tokens" in ours.parameters()
    assert "tokens" not in ours.trainable_parameters()


@pytest.mark.parametrize(
    "tokens",
    [
        mx.array([1, 5, 4, 10], mx.int32),
        mx.array([1, 4, 4, 10], mx.int32),
        mx.array([-1, 4, 5, 10], mx.int32),
        mx.array([1, 4, 5, 11], mx.int32),
        mx.array([1, 4, 5, 10], mx.int16),
        mx.array([1, 4, 5, 10], mx.uint32),
        mx.array([1, 4, 5, 10], mx.float32),
        mx.array([1, 4, 5, 10], mx.bfloat16),
    ],
    ids=str,
)
def test_known_tokens_must_be_ascending_ids(tmp_path: Path, tokens) -> None:
    ours = knowing(make_tiny(), KNOWN)
    ours.save(tmp_path)
    file = tmp_path / WEIGHTS_FILE
    mx.save_safetensors(str(file), {**tensors(ours), "tokens": tokens})
    with pytest.raises(ValueError) as e:
        Predictor.load(tmp_path)
    assert str(e.value) == (
        f"{file}: tokens must be different ids below 11, in ascending order, as int32."
    )


def test_tokens_and_configuration_must_agree(tmp_path: Path) -> None:
    ours = knowing(make_tiny(), KNOWN)
    ours.save(tmp_path)
    weights = {**tensors(ours), "tokens": ours.tokens[:3]}
    mx.save_safetensors(str(tmp_path / WEIGHTS_FILE), weights)
    with pytest.raises(ValueError, match=r"tokens has shape \(3,\), expected \(4,\)"):
        Predictor.load(tmp_path)
    ours.save(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["known_tokens"] == 4
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "known_tokens": None}))
    with pytest.raises(ValueError, match=r"shape \(4, 32\), expected \(11, 32\)"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "4"])
def test_an_invalid_number_of_known_tokens_is_refused(number) -> None:
    with pytest.raises(ValueError, match=f"known_tokens of a .* not {number!r}"):
        PredictorConfig("tiny", 64, 3, 11, known_tokens=number)


def test_no_more_tokens_are_known_than_there_are() -> None:
    with pytest.raises(ValueError, match="know 12 tokens of a vocabulary of 11"):
        replace(TINY, known_tokens=12)
    assert replace(TINY, known_tokens=11).known_tokens == 11


# In the sampler


def some_known(cases: dict[str, dict]) -> list[int]:
    """Every other of the tokens that the golden replies have at guided steps."""
    seen = {c["guided_tokens"][s] for c in cases.values() for s in c["guided_steps"]}
    return sorted(seen)[::2]


def replies(model, tokenizer, predictor, cases, **options) -> list[tuple[list, list]]:
    """Tokens and guided steps of each case, one after another."""
    found = []
    for case in cases:
        prompt = case["prompt_ids"]
        budget = {"prompt": prompt, "thinking_budget": case["budget"], **options}
        sampler = make_budget_sampler(model, tokenizer, predictor, **budget)
        tokens = [
            r.token
            for r in mlx_lm.stream_generate(
                model, tokenizer, prompt, sampler=sampler, max_tokens=40
            )
        ]
        sampler.close()
        steps = [step for step in sampler.guided_steps if step < len(tokens)]
        # All that it knows, and nothing else, is always evaluated.
        assert sampler.full_steps == sampler.guided_steps
        found.append((tokens, steps))
    return found


@pytest.mark.parametrize("temp", [0, 1.0])
def test_none_but_known_tokens_are_chosen_under_guidance(
    loaded, cases, monkeypatch, temp
) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES", 16)
    model, tokenizer, whole = loaded
    known = some_known(cases)
    mx.random.seed(0)
    ours = knowing(whole, known, thresholds=ANY)
    some = list(cases.values())[:6]
    found = replies(model, tokenizer, ours, some, temp=temp, hard_stop=None)
    chosen = {tokens[step] for tokens, steps in found for step in steps}
    assert len(chosen) > 1 and chosen <= set(known)
    # The other steps are the model's own.
    assert not {t for tokens, _ in found for t in tokens} <= set(known)


def test_without_any_probability_the_models_own_choice_is_taken(loaded, cases) -> None:
    model, tokenizer, whole = loaded
    nothing = GuidanceThresholds(min_rate=1e9)
    ours = knowing(whole, some_known(cases), thresholds=nothing)
    some = list(cases.values())[:3]
    for temp in (0, 1.0):
        found = replies(
            model, tokenizer, ours, some, temp=temp, hard_stop=None, top_k=1
        )
        for (tokens, steps), case in zip(found, some, strict=True):
            assert steps and tokens == case["plain_tokens"][:40]


def test_known_tokens_that_the_model_rules_out_stay_out() -> None:
    ours = knowing(make_tiny(), [2, 9])
    weights = ours.over_vocabulary(mx.zeros((1, 2)), -mx.inf)
    logprobs = mx.full((1, TINY.vocab_size), -2.0)
    logprobs[:, [2, 9]] = -mx.inf
    logprobs[:, 6] = -1.0
    assert mx.exp(guided_logprobs(logprobs, weights))[0, 6].item() == 1


def test_rows_of_a_batch_equal_single_requests(loaded, cases) -> None:
    model, tokenizer, whole = loaded
    ours = knowing(whole, some_known(cases), thresholds=ANY)
    some = list(cases.values())[::3]
    alone = replies(model, tokenizer, ours, some)
    generator = BatchGenerator(model)
    prompts = [case["prompt_ids"] for case in some]
    samplers = [
        make_budget_sampler(
            model, tokenizer, ours, prompt=prompt, thinking_budget=case["budget"]
        )
        for prompt, case in zip(prompts, some, strict=True)
    ]
    lengths = [len(tokens) for tokens, _ in alone]
    uids = generator.insert(prompts, lengths, samplers=samplers)
    together: dict[int, list[int]] = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for r in responses:
            together[r.uid].append(r.token)
    generator.close()
    for sampler in samplers:
        sampler.close()
    assert [together[uid] for uid in uids] == [tokens for tokens, _ in alone]


def test_an_estimate_is_for_the_likeliest_known_token(loaded, cases) -> None:
    model, tokenizer, whole = loaded
    case = cases["p0_b40"]
    prompt, own = case["prompt_ids"], case["plain_tokens"][0]
    logits = model(mx.array([prompt]))[0, -1]
    order = mx.argsort(-logits).tolist()
    assert order[0] == own
    known = sorted(order[3:9])
    found = estimate(model, tokenizer, knowing(whole, known, thresholds=ANY), prompt)
    assert found.token == order[3]
    assert found.trusted
    known = sorted([own, *known])
    found = estimate(model, tokenizer, knowing(whole, known, thresholds=ANY), prompt)
    expected = estimate(model, tokenizer, whole, prompt)
    assert found.token == own
    assert found.concentration == pytest.approx(expected.concentration, rel=1e-4)
    assert found.rate == pytest.approx(expected.rate, rel=1e-4)


def test_another_models_predictor_is_refused_by_its_vocabulary(loaded, cases) -> None:
    model, tokenizer, whole = loaded
    config = knowing(whole, [1, 2, 3]).config
    other = EncoderPredictor(replace(config, vocab_size=449))
    with pytest.raises(ValueError, match="a vocabulary of 449, and this model has 448"):
        estimate(model, tokenizer, other, cases["p0_b40"]["prompt_ids"])
