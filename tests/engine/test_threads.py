"""Threads that share a model: each gets what it would get alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.nn as nn
import pytest
from mlx_lm.generate import GenerationBatch

from mlx_budget.engine import recorder, rows
from mlx_budget.engine.recorder import HiddenStateRecorder, active_recorder
from tiny_models import N, build, classes, record, steps

SCRIPT = Path(__file__).parent / "in_threads.py"
SECONDS = 500
SAME = "same"


TOGETHER = ("together", "handed_over", "consumed_elsewhere")
STANDSTILLS = ("forward pass", "sampling", "tokens")


def run(tmp_path: Path, *jobs: str) -> list[list[str]]:
    """What each job of the script finds, all in one process."""
    file = tmp_path / "found.json"
    result = subprocess.run(
        [sys.executable, SCRIPT, *jobs],
        env={**os.environ, "FOUND": str(file)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[str]]:
    """Of the jobs that need no process in which nothing was done before."""
    jobs = [*TOGETHER, *(f"between {where}" for where in STANDSTILLS)]
    found = run(tmp_path_factory.mktemp("threads"), *jobs)
    return dict(zip(jobs, found, strict=True))


def test_replies_are_those_of_one_thread(found):
    assert set(found["together"]) == {SAME}


@pytest.mark.parametrize("name", ["cold", "loaded_elsewhere"])
def test_a_model_may_first_be_used_in_other_threads(tmp_path, name):
    assert {*run(tmp_path, name)[0]} == {SAME}


@pytest.mark.parametrize("where", STANDSTILLS)
def test_a_request_may_come_and_go_in_the_midst_of_another(found, where):
    assert set(found[f"between {where}"]) == {SAME}


def test_a_sampler_may_be_made_and_used_and_dropped_by_different_threads(found):
    assert set(found["handed_over"]) == {SAME}


def test_arrays_that_are_no_parameters_may_be_used_in_any_thread(tmp_path, converted):
    folder = tmp_path / "scaled"
    folder.mkdir()
    for file in converted.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scaling = {"rope_type": "yarn", "factor": 4.0}
    scaling["original_max_position_embeddings"] = 32
    config["rope_scaling"] = scaling
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run(tmp_path, f"scaled {folder}") == [[SAME]]


def test_a_batch_is_consumed_in_one_thread_or_says_so(found):
    message, left = found["consumed_elsewhere"]
    assert message.startswith("ValueError: A batch has to be consumed in the thread")
    assert "hand them on" in message
    assert left == SAME


@pytest.fixture
def model() -> nn.Module:
    return build("qwen3")


def test_states_may_be_wanted_in_the_middle_of_a_pass_that_records_none(model):
    """As if another thread had its turn there."""
    before = classes(model)
    first = HiddenStateRecorder.acquire(model, states=False)
    second = []

    class Embedding(nn.Embedding):
        def __call__(self, x):
            if not second:
                second.append(HiddenStateRecorder.acquire(model))
            return super().__call__(x)

    embedding = model.model.embed_tokens
    embedding.__class__ = Embedding
    logits = steps(model, [[3], [4]])
    assert first.last.rows == 2
    embedding.__class__ = nn.Embedding
    assert steps(model, [[3], [4]]).tolist() == logits.tolist()
    assert first.last.states([0, 1]).shape[:2] == (2, N + 1)
    first.release()
    second[0].release()
    assert classes(model) == before


def test_a_lease_that_begins_as_the_last_one_ends_is_of_a_recorder(model, monkeypatch):
    """As if a sampler became garbage at that moment."""
    before = classes(model)
    ending = [HiddenStateRecorder.acquire(model)]

    def collecting(model: nn.Module):
        found = active_recorder(model)
        if ending:
            ending.pop().release()
        return found

    monkeypatch.setattr(recorder, "active_recorder", collecting)
    lease = HiddenStateRecorder.acquire(model)
    assert active_recorder(model) is lease
    record(model, [[3]])
    lease.release()
    assert classes(model) == before


def test_a_follower_that_begins_as_the_last_one_ends_follows(monkeypatch):
    before = GenerationBatch._step
    rows.follow_batches()
    ending, find = [rows.unfollow_batches], rows._find_step

    def collecting():
        if ending:
            ending.pop()()
        return find()

    monkeypatch.setattr(rows, "_find_step", collecting)
    rows.follow_batches()
    while ending:
        ending.pop()()
    assert GenerationBatch._step is not before
    rows.unfollow_batches()
    assert GenerationBatch._step is before
