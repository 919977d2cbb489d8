"""Training from chat records to a predictor folder, and runs that are stopped."""

import errno
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_budget import Predictor, load, stream_generate
from mlx_budget.prompts import encode_chat
from mlx_budget.train import Progress, TrainOptions, train
from mlx_budget.train.dataset import is_held_out
from mlx_budget.train.learner import Learner

STEPS = 12


def write_chats(file: Path, count: int = 40) -> Path:
    """Sums in so many lines of thinking as the first number says."""
    lines = []
    for i in range(count):
        a, b = 1 + i % 5, 2 + i
        thinking = "".join(f"{a} + {b} = {a + b}.\n" for _ in range(a))
        reply = f"<think>\n{thinking}</think>\nThe answer is {a + b}."
        messages = [
            {"role": "user", "content": f"What is {a} + {b}?"},
            {"role": "assistant", "content": reply},
        ]
        lines.append(json.dumps({"messages": messages}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_chats(tmp_path_factory.mktemp("chats") / "chats.jsonl")


@pytest.fixture(scope="module")
def base(converted, data) -> dict:
    return {
        "model": str(converted),
        "data": str(data),
        "size": "tiny",
        "steps": STEPS,
        "val_fraction": 0.3,
        "eval_every": 4,
        "save_every": 4,
    }


@pytest.fixture
def make_options(base, tmp_path):
    def make(**changes) -> TrainOptions:
        return TrainOptions(**{**base, "output": tmp_path / "out", **changes})

    return make


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    train(TrainOptions(**base, output=folder))
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    parameters = tree_flatten(Predictor.load(folder).parameters())
    return {name: np.array(value) for name, value in parameters}


def assert_close(ours: Path, theirs: Path) -> None:
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)


def _as_text(options: TrainOptions) -> str:
    values = {k: v for k, v in vars(options).items() if v is not None}
    return repr({k: str(v) if isinstance(v, Path) else v for k, v in values.items()})


class Stopped(Exception):
    pass


def stop_at(stage: str, done: int):
    def progress(now: Progress) -> None:
        if (now.stage, now.done) == (stage, done):
            raise Stopped

    return progress


def test_a_run_makes_a_predictor_that_guides_its_model(make_options, converted):
    options = make_options()
    seen = []
    result = train(options, seen.append)
    folder = options.output
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "curves.jsonl",
        "predictor.safetensors",
        "predictor_config.json",
        "report.json",
        "report.png",
        "training",
    }
    assert result.report == json.loads((folder / "report.json").read_text())
    assert result.report["records"] == 40
    assert [p.done for p in seen if p.stage == "training"] == [*range(1, STEPS + 1)]
    assert seen[-1].total == STEPS
    rows = [json.loads(t) for t in (folder / "curves.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [*range(STEPS + 1)]
    assert [r["step"] for r in rows if "val_loss" in r] == [0, 4, 8, 12]
    model, tokenizer, predictor = load(str(converted), predictor=folder)
    assert predictor.config.known_tokens == result.report["known_tokens"]
    ids = encode_chat(tokenizer, "What is 3 + 4?")
    *_, last = stream_generate(
        model, tokenizer, ids, predictor=predictor, thinking_budget=10, max_tokens=40
    )
    assert last.thinking_tokens <= 11


def test_training_lowers_the_loss(make_options):
    options = make_options(steps=60, learning_rate=1e-3, eval_every=60)
    report = train(options).report
    rows = (options.output / "curves.jsonl").read_text().splitlines()
    before = json.loads(rows[0])["val_loss"]
    assert report["val_loss"] < before < report["marginal_loss"]


@pytest.mark.parametrize(
    ("stage", "done"),
    [("reading", 9), ("encoding", 7), ("training", 1), ("training", 6)],
)
def test_a_stopped_run_goes_on_to_the_same_weights(make_options, whole, stage, done):
    options = make_options()
    with pytest.raises(Stopped):
        train(options, stop_at(stage, done))
    train(make_options(resume=True))
    assert_close(options.output, whole)
    curves = [folder / "curves.jsonl" for folder in (options.output, whole)]
    ours, theirs = ([json.loads(r) for r in c.read_text().splitlines()] for c in curves)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("stage", ["encoding", "training"])
def test_a_killed_run_goes_on_to_the_same_weights(make_options, whole, tmp_path, stage):
    options = make_options()
    script = tmp_path / "run.py"
    script.write_text(
        "import time\n"
        "from mlx_budget.train import TrainOptions, train\n"
        f"options = {_as_text(options)}\n"
        "def progress(now):\n"
        f"    if now.stage == {stage!r} and now.done == 5:\n"
        "        print('here', flush=True)\n"
        "        time.sleep(60)\n"
        "train(TrainOptions(**options), progress)\n".replace(
            "PosixPath", "pathlib.Path"
        )
    )
    text = script.read_text().replace("PosixPath", "pathlib.Path")
    script.write_text(text)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    train(make_options(resume=True))
    assert_close(options.output, whole)


def test_only_options_that_do_not_change_the_result_may_change(make_options):
    with pytest.raises(Stopped):
        train(make_options(), stop_at("training", 6))
    message = "was begun with learning_rate = 0.0002, not 0.1: go on with the same"
    with pytest.raises(ValueError, match=message):
        train(make_options(learning_rate=0.1, resume=True))
    train(make_options(save_every=1, resume=True))


def test_a_folder_that_is_in_the_way_is_left_alone(make_options, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="holds no run to go on with"):
        train(make_options(resume=True))
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="out is not empty: choose another --output"):
        train(make_options())
    assert [p.name for p in out.iterdir()] == ["letter.txt"]
    (out / "letter.txt").unlink()
    with pytest.raises(Stopped):
        train(make_options(), stop_at("training", 2))
    with pytest.raises(ValueError, match="or go on with its run with --resume"):
        train(make_options())
    train(make_options(resume=True))
    with pytest.raises(ValueError, match="holds a predictor already"):
        train(make_options(resume=True))


def test_two_runs_do_not_share_a_folder(make_options):
    def second(now: Progress) -> None:
        with pytest.raises(ValueError, match="Another program is at work in"):
            train(make_options(resume=True))
        raise Stopped

    with pytest.raises(Stopped):
        train(make_options(), second)


def test_a_loss_that_is_no_number_names_the_record(
    make_options, whole, monkeypatch, tmp_path
):
    losses = Learner.losses
    calls = []

    def spoilt(self, states, rows, lengths):
        calls.append(1)
        bad = mx.where(lengths == lengths.max(), math.nan, 0.0)
        return losses(self, states, rows, lengths) + (bad if len(calls) > 6 else 0)

    monkeypatch.setattr(Learner, "losses", spoilt)
    with pytest.raises(
        ValueError, match=r"after \d+ updates is not a number, at chats.jsonl, "
    ):
        train(make_options())
    monkeypatch.setattr(Learner, "losses", losses)
    train(make_options(resume=True))
    assert_close(tmp_path / "out", whole)


@pytest.mark.parametrize("name", ["append", "save"])
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    make_options, whole, monkeypatch, tmp_path, name
):
    from mlx_budget.train import cache, checkpoints

    target = {"append": cache.StateCache, "save": checkpoints}[name]

    def full(*args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(target, name, full)
        with pytest.raises(ValueError, match="free some space, then go on with --res"):
            train(make_options())
    train(make_options(resume=True))
    assert_close(tmp_path / "out", whole)


def test_the_last_weights_are_kept_when_asked(make_options, tmp_path):
    train(make_options(output=tmp_path / "last", keep="last"))
    train(make_options(output=tmp_path / "out", learning_rate=0.02))
    train(make_options(output=tmp_path / "bad", learning_rate=0.02, keep="last"))
    loss = {
        name: json.loads((tmp_path / name / "report.json").read_text())["val_loss"]
        for name in ("out", "bad")
    }
    assert loss["out"] < loss["bad"]


def test_a_prompt_is_on_one_side_of_the_split():
    groups = [f"group {i}" for i in range(1000)]
    held_out = [g for g in groups if is_held_out(g, 0, 0.2)]
    assert 140 < len(held_out) < 260  # 200 expected, standard deviation 13
    assert held_out != [g for g in groups if is_held_out(g, 1, 0.2)]
    assert all(is_held_out(g, 0, 0.3) for g in held_out)


def test_records_that_cannot_be_used_are_named(make_options, data, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(data.read_text() + '{"messages": 3}\nnot JSON\n')
    notes = train(make_options(data=str(mixed))).notes
    assert any("mixed.jsonl, line 41" in note for note in notes)
    assert any("mixed.jsonl, line 42" in note for note in notes)
    with pytest.raises(ValueError, match="mixed.jsonl, line 41"):
        train(make_options(data=str(mixed), strict=True, output=tmp_path / "strict"))


def test_too_few_records_say_what_is_missing(make_options, tmp_path):
    few = write_chats(tmp_path / "few.jsonl", 1)
    with pytest.raises(ValueError, match="no record is left to (train|validate) on"):
        train(make_options(data=str(few)))
    few.write_text("{}\n")
    with pytest.raises(ValueError, match="1 skipped"):
        train(make_options(data=str(few), output=tmp_path / "other"))


def test_rare_tokens_are_not_favoured_and_little_mass_is_a_warning(make_options):
    result = train(make_options(min_count=10))
    assert 0 < result.report["known_tokens"] < 10
    assert 0 < result.report["mass_let_through"] < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "size must be one of base, small, mini, tiny, not 'huge'"),
        ({"steps": 0}, "steps must be an integer >= 1, not 0"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1, not 1.0"),
        ({"epochs": 0.0}, "epochs must be above 0, not 0.0"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine"),
    ],
)
def test_bad_options_are_refused_at_once(make_options, changes, message):
    with pytest.raises(ValueError, match=message):
        make_options(**changes)


def test_the_command_shows_the_report(make_options, converted, data, tmp_path):
    command = [sys.executable, "-m", "mlx_budget", "train", "--size", "tiny"]
    command += ["--model", converted, "--data", data, "--output", tmp_path / "out"]
    command += ["--steps", "4", "--val-fraction", "0.3"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Rank correlation at the first token" in done.stderr
    assert f"The predictor is in {tmp_path / 'out'}." in done.stderr
    assert done.stdout == ""
    again = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
