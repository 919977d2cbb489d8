import threading

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_budget.engine.recorder import (
    HiddenStateRecorder,
    active_recorder,
    find_backbone,
)
from tiny_models import LLAMA, MODELS, D, N, V, build, classes, close, record, steps

every_model = pytest.mark.parametrize("name", MODELS)


def test_states_are_those_of_a_loop_over_the_layers_by_hand():
    model = build("qwen2")
    _, states = record(model, [[7, 8, 9]])

    inner = model.model
    h = inner.embed_tokens(mx.array([[7, 8, 9]]))
    mask = create_attention_mask(h, None)
    expected = []
    for layer in inner.layers:
        expected.append(h[:, -1:])
        h = layer(h, mask, None)
    expected.append(inner.norm(h)[:, -1:])
    assert close(states, mx.concatenate(expected, axis=1))
    # The first is the embedding itself, bit for bit.
    assert mx.array_equal(states[:, :1], inner.embed_tokens(mx.array([[9]])))


@every_model
def test_last_state_gives_the_logits_through_the_head(name):
    model = build(name)
    logits, states = record(model, [[1, 2]])
    assert states.shape == (1, N + 1, D)
    assert mx.array_equal(MODELS[name][1](model, states[:, -1:]), logits)


@every_model
def test_logits_are_unchanged(name):
    model = build(name)
    plain = steps(model, [[1, 2, 3]])
    assert mx.array_equal(record(model, [[1, 2, 3]])[0], plain)


@every_model
def test_each_row_of_a_batch_has_the_states_it_has_alone(name):
    model = build(name)
    rows = [[1, 2], [3, 4], [5, 6]]
    _, together = record(model, rows)
    alone = [record(model, [row])[1] for row in rows]
    assert close(together, mx.concatenate(alone))
    assert not close(alone[0], alone[1])


@every_model
def test_parameters_are_unchanged_while_attached(name):
    model = build(name)
    before = dict(tree_flatten(model.parameters()))
    recorder = HiddenStateRecorder.acquire(model)
    steps(model, [[1, 2]])
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(before[key] is after[key] for key in before)
    recorder.release()


def test_saved_weights_are_unchanged_while_attached(tmp_path):
    model = build("qwen2")
    model.save_weights(str(tmp_path / "before.safetensors"))
    recorder = HiddenStateRecorder.acquire(model)
    steps(model, [[1]])
    model.save_weights(str(tmp_path / "during.safetensors"))
    recorder.release()
    before = (tmp_path / "before.safetensors").read_bytes()
    assert (tmp_path / "during.safetensors").read_bytes() == before


@every_model
def test_classes_are_put_back_after_the_last_lease(name):
    model = build(name)
    before = classes(model)
    first = HiddenStateRecorder.acquire(model)
    second = HiddenStateRecorder.acquire(model)
    assert first is second is active_recorder(model)
    first.release()
    assert active_recorder(model) is second
    steps(model, [[1]])
    assert second.last.states([0]).shape == (1, N + 1, D)
    second.release()
    assert active_recorder(model) is None
    assert classes(model) == before


def test_recorder_of_one_model_leaves_another_of_its_class_alone():
    model, other = build("qwen2"), build("qwen2")
    recorder = HiddenStateRecorder.acquire(model)
    steps(model, [[1]])
    steps(other, [[2]])
    assert active_recorder(other) is None
    states = recorder.last.states([0])
    assert mx.array_equal(states[:, 0], model.model.embed_tokens(mx.array([1])))
    recorder.release()


def test_quantized_model_is_recorded():
    model = build("qwen2")
    nn.quantize(model, group_size=32, bits=8)
    plain = steps(model, [[1, 2]])
    logits, states = record(model, [[1, 2]])
    assert mx.array_equal(logits, plain)
    assert mx.array_equal(model.lm_head(states[:, -1:]), logits)
    assert close(states[:, :1], model.model.embed_tokens(mx.array([[2]])))


def test_model_with_lora_layers_is_recorded():
    model = build("qwen2")
    plain, bare = record(model, [[1, 2]])
    linear_to_lora_layers(model, 1, {"rank": 2, "scale": 8.0, "dropout": 0.0})
    last = model.layers[-1].self_attn.q_proj
    last.lora_b = mx.random.normal(last.lora_b.shape)
    value = model.layers[-1].self_attn.v_proj
    value.lora_b = mx.random.normal(value.lora_b.shape)
    logits, states = record(model, [[1, 2]])
    assert mx.array_equal(model.lm_head(states[:, -1:]), logits)
    # Only the last layer has an adapter: what enters it is as before.
    assert mx.array_equal(states[:, :N], bare[:, :N])
    assert not close(states[:, N:], bare[:, N:])
    assert not close(logits, plain)


def test_prefill_is_not_recorded():
    model = build("qwen2")
    recorder = HiddenStateRecorder.acquire(model)
    assert recorder.last is None
    steps(model, [[1]])
    assert recorder.last is not None
    model(mx.array([[1, 2, 3]]), cache=make_prompt_cache(model))
    assert recorder.last is None
    recorder.release()


def test_without_a_lease_on_states_only_inputs_are_kept():
    model = build("qwen2")
    recorder = HiddenStateRecorder.acquire(model, states=False)
    steps(model, [[1], [2]])
    assert recorder.last.inputs.tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="was not seen in the last forward"):
        recorder.last.states([0])
    recorder.release()


def test_inputs_are_the_tokens_of_the_last_step():
    model = build("qwen2")
    recorder = HiddenStateRecorder.acquire(model)
    steps(model, [[1, 2], [3, 4]])
    assert recorder.last.inputs.tolist() == [[2], [4]]
    recorder.release()


def test_a_forward_pass_stays_as_it_was_when_the_next_one_comes():
    model = build("qwen2")
    recorder = HiddenStateRecorder.acquire(model)
    steps(model, [[1], [2]])
    first = recorder.last
    states = first.states([0, 1])
    steps(model, [[5], [6]])
    assert first.inputs.tolist() == [[1], [2]]
    assert mx.array_equal(first.states([0, 1]), states)
    assert not close(recorder.last.states([0, 1]), states)
    recorder.release()


def test_threads_see_their_own_forward_passes_alone():
    model = build("qwen2")
    recorder = HiddenStateRecorder.acquire(model)
    steps(model, [[1]])
    seen = []

    def run() -> None:
        seen.append(recorder.last)
        steps(model, [[2]])
        seen.append(recorder.last.inputs.tolist())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None, [[2]]]
    assert recorder.last.inputs.tolist() == [[1]]
    recorder.release()


def test_states_are_what_came_in_though_a_layer_changes_it_in_place():
    model = build("qwen2")

    class InPlace(type(model.layers[0])):
        def __call__(self, x, *args):
            out = super().__call__(x, *args)
            x += 1
            return out

    model.layers[0].__class__ = InPlace
    _, states = record(model, [[1]])
    assert mx.array_equal(states[:, 0], model.model.embed_tokens(mx.array([1])))


class KeywordLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)

    def __call__(self, scale: int, x: mx.array) -> mx.array:
        return x + scale * self.norm(x)


class FunctionNormBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.layers = [KeywordLayer() for _ in range(N)]
        self.depth = N

    def __call__(self, inputs: mx.array) -> mx.array:
        h = self.embed(inputs)
        for layer in self.layers[: self.depth]:
            h = layer(2, x=h)
        return mx.fast.rms_norm(h, None, 1e-5)


class FunctionNormModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = FunctionNormBackbone()
        self.head = nn.Linear(D, V)

    def __call__(self, inputs: mx.array) -> mx.array:
        return self.head(self.model(inputs))

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers


def test_keyword_states_and_a_final_norm_that_is_a_function_are_recorded():
    model = FunctionNormModel()
    token = mx.array([[1]])
    recorder = HiddenStateRecorder.acquire(model)
    model(token)
    states = recorder.last.states([0])
    recorder.release()
    expected = [model.model.embed(token)]
    for layer in model.layers[: N - 1]:
        expected.append(layer(2, expected[-1]))
    expected.append(model.model(token))
    assert mx.array_equal(states, mx.concatenate(expected, axis=1))


def test_a_layer_left_out_of_a_step_does_not_keep_its_last_state():
    model = FunctionNormModel()
    recorder = HiddenStateRecorder.acquire(model)
    model(mx.array([[1]]))
    model.model.depth = N - 1
    model(mx.array([[2]]))
    with pytest.raises(ValueError, match=f"state at layer {N - 1} was not seen"):
        recorder.last.states([0])
    recorder.release()


def test_norm_before_the_layers_is_not_taken_for_the_final_one():
    # Its final norm is a function: the backbone's output stands for it.
    model = build("nanochat", dict(LLAMA, num_key_value_heads=4))
    model.embed_norm = nn.RMSNorm(D)
    embed = model.transformer.wte
    model.transformer.wte = nn.Sequential(embed, model.embed_norm)
    _, states = record(model, [[1, 2]])
    inputs = mx.array([[1, 2]])
    assert close(states[:, -1], model.transformer(inputs)[:, -1])


def test_model_that_passes_no_single_hidden_state_is_refused():
    # Its decoder loops over parts of the layers and never calls a layer.
    model = build("iquestloopcoder", dict(LLAMA, loop_num=2, loop_window_size=8))
    before = classes(model)
    with pytest.raises(ValueError, match="layer 0 was not seen in the last forward"):
        record(model, [[1]])
    assert classes(model) == before


def test_model_without_a_list_of_layers_is_refused():
    class Model(nn.Module):
        layers = []

    with pytest.raises(ValueError, match="has no list of decoder layers"):
        HiddenStateRecorder.acquire(Model())
    Model.layers = [nn.Linear(2, 2)]
    with pytest.raises(ValueError, match="owns its decoder layers"):
        HiddenStateRecorder.acquire(Model())


@every_model
def test_backbone_is_the_module_that_owns_the_layers(name):
    model = build(name)
    lists = [c for c in find_backbone(model).children().values() if type(c) is list]
    assert any(model.layers[0] is layer for c in lists for layer in c)
