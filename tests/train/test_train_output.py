"""The command `train` leaves nothing where it fails early, and says how to go on."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_budget.cli import cli
from mlx_budget.train import loop
from mlx_budget.train.output import how_to_go_on
from trainings import ONE, STEPS, WITHOUT_UPDATES, stop_at, sum_chats, write_chats

pytestmark = pytest.mark.usefixtures("no_picture")


def run(training: dict, output: Path, *arguments, **changes):
    """The command; options that are None are left out."""
    given = {**training, "output": output, **changes}
    options = [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return CliRunner().invoke(cli, ["train", *options, *map(str, arguments)])


def fails(result) -> str:
    assert (result.exit_code, result.stdout) == (2, "")
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def bad(tmp_path) -> Path:
    """A folder of data that cannot be trained on."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty.jsonl").touch()
    (folder / "prompts.jsonl").write_text('{"question": "1 + 1?"}\n')
    (folder / "broken.jsonl").write_text('{"messages": [{"role"\n')
    (folder / "letter.docx").write_text("dear")
    unclosed = sum_chats(3)
    for chat in unclosed:
        reply = chat["messages"][1]
        reply["content"] = reply["content"].replace("</think>", "")
    write_chats(folder / "unclosed.jsonl", unclosed)
    write_chats(folder / "one.jsonl", sum_chats(1))
    return folder


# What goes wrong, and what the line says of it.
MISTAKES = {
    "no data": ({"data": "./none.jsonl"}, "There is no file ./none.jsonl"),
    "empty data": ({"data": "BAD/empty.jsonl"}, "it is empty"),
    "prompts": ({"data": "BAD/prompts.jsonl"}, "make some with `mlx-budget traces`"),
    "broken data": ({"data": "BAD/broken.jsonl"}, "not JSON: broken.jsonl, line 1"),
    "a letter": ({"data": "BAD/letter.docx"}, "letter.docx is of a kind"),
    "no usable record": ({"data": "BAD/unclosed.jsonl"}, "thinking not closed"),
    "a single record": ({"data": "BAD/one.jsonl"}, "no record is left to"),
    "rare tokens": ({"min_count": 1000}, "or a lower --min-count"),
    "no model": ({"model": "./none"}, "There is no folder ./none"),
    "no adapter": ({"adapter_path": "./none"}, "There is no adapter folder ./none"),
    "another marker": ({"thinking_end_token": "zzz"}, "thinking not closed"),
    "a bad template": ({"chat_template_config": '{"tools": 5}'}, "template fails"),
    "a bad schedule": ({"schedule": "uba", "phi": -1}, "phi"),
    "a bad option": ({"learning_rate": 0}, "learning rate must be"),
    "a bad choice": ({"size": "huge"}, "'huge' is not one of"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("there", [False, True])
def test_a_mistake_leaves_everything_as_it_was(training, bad, tmp_path, mistake, there):
    changes, message = MISTAKES[mistake]
    data = changes.get("data", "")
    changes = {**changes, **({"data": data.replace("BAD", str(bad))} if data else {})}
    output = tmp_path / "new" / "out"
    if there:
        output.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for resume in ([], ["--resume"]) if there else ([],):
        line = fails(run(training, output, *resume, **changes))
        if not resume:
            assert message in line
        assert sorted(tmp_path.rglob("*")) == before


def test_states_elsewhere_that_came_to_nothing_are_forgotten(
    training, tmp_path, monkeypatch
):
    states = tmp_path / "states"

    def fail(*_):
        raise ValueError("no states")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_budget.train.cache.StateCache.append", fail)
        result = run(training, tmp_path / "out", cache_dir=states)
        assert "no states" in fails(result)
        assert not states.exists() and not (tmp_path / "out").exists()
        states.mkdir()
        assert "no states" in fails(run(training, tmp_path / "out", cache_dir=states))
    # What a killed run left there counts as little.
    (states / "settings.json").write_text('{"model": "another"}')
    result = run(training, tmp_path / "out", cache_dir=states)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("kind", "message"),
    [("file", "is a file: name a folder"), ("below", "is a file: choose another")],
)
def test_a_file_in_the_way_is_named(training, tmp_path, kind, message):
    file = tmp_path / "out"
    file.write_text("dear")
    output = file if kind == "file" else file / "deep"
    assert message in fails(run(training, output))
    line = fails(run(training, tmp_path / "other", cache_dir=output))
    assert message in line and "--cache-dir" in line
    assert file.read_text() == "dear"


def test_what_the_finder_puts_into_a_folder_is_not_in_the_way(training, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()
    assert run(training, out, **ONE).exit_code == 0


def test_a_training_folder_of_somebody_else_is_in_the_way(training, tmp_path):
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / "plan.txt").touch()
    for resume in ([], ["--resume"]):
        assert "is not empty" in fails(run(training, tmp_path / "out", *resume))


def test_a_run_without_states_leaves_nothing_or_all(training, tmp_path, monkeypatch):
    """A table is made without anything to go on from."""
    out, options = tmp_path / "out", {**WITHOUT_UPDATES, "size": "table"}

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_light_card", fail)  # the report is there by then
        assert run(training, out, **options).exit_code == 130
        assert not out.exists()
    # As a kill leaves it.
    (out / "training").mkdir(parents=True)
    (out / "report.json").touch()
    assert "is not empty" in fails(run(training, out, **options))
    (out / "training" / "options.json").write_text("{}")
    assert run(training, out, **options).exit_code == 0
    again = run(training, out, "--resume", **options)
    assert "is finished" in again.stderr


def test_a_finished_run_has_nothing_left_to_do(training, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    # Neither the data nor the model is needed for that.
    assert "holds a predictor already" in fails(run(training, out))
    result = run(training, out, "--resume")
    assert (result.exit_code, result.stdout) == (0, "")
    line = f"Nothing left to do: the predictor in {out} is finished."
    assert result.stderr.splitlines() == [line]
    other = fails(run(training, out, "--resume", learning_rate=0.1))
    assert "was begun with --learning-rate = 0.0002, not 0.1" in other
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    shutil.rmtree(out / "training")
    assert run(training, out, "--resume").stderr.splitlines() == [line]


def test_the_report_of_a_finished_run_is_its_own(make_options, whole):
    again = loop.train(make_options(output=whole, resume=True))
    assert not again.is_new
    assert again.report == json.loads((whole / "report.json").read_text())


def test_another_spelling_of_the_data_is_the_same_data(training, whole, monkeypatch):
    data = Path(training["data"])
    monkeypatch.chdir(data.parent)
    assert run(training, whole, "--resume", data=data.name).exit_code == 0


@pytest.fixture
def interrupted(monkeypatch):
    """Lets Ctrl-C come at a place of a run."""

    def at(stage: str, done: int) -> None:
        train, stop = loop.train, stop_at(stage, done, KeyboardInterrupt)
        monkeypatch.setattr(loop, "train", lambda options, _: train(options, stop))

    return at


@pytest.mark.parametrize(
    ("stage", "done", "kept"),
    [
        ("reading", 3, False),
        ("encoding", 0, False),
        ("encoding", 1, True),
        ("training", 2, True),
        ("training", STEPS, True),
    ],
)
def test_an_interrupt_names_what_goes_on(
    training, tmp_path, interrupted, stage, done, kept
):
    out = tmp_path / "out"
    interrupted(stage, done)
    result = run(training, out)
    assert (result.exit_code, result.stdout) == (130, "")
    *_, line = result.stderr.splitlines()
    if kept:
        assert line == (
            f"Stopped; what there is so far is in {out}: run the same again with "
            "--resume, and it goes on from there."
        )
    else:
        assert line == (
            f"Stopped before there was anything to keep in {out}: run the same again."
        )
    assert out.exists() == kept


def test_an_interrupt_tells_of_states_elsewhere(make_options, tmp_path):
    states = tmp_path / "states"
    options = make_options(cache_dir=states)
    with pytest.raises(KeyboardInterrupt):
        loop.train(options, stop_at("encoding", 2, KeyboardInterrupt))
    assert not options.output.exists()
    assert how_to_go_on(options).endswith(
        f": run the same again. The hidden states in {states} are used again."
    )
    seen = []
    loop.train(options, seen.append)
    assert next(p.done for p in seen if p.stage == "encoding") == 2
