"""Hidden states at chosen positions of a prefill are those of single-token steps."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_budget.engine.recorder import (
    HiddenStateRecorder,
    active_recorder,
    hidden_states_at,
)
from tiny_models import LLAMA, MODELS, D, N, V, build, classes, close

TOKENS = [7, 8, 9, 1, 2, 30, 31, 32, 5, 6, 7]
LAST = len(TOKENS) - 1
every_model = pytest.mark.parametrize("name", MODELS)


def by_steps(model: nn.Module, tokens: Sequence[int]) -> tuple[mx.array, mx.array]:
    """States and logits at every position, one token at a time."""
    cache = make_prompt_cache(model)
    recorder = HiddenStateRecorder.acquire(model)
    states, logits = [], []
    for token in tokens:
        logits.append(model(mx.array([[token]]), cache=cache)[0])
        states.append(recorder.last.states([0]))
    recorder.release()
    return mx.concatenate(states), mx.concatenate(logits)


def at(model, positions, step_size, tokens=TOKENS) -> tuple[mx.array, mx.array]:
    """States and logits of all chunks together."""
    chunks = list(hidden_states_at(model, tokens, positions, step_size))
    states, logits = zip(*chunks, strict=True)
    return mx.concatenate(states), mx.concatenate(logits)


@every_model
def test_states_and_logits_are_those_of_single_steps(name):
    model = build(name)
    states, logits = by_steps(model, TOKENS)
    positions = [0, 3, 4, 7, LAST]
    # Chunks of which some have no position, one token, the whole, and more.
    for step_size in (1, 2, 4, len(TOKENS), 100):
        found = at(model, positions, step_size)
        assert found[0].shape == (5, N + 1, D) and found[1].shape == (5, V)
        assert close(found[0], states[mx.array(positions)])
        assert close(found[1], logits[mx.array(positions)])
    assert not close(states[0], states[LAST])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_has_its_own_states(bits):
    model = build("qwen2")
    exact = by_steps(model, TOKENS)[0]
    nn.quantize(model, group_size=32, bits=bits)
    states, logits = by_steps(model, TOKENS)
    found = at(model, [2, LAST], 4)
    wanted = mx.array([2, LAST])
    # A product with quantised weights sums in another order for several tokens.
    assert close(found[0], states[wanted]) and close(found[1], logits[wanted])
    assert not close(found[0], exact[wanted])


@pytest.mark.parametrize("positions", [[0], [LAST], [4], [0, LAST], range(len(TOKENS))])
@pytest.mark.parametrize("step_size", [1, 3, 4, 11])
def test_positions_may_be_anywhere(positions, step_size):
    model = build("qwen2")
    states, logits = by_steps(model, TOKENS)
    found = at(model, list(positions), step_size)
    assert close(found[0], states[mx.array(list(positions))])
    assert close(found[1], logits[mx.array(list(positions))])


def test_a_window_that_slides_over_the_chunks():
    config = dict(LLAMA, sliding_window=4, sliding_window_pattern=2)
    model = build("gemma3_text", config)
    tokens = [t % V for t in range(3, 30)]
    states, logits = by_steps(model, tokens)
    for step_size in (3, 5, 40):
        found = at(model, [1, 10, 26], step_size, tokens)
        assert close(found[0], states[mx.array([1, 10, 26])])
        assert close(found[1], logits[mx.array([1, 10, 26])])


def test_arrays_are_as_good_as_lists():
    model = build("qwen2")
    found = at(model, np.array([1, 5], np.int32), 4, np.array(TOKENS, np.int32))
    for a, b in zip(found, at(model, [1, 5], 4), strict=True):
        assert mx.array_equal(a, b)


def test_each_chunk_with_positions_comes_once_and_none_after_the_last(monkeypatch):
    model, lengths = build("qwen2"), []
    call = type(model).__call__

    def counting(self, inputs, *args, **kwargs):
        lengths.append(inputs.shape[1])
        return call(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(model), "__call__", counting)
    chunks = hidden_states_at(model, TOKENS, [1, 2, 6], 3)
    assert [len(states) for states, _ in chunks] == [2, 1]
    assert lengths == [3, 3, 3]


def test_the_model_is_as_it_was():
    model = build("qwen2")
    before, plain = classes(model), by_steps(model, TOKENS)
    at(model, [3], 4)
    assert active_recorder(model) is None and classes(model) == before
    for a, b in zip(by_steps(model, TOKENS), plain, strict=True):
        assert mx.array_equal(a, b)


def test_the_model_is_as_it_was_when_the_rest_is_not_wanted():
    model = build("qwen2")
    before = classes(model)
    chunks = hidden_states_at(model, TOKENS, [0, LAST], 4)
    next(chunks)
    assert active_recorder(model) is not None
    chunks.close()
    assert active_recorder(model) is None and classes(model) == before


def test_the_model_is_as_it_was_after_an_error(monkeypatch):
    model = build("qwen2")
    before, calls = classes(model), []
    layer = type(model.layers[1])
    call = layer.__call__

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 2 * N:  # in the third chunk
            raise RuntimeError("out of memory")
        return call(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "__call__", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            at(model, [0, LAST], 4)
    assert len(calls) == 2 * N + 1
    assert active_recorder(model) is None and classes(model) == before


def test_a_model_whose_states_cannot_be_seen_is_refused():
    model = build("iquestloopcoder", dict(LLAMA, loop_num=2, loop_window_size=8))
    before = classes(model)
    with pytest.raises(ValueError, match="layer 0 was not seen in the last forward"):
        at(model, [3], 4)
    assert active_recorder(model) is None and classes(model) == before


def test_requests_that_run_meanwhile_keep_their_lease():
    model = build("qwen2")
    recorder = HiddenStateRecorder.acquire(model)
    states = by_steps(model, TOKENS)[0]
    assert close(at(model, [3], 4)[0], states[3:4])
    assert active_recorder(model) is recorder
    # What was prefilled is nobody's row, and single steps are recorded as ever.
    assert recorder.last is None
    assert close(by_steps(model, TOKENS)[0], states)
    recorder.release()
    assert active_recorder(model) is None
