"""Runs that are stopped in any way go on to the end that they would have had."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import mlx.core as mx
import pytest

from mlx_budget.train import Progress, TrainOptions, checkpoints, train
from mlx_budget.train.learner import Learner
from trainings import (
    COUNT,
    STEPS,
    Stopped,
    assert_same_run,
    stop_at,
    sum_chats,
    write_chats,
)

pytestmark = pytest.mark.usefixtures("no_picture")

# Runs with the options in its arguments, and kills itself where it is told.
SCRIPT = """
import json, os, signal, sys
from mlx_budget.train import TrainOptions, train

options, place, number = json.loads(sys.argv[1])
replace, fsync, synced = os.replace, os.fsync, []

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(now):
    if (now.stage, now.done) == (place, number):
        die()

def dying_replace(source, target):
    if place == os.path.basename(target):
        die()
    replace(source, target)

def dying_fsync(file):
    synced.append(file)
    if place == "states" and len(synced) == number:
        die()
    fsync(file)

os.replace, os.fsync = dying_replace, dying_fsync
sys.modules["matplotlib.figure"] = None
train(TrainOptions(**options), progress)
"""


def killed(options: TrainOptions, place: str, number: int) -> None:
    given = {name: value for name, value in vars(options).items() if value is not None}
    arguments = json.dumps([given, place, number], default=str)
    command = [sys.executable, "-c", SCRIPT, arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("states", 7),  # they are on the disk, and the line about them is not
        ("checkpoint-00000008.safetensors", 0),  # written, and not yet in its place
        ("predictor_config.json", 0),  # the very last file
    ],
)
def test_a_killed_run_goes_on_to_the_same_end(make_options, whole, place, number):
    options = make_options()
    killed(options, place, number)
    assert not (options.output / "predictor_config.json").exists()
    result = train(make_options(resume=True))
    assert result.report["records"] == COUNT
    assert_same_run(options.output, whole)


@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("encoding", 7),
        ("training", 1),
        ("training", 6),
        ("training", STEPS),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(make_options, whole, stage, done):
    options = make_options()
    with pytest.raises(Stopped):
        train(options, stop_at(stage, done))
    train(make_options(resume=True))
    assert_same_run(options.output, whole)


def test_a_run_may_be_stopped_often(make_options, whole):
    resume = False
    for stage, done in (("encoding", 3), ("training", 4), ("training", 9)):
        with pytest.raises(Stopped):
            train(make_options(resume=resume), stop_at(stage, done))
        resume = True
    seen = []
    train(make_options(resume=True), seen.append)
    # All records were encoded, and a checkpoint was made after 8 updates.
    assert [p.done for p in seen if p.stage == "encoding"] == [COUNT]
    assert [p.done for p in seen if p.stage == "training"] == [9, 10, 11, 12]
    assert_same_run(make_options().output, whole)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_killed_before_it_did_anything_is_begun_anew(
    make_options, resume
):
    options = make_options()
    killed(options, "reading", 9)
    work = options.output / "training"
    assert [p.name for p in work.iterdir()] == ["options.json"]
    result = train(make_options(resume=resume, steps=1, learning_rate=1e-3))
    assert result.report["steps"] == 1
    assert json.loads((work / "options.json").read_text())["learning_rate"] == 1e-3


def test_a_damaged_checkpoint_is_passed_over(make_options, whole):
    options = make_options()
    with pytest.raises(Stopped):
        train(options, stop_at("training", 9))
    files = sorted((options.output / "training").glob("checkpoint-*"))
    assert [f.stem for f in files] == ["checkpoint-00000004", "checkpoint-00000008"]
    os.truncate(files[1], 1000)
    assert checkpoints.load_newest(options.output / "training")[0] == 4
    train(make_options(resume=True))
    assert_same_run(options.output, whole)


def test_two_checkpoints_are_kept(make_options):
    options = make_options(save_every=2, steps=7)
    train(options)
    names = sorted(f.stem for f in (options.output / "training").glob("checkpoint-*"))
    assert names == ["checkpoint-00000006", "checkpoint-00000007"]


def test_only_options_that_do_not_change_the_result_may_change(make_options, whole):
    with pytest.raises(Stopped):
        train(make_options(), stop_at("training", 6))
    for name, theirs, ours in (
        ("learning_rate", 0.0002, 0.1),
        ("seed", 0, 1),
        ("width", 32, 64),
        ("keep", "'best'", "last"),
    ):
        with pytest.raises(ValueError) as e:
            train(make_options(resume=True, **{name: ours}))
        assert str(e.value) == (
            f"The run in {make_options().output} was begun with {name} = {theirs}, not "
            f"{ours!r}: go on with the same options, or choose another --output."
        )
    train(make_options(resume=True, save_every=1, prefill_step_size=7, strict=True))
    assert_same_run(make_options().output, whole)


def test_records_may_not_change(make_options, tmp_path):
    data, chats = tmp_path / "chats.jsonl", sum_chats()
    reply = chats[7]["messages"][1]
    reply["content"] = reply["content"].replace(".\n</think>", ".</think>")
    write_chats(data, chats)
    with pytest.raises(Stopped):
        train(make_options(data=str(data)), stop_at("training", 6))
    # Behind the last position: nothing but its lengths becomes another.
    reply["content"] = reply["content"].replace(".</think>", ". So.</think>")
    write_chats(data, chats)
    with pytest.raises(ValueError, match=r"states of other settings \(records\)"):
        train(make_options(data=str(data), resume=True))
    elsewhere = {"cache_dir": tmp_path / "states", "resume": True}
    with pytest.raises(ValueError, match="no longer holds the records that the run in"):
        train(make_options(data=str(data), **elsewhere))


def test_a_folder_that_is_in_the_way_is_left_alone(make_options, tmp_path, whole):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="holds no run to go on with"):
        train(make_options(resume=True))
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    for resume, message in (
        (False, "out is not empty: choose another --output.$"),
        (True, "out holds no run to go on with: leave out --resume"),
    ):
        with pytest.raises(ValueError, match=message):
            train(make_options(resume=resume))
    assert [p.name for p in out.iterdir()] == ["letter.txt"]
    with pytest.raises(ValueError, match="whole holds a predictor already"):
        train(make_options(output=whole))


def test_two_runs_share_neither_folder_nor_unfinished_states(make_options, tmp_path):
    states = tmp_path / "states"

    def second(now: Progress) -> None:
        with pytest.raises(ValueError, match="Another program is at work .*training"):
            train(make_options(resume=True, cache_dir=states))
        if now.stage == "encoding":
            with pytest.raises(ValueError, match="is at work in .*states"):
                train(make_options(output=tmp_path / "other", cache_dir=states))
            raise Stopped

    with pytest.raises(Stopped):
        train(make_options(cache_dir=states), second)


@contextmanager
def largest_file(size: int):
    """A disk on which no file can grow beyond some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("states", [0, 0.5, 1.01])
def test_a_full_disk_is_one_line_and_the_run_goes_on(make_options, whole, states):
    # The first states do not fit, nor half of all, nor, being larger, a checkpoint.
    size = (whole / "training" / "states" / "states.bin").stat().st_size * states
    options = make_options()
    with largest_file(int(max(2_000, size))), pytest.raises(ValueError) as e:
        train(options)
    assert str(e.value) == (
        f"{options.output} could not be written (File too large): free some space, "
        "then run the same again with --resume, and it goes on from there."
    )
    train(make_options(resume=True))
    assert_same_run(options.output, whole)


def test_a_disk_that_is_full_from_the_start_keeps_nothing(make_options):
    with largest_file(100), pytest.raises(ValueError) as e:
        train(make_options())
    assert str(e.value).endswith("free some space, then run the same again.")
    assert not make_options().output.exists()


def spoil(monkeypatch, spoilt, after: int) -> None:
    """Makes all concentrations after some batches ``spoilt(self, concentration)``."""
    outputs, calls = Learner.outputs, []

    def method(self, states, rows):
        calls.append(1)
        concentration, rate = outputs(self, states, rows)
        if len(calls) > after:
            concentration = spoilt(self, concentration)
        return concentration, rate

    monkeypatch.setattr(Learner, "outputs", method)


def nan_at_the_largest(_, concentration):
    return mx.where(concentration == concentration.max(), math.nan, concentration)


# The first call validates, and one more does after 4 updates.
@pytest.mark.parametrize(
    ("after", "message"),
    [
        (0, r"The loss at step 0 is not a number, at chats.jsonl, line \d+: train wi"),
        (5, r"The loss at step 4 is not a number, at chats.jsonl, line \d+: train wi"),
        (6, r"The loss at step [56] is not a number, at chats.jsonl, line \d+: train"),
    ],
)
def test_an_invalid_loss_names_the_record(
    make_options, whole, monkeypatch, after, message
):
    with monkeypatch.context() as patch:
        spoil(patch, nan_at_the_largest, after)
        with pytest.raises(ValueError, match=message):
            train(make_options())
    train(make_options(resume=True))
    assert_same_run(make_options().output, whole)


def test_invalid_gradients_stop_the_run(make_options, whole, monkeypatch):
    def infinite_slope(self, concentration):
        return concentration + mx.sqrt(0 * self.shared.sum())

    with monkeypatch.context() as patch:
        spoil(patch, infinite_slope, 1)
        message = "at step 1 is not a number, at several records together: train with"
        with pytest.raises(ValueError, match=message):
            train(make_options())
    train(make_options(resume=True))
    assert_same_run(make_options().output, whole)
