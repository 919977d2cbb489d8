"""Memory is wired wherever a model is at work, and a model too large for it is told of.

No such limit is known here, so the device's answer is made up.
"""

import logging

import mlx.core as mx
import pytest

from mlx_budget import batch_generate, estimate, generate
from mlx_budget.engine import memory
from mlx_budget.engine.memory import size_note, tell_of_size, wired
from mlx_budget.files.tensors import named_tensors
from mlx_budget.server import running
from mlx_budget.train import train
from trainings import WITHOUT_UPDATES

MOST, FORMER = 1 << 40, 7


@pytest.fixture
def device(monkeypatch):
    """The most that the device recommends, and the limits that are set."""
    found = {"most": MOST, "limits": []}

    def set_limit(limit: int) -> int:
        former = found["limits"][-1] if found["limits"] else FORMER
        found["limits"].append(limit)
        return former

    facts, most = mx.device_info(), "max_recommended_working_set_size"
    monkeypatch.setattr(mx, "device_info", lambda: {**facts, most: found["most"]})
    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    memory._say_once.cache_clear()
    return found


def nbytes(module) -> int:
    return sum(w.nbytes for w in named_tensors(module.parameters()).values())


def test_the_limit_is_set_and_set_back(device):
    with pytest.raises(KeyError), wired():
        assert device["limits"] == [MOST]
        raise KeyError
    assert device["limits"] == [MOST, FORMER]


def test_an_estimate_wires_memory(device, loaded, cases):
    estimate(*loaded, [5, 6, 7], thinking_start="", thinking_end="</think>")
    assert device["limits"] == [MOST, FORMER]


@pytest.mark.parametrize("size", ["tiny", "linear"])
def test_training_wires_memory(device, make_options, no_picture, size):
    train(make_options(size=size, **({} if size == "tiny" else WITHOUT_UPDATES)))
    assert device["limits"] == [MOST, FORMER]


def test_the_predictor_counts(device, loaded):
    model, _, predictor = loaded
    # Enough for the model alone, with the tenth that is left free.
    device["most"] = round((nbytes(model) + nbytes(predictor) / 2) / 0.9)
    assert size_note(model) is None
    note = size_note(model, predictor)
    assert note is not None and "of them the predictor's" in note
    device["most"] = round((nbytes(model) + nbytes(predictor)) / 0.9) + 9
    assert size_note(model, predictor) is None


def test_it_is_said_once_wherever_a_model_is_at_work(device, loaded, capsys):
    model, tokenizer, predictor = loaded
    device["most"] = round((nbytes(model) + nbytes(predictor) / 2) / 0.9)
    options = {"predictor": predictor, "max_tokens": 1}
    for run in (
        lambda: generate(model, tokenizer, [5, 6], **options),
        lambda: batch_generate(model, tokenizer, [[5, 6]], **options),
        lambda: estimate(*loaded, [5], thinking_start="", thinking_end="</think>"),
    ):
        memory._say_once.cache_clear()
        for _ in range(2):
            run()
        told = capsys.readouterr()
        assert told.err.count("Warning: The weights take") == 1
        assert told.out == ""
    tell_of_size(model)
    assert capsys.readouterr().err == ""


def test_a_server_logs_it(device, converted, loaded, caplog):
    caplog.set_level(logging.WARNING)
    device["most"] = 100
    with running(str(converted)):
        pass
    (line,) = [r.getMessage() for r in caplog.records if "weights" in r.getMessage()]
    assert "of them the predictor's" in line
