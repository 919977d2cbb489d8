"""Draft models: what is drafted changes no reply, or is refused."""

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlx_budget import load, stream_generate
from mlx_budget.engine.drafts import check_draftable
from tiny_models import LLAMA, build

WINDOW = 12
GEMMA = dict(LLAMA, sliding_window_pattern=2, sliding_window=WINDOW)
PROMPTS = [[(7 * s + 3 * i * i) % 50 for i in range(5)] for s in range(4)]


@pytest.fixture(scope="module")
def sliding():
    return build("gemma3_text", GEMMA)


def test_within_the_sliding_window_drafts_change_no_reply(sliding):
    draft = build("llama")
    length = WINDOW - 1 - len(PROMPTS[0])
    check_draftable(make_prompt_cache(sliding), len(PROMPTS[0]), length)
    for prompt in map(mx.array, PROMPTS):
        options = {"max_tokens": length}
        plain = [token for token, _ in generate_step(prompt, sliding, **options)]
        for drafted in (1, 3, 9):
            steps = speculative_generate_step(
                prompt, sliding, draft, num_draft_tokens=drafted, **options
            )
            assert [token for token, *_ in steps] == plain


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        (
            5,
            7,
            "the prompt has 5, and the reply may get 7. Set max_tokens to at most 6",
        ),
        (
            5,
            -1,
            "has no limit. Set max_tokens to at most 6, or leave out the draft model",
        ),
        (11, 1, "may get 1. Leave out the draft model"),
        (500, 1, "sliding window of the model, which is 12 tokens"),
    ],
)
def test_past_the_sliding_window_a_draft_is_refused(
    sliding, prompt, max_tokens, message
):
    with pytest.raises(ValueError, match=message):
        check_draftable(make_prompt_cache(sliding), prompt, max_tokens)


def test_what_was_read_before_counts(sliding):
    cache = make_prompt_cache(sliding)
    sliding(mx.array([PROMPTS[0]]), cache=cache)
    check_draftable(cache, 3, 3)
    with pytest.raises(ValueError, match="at most 3"):
        check_draftable(cache, 3, 4)


def test_caches_within_a_layer_count():
    check_draftable([CacheList(KVCache(), KVCache())], 5, -1)
    with pytest.raises(ValueError, match="which is 8 tokens"):
        check_draftable([CacheList(KVCache(), RotatingKVCache(8))], 5, 5)


def test_a_state_that_gives_nothing_back_is_refused():
    with pytest.raises(ValueError, match="ArraysCache. do not: leave out the draft"):
        check_draftable(make_prompt_cache(build("mamba")), 1, 1)


def test_generate_refuses_before_it_reads_the_prompt(sliding):
    tokenizer = load("demo")[1]
    options = {"max_tokens": 7, "draft_model": sliding, "predictor": False}
    for cache in (None, [*make_prompt_cache(sliding), *make_prompt_cache(sliding)]):
        with pytest.raises(ValueError, match="at most 6"):
            next(
                stream_generate(
                    sliding, tokenizer, PROMPTS[0], prompt_cache=cache, **options
                )
            )
