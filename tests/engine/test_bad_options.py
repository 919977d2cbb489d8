"""Options that are not allowed: refused before anything is drawn, without a trace."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_budget import (
    batch_generate,
    estimate,
    load,
    make_budget_sampler,
    stream_generate,
)
from mlx_budget.engine import draws
from mlx_budget.engine.draws import EndOfReply, TokenDraw
from mlx_budget.engine.fields import keywords_of
from mlx_budget.engine.settings import Sampling, ThinkingBudget
from mlx_budget.engine.thinking import find_markers

QUESTION = "What is 7 + 1?"
V = 640
LIMIT = 8


@pytest.fixture(scope="module")
def model():
    return load("demo")


@pytest.fixture(scope="module")
def prompt(model):
    return model[1].apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )


def reply(model, prompt, **options) -> list[int]:
    options = {"predictor": model[2], "max_tokens": LIMIT, **options}
    return [r.token for r in stream_generate(*model[:2], prompt, **options)]


def batch(model, prompt, **options) -> list[list[int]]:
    options = {"predictor": model[2], "max_tokens": LIMIT, **options}
    found = batch_generate(*model[:2], [prompt, prompt[:-2]], **options)
    return [r.tokens for r in found.replies]


BAD = [
    ({"top_k": V}, f"top_k has to be an integer in the range from 1 to {V - 1}"),
    ({"top_k": 10**6}, "top_k has to be an integer"),
    ({"top_k": -1}, "top_k must be 0 or more"),
    ({"top_k": 2.5}, "top_k must be an integer"),
    ({"top_k": np.float64(5)}, "top_k must be an integer"),
    ({"top_k": True}, "top_k must be an integer"),
    ({"min_p": 0.1, "min_tokens_to_keep": V}, "min_tokens_to_keep has to be"),
    ({"min_tokens_to_keep": 0}, "min_tokens_to_keep must be 1 or more"),
    ({"min_p": 2.0}, "min_p must be 0 to 1"),
    ({"min_p": float("nan")}, "min_p must be 0 to 1, not nan"),
    ({"min_p": "x"}, "min_p must be a number, not 'x'"),
    ({"top_p": 1.5}, "top_p must be 0 to 1"),
    ({"xtc_probability": 0.5, "xtc_threshold": 0.7}, "xtc_threshold must be 0 to 0.5"),
    ({"xtc_probability": 1.5}, "xtc_probability must be 0 to 1"),
    (
        {"xtc_probability": 0.5, "xtc_special_tokens": [V]},
        f"xtc_special_tokens has to be tokens from 0 to {V - 1}; not {V}",
    ),
    (
        {"xtc_probability": 0.5, "xtc_special_tokens": [3, 10**9]},
        f"from 0 to {V - 1}; not 1,000,000,000",
    ),
    ({"xtc_special_tokens": [-1]}, "xtc_special_tokens must be token ids"),
    ({"xtc_special_tokens": ["a"]}, "xtc_special_tokens must be token ids"),
    ({"xtc_special_tokens": [1.5]}, "xtc_special_tokens must be token ids"),
    ({"xtc_special_tokens": 5}, "xtc_special_tokens must be token ids.*not 5"),
    ({"temp": float("inf")}, "temp must be finite and 0 or more"),
    ({"temp": "1"}, "temp must be finite"),
    ({"temp": 1e-40}, "temp must be 0 or at least 1e-30, not 1e-40"),
    ({"seed": -1}, "seed must be 0 to"),
    ({"seed": 1.5}, "seed must be an integer"),
    ({"max_tokens": 0}, "max_tokens must be 1 or more, or -1"),
    ({"max_tokens": -2}, "max_tokens must be 1 or more, or -1"),
    ({"max_tokens": "9"}, "max_tokens must be 1 or more, or -1"),
    ({"prefill_step_size": 0}, "prefill_step_size must be 1 or more"),
    ({"max_kv_size": 0}, "max_kv_size must be 1 or more"),
    ({"thinking_budget": 9.0}, "thinking_budget must be an integer"),
    ({"hard_stop": 0.5}, "hard_stop must be a factor"),
    ({"thinking_budget_message": 5}, "thinking_budget_message must be a text, not 5"),
    ({"thinking_budget_message": "\ud800"}, "thinking_budget_message has half of a"),
    ({"thinking_start": 5}, "thinking_start must be a text, not 5"),
]


@pytest.fixture(scope="module")
def drawn_before(model, prompt) -> dict:
    """What is drawn with the seed 5 before anything was refused."""
    found = {}
    for run in (reply, batch):
        mx.random.seed(5)
        found[run] = run(model, prompt, temp=1.0, thinking_budget=20)
    return found


@pytest.mark.parametrize(("run", "budget"), [(reply, 0), (reply, 20), (batch, 20)])
@pytest.mark.parametrize(("options", "message"), BAD)
def test_a_bad_option_is_refused_and_harms_no_later_call(
    model, prompt, drawn_before, run, options, message, budget
):
    drawn = []

    def count(tokens, logits):
        drawn.append(1)
        return logits

    options = {"thinking_budget": budget, "temp": 1.0, **options}
    with pytest.raises(ValueError, match=message):
        run(model, prompt, logits_processors=[count], **options)
    # What depends on the vocabulary is known with the first step alone.
    assert len(drawn) <= 2
    mx.random.seed(5)
    assert run(model, prompt, temp=1.0, thinking_budget=20) == drawn_before[run]


def test_what_raises_within_a_draw_leaves_the_generator_as_it_was(model, monkeypatch):
    def make_failing_sampler(**options):
        def fail(logprobs):
            mx.random.uniform()
            raise RuntimeError("unlucky")

        return mx.compile(fail, inputs=mx.random.state, outputs=mx.random.state)

    monkeypatch.setattr(draws, "make_sampler", make_failing_sampler)
    for seed in (None, 3):
        mx.random.seed(5)
        draw = TokenDraw(Sampling(temp=1.0, seed=seed), model[1])
        with pytest.raises(RuntimeError, match="unlucky"):
            draw(mx.zeros((1, V)), 0)
        after = mx.random.uniform().item()
        mx.random.seed(5)
        assert mx.random.uniform().item() == after


def test_what_ends_a_reply_need_not_be_in_the_vocabulary(model):
    """As for a model whose head is smaller than its tokenizer."""
    tokenizer, small = model[1], 2
    assert max(tokenizer.eos_token_ids) >= small
    logprobs = mx.log(mx.array([[0.25, 0.75]]))
    options = {"temp": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.2}
    draw = TokenDraw(Sampling(**options), tokenizer)
    assert draw(logprobs, 0).item() in (0, 1)
    end = EndOfReply(tokenizer, find_markers(tokenizer))
    assert end.without(logprobs).tolist() == logprobs.tolist()
    assert end.or_close(mx.array([1], mx.uint32)).tolist() == [1]


NUMPY = {
    "thinking_budget": np.int64(6),
    "hard_stop": np.float32(1.5),
    "guidance_tolerance": np.float32(0.25),
    "temp": np.float32(0.5),
    "top_p": np.float32(0.5),
    "min_p": np.float64(0.25),
    "top_k": np.int32(5),
    "min_tokens_to_keep": np.uint8(2),
    "xtc_probability": np.float32(0.5),
    "xtc_threshold": np.float32(0.25),
    "xtc_special_tokens": np.array([1, 2]),
    "seed": np.uint64(2**63),
    "max_tokens": np.int64(7),
    "prefill_step_size": np.int16(4),
}


@pytest.mark.parametrize("run", [reply, batch])
def test_numbers_of_numpy_are_numbers(model, prompt, run):
    python = {name: value.tolist() for name, value in NUMPY.items()}
    assert run(model, prompt, **NUMPY) == run(model, prompt, **python)


def test_token_ids_of_numpy_are_a_prompt(model, prompt):
    want = reply(model, prompt, thinking_budget=6)
    for ids in (np.array(prompt), [np.int64(token) for token in prompt]):
        assert reply(model, ids, thinking_budget=6) == want


def test_a_batch_takes_numbers_of_numpy_for_each_prompt(model, prompt):
    want = batch(model, prompt, thinking_budget=[3, 5], seed=[1, 2], temp=1.0)
    for make in (np.array, mx.array, lambda v: [np.int64(x) for x in v]):
        options = {"thinking_budget": make([3, 5]), "seed": make([1, 2])}
        options |= {"max_tokens": make([LIMIT, LIMIT]), "batch_size": np.int8(2)}
        assert batch(model, prompt, temp=1.0, **options) == want
    with pytest.raises(ValueError, match="has 3 values for 2 prompts"):
        batch(model, prompt, seed=np.arange(3))


def test_settings_made_of_numpys_numbers_can_be_written_down():
    for cls in (ThinkingBudget, Sampling):
        names = keywords_of(cls())
        given = {k: v for k, v in NUMPY.items() if k in names}
        fields = {"thinking_budget": "tokens"}
        value = cls(**{fields.get(k, k): v for k, v in given.items()})
        assert json.loads(json.dumps(keywords_of(value))).keys() == names.keys()


def test_a_sampler_takes_them_as_well(model, prompt):
    options = {k: v for k, v in NUMPY.items() if k not in ("max_tokens",)}
    del options["prefill_step_size"]
    sampler = make_budget_sampler(*model, prompt=prompt, **options)
    assert sampler.budget == 6
    sampler.close()


@pytest.mark.parametrize("ids", [[10**9], [V], [5, -1], [2**40]])
def test_tokens_that_there_are_not_are_refused(model, ids):
    ask = (
        lambda: reply(model, ids),
        lambda: batch_generate(*model[:2], [ids], max_tokens=2),
        lambda: estimate(*model, ids),
    )
    for asked in ask:
        with pytest.raises(ValueError, match=f"those of the model are 0 to {V - 1}"):
            asked()


@pytest.mark.parametrize(
    "wrong",
    [
        [{"role": "user", "content": "x"}],
        mx.array([[5, 6]]),
        np.array([[5, 6]]),
        None,
        b"x",
        range(3),
        [1.5],
    ],
)
def test_prompts_of_another_kind_are_refused(model, wrong):
    with pytest.raises(ValueError, match="must be a text or token ids"):
        reply(model, wrong)


def test_prompts_may_come_one_by_one(model, prompt):
    found = batch_generate(
        *model[:2], (p for p in [prompt, prompt]), max_tokens=3, verbose=True
    )
    assert len(found.texts) == 2


@pytest.mark.parametrize("caches", [None, []])
def test_tokens_that_no_cache_holds_are_not_taken_for_read(model, prompt, caches):
    with pytest.raises(ValueError, match="holds 0 tokens"):
        reply(model, prompt, cached_tokens=5, prompt_cache=caches)
    with pytest.raises(ValueError, match="cached_tokens must be a whole number"):
        reply(model, prompt, cached_tokens=2.0)


def test_a_tokenizer_of_transformers_is_taken(model, prompt):
    wrapped = model[0], model[1], model[2]
    plain = model[0], model[1]._tokenizer, model[2]
    assert reply(plain, prompt) == reply(wrapped, prompt)
    assert estimate(*plain, prompt) == estimate(*model, prompt)


@pytest.mark.parametrize("size", [0, "x", 1.5])
def test_an_estimate_checks_its_step(model, prompt, size):
    with pytest.raises(ValueError, match="prefill_step_size"):
        estimate(*model, prompt, prefill_step_size=size)


@pytest.mark.parametrize("predictor", [5, True, ["a"]])
def test_what_is_no_predictor_is_refused(predictor):
    with pytest.raises(ValueError, match="predictor must be a folder"):
        load("demo", predictor=predictor)


def test_the_least_top_p_takes_the_likeliest_token(model, prompt):
    greedy = reply(model, prompt)
    assert reply(model, prompt, temp=1.0, top_p=1e-46, seed=1) == greedy
    assert reply(model, prompt, temp=1.0, top_p=1e-46, seed=2) == greedy
