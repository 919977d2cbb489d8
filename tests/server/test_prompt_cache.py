"""The server's cache of prompts: what is read behind an entry is what it would be."""

import random
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from mlx_budget.server.prompt_cache import PromptCache
from tiny_models import V, build

PLAIN, DRAFTED = ("model", None, None), ("model", None, "draft")
LENGTH = 9


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("qwen3")


@pytest.fixture(scope="module")
def drafts(model) -> dict[str, nn.Module]:
    """One that is always right, one that often is, and one that never is."""
    near = build("qwen3")
    noise = [(k, w + 0.1 * mx.random.normal(w.shape)) for k, w in weights(near)]
    near.load_weights(noise)
    return {"same": build("qwen3"), "near": near, "other": build("llama")}


def weights(model: nn.Module) -> list[tuple[str, mx.array]]:
    return tree_flatten(model.parameters())


def alone(model: nn.Module, prompt: list[int], length: int) -> list[int]:
    steps = generate_step(mx.array(prompt), model, max_tokens=length)
    return [token for token, _ in steps]


def drafted(
    cache: PromptCache,
    model: nn.Module,
    draft: nn.Module,
    prompt: list[int],
    length: int,
    **options: int,
) -> list[int]:
    """A reply as the server makes and stores it, left before mlx-lm ends it."""
    caches, rest = cache.fetch_nearest_cache(DRAFTED, prompt)
    if caches is None:
        caches = make_prompt_cache(model) + make_prompt_cache(draft)
    steps = speculative_generate_step(
        mx.array(rest), model, draft, prompt_cache=caches, **options
    )
    reply = [token for token, *_ in islice(steps, length)]
    steps.close()
    cache.insert_cache(DRAFTED, [*prompt, *reply], caches)
    return reply


@pytest.mark.parametrize("name", ["same", "near", "other"])
@pytest.mark.parametrize("seed", range(3))
def test_drafted_replies_are_those_of_the_model_whatever_came_before(
    model, drafts, name, seed
):
    draw = random.Random(seed)
    cache = PromptCache(10)
    texts = [[draw.randrange(V) for _ in range(draw.randrange(1, 9))] for _ in range(3)]
    for _ in range(25):
        prompt = draw.choice(texts)
        prompt = prompt[: draw.randrange(1, len(prompt) + 1)]
        prompt = prompt + [draw.randrange(V) for _ in range(draw.choice([0, 0, 1, 4]))]
        length, room = draw.randrange(1, LENGTH), draw.choice([0, 5])
        options = {
            "num_draft_tokens": draw.randrange(5),
            "max_tokens": length + room,
        }
        reply = drafted(cache, model, drafts[name], prompt, length, **options)
        assert reply == alone(model, prompt, length)
        texts = [*texts[-4:], prompt + reply]
    assert len(cache) > 1


def test_what_a_reply_leaves_is_read_once_by_both_models(model, drafts):
    cache = PromptCache(10)
    prompt = [3, 1, 4, 1, 5]
    for draft in ("same", "other"):
        reply = drafted(cache, model, drafts[draft], prompt, 6, num_draft_tokens=2)
        caches, rest = cache.fetch_nearest_cache(DRAFTED, [*prompt, *reply, 7])
        # The last token, and what the draft model lags behind.
        assert len(rest) <= 3
        held = len(prompt) + len(reply) + 1 - len(rest)
        assert {layer.offset for layer in caches} == {held}
        prompt = [*prompt, *reply]


@pytest.mark.parametrize("key", [PLAIN, DRAFTED])
def test_a_stored_prompt_leaves_its_end_to_be_read(model, key):
    cache = PromptCache(10)
    prompt = [3, 1, 4, 1, 5]
    caches = make_prompt_cache(model)
    model(mx.array([prompt]), cache=caches)
    cache.insert_cache(key, prompt, caches)
    found, rest = cache.fetch_nearest_cache(key, prompt)
    assert rest == [1, 5]
    assert [layer.offset for layer in found] == [3] * len(found)
    assert [layer.offset for layer in caches] == [5] * len(caches)


def test_a_stored_state_that_cannot_be_cut_is_not_taken_for_its_prompt():
    model, cache = build("mamba"), PromptCache(10)
    for prompt in ([3, 1], [3, 1, 4, 1]):
        caches = make_prompt_cache(model)
        model(mx.array([prompt]), cache=caches)
        cache.insert_cache(PLAIN, prompt, caches)
    found, rest = cache.fetch_nearest_cache(PLAIN, [3, 1, 4, 1])
    assert found is not None and rest == [4, 1]
    assert cache.fetch_nearest_cache(PLAIN, [3, 1]) == (None, [3, 1])
    found, rest = cache.fetch_nearest_cache(PLAIN, [3, 1, 4, 1, 5])
    assert found is not None and rest == [5]


def filled(layer, length: int):
    layer.update_and_fetch(*[mx.zeros((1, 1, length, 32))] * 2)
    return layer


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ([filled(KVCache(), 8), filled(KVCache(), 6)], 6),
        ([CacheList(filled(KVCache(), 8), filled(KVCache(), 7))], 7),
        ([filled(KVCache(), 7), filled(RotatingKVCache(16), 8)], 7),
        # A full window gives nothing back, and kept what was only drafted.
        ([filled(KVCache(), 7), filled(RotatingKVCache(4), 8)], None),
        ([filled(KVCache(), 7), filled(RotatingKVCache(4), 9)], None),
        ([filled(KVCache(), 7), *make_prompt_cache(build("mamba"))], None),
        ([filled(KVCache(), 7), KVCache()], None),
    ],
)
def test_what_not_all_caches_hold_is_cut_or_not_stored(layers, kept):
    cache = PromptCache(10)
    cache.insert_cache(DRAFTED, list(range(8)), layers)
    assert len(cache) == (kept is not None)
    found, rest = cache.fetch_nearest_cache(DRAFTED, list(range(9)))
    assert rest == list(range(kept or 0, 9))


@pytest.mark.parametrize("length", [5, 6])
def test_caches_that_were_left_for_quantised_ones_are_not_stored(length):
    cache = PromptCache(10, quantized_kv_start=6)
    caches = [filled(KVCache(), length), filled(KVCache(), 5)]
    cache.insert_cache(DRAFTED, list(range(8)), caches)
    assert len(cache) == (length < 6)
    cache = PromptCache(10, quantized_kv_start=6)
    caches = [filled(KVCache(), 8).to_quantized(group_size=32)] * 2
    cache.insert_cache(DRAFTED, list(range(8)), caches)
    assert len(cache) == 1
