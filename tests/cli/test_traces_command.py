"""The command `traces`, as a user runs it, stops it and kills it."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from dying import INTERRUPT, KILL, failing
from mlx_budget import load
from mlx_budget.cli import cli
from traced import PROMPTS, records_of, write


@pytest.fixture(scope="module")
def greedy(loaded, tmp_path_factory) -> bytes:
    """What is written in one go, without a stop."""
    file = tmp_path_factory.mktemp("greedy") / "traces.jsonl"
    write(loaded, file)
    return file.read_bytes()


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "traces.jsonl"


@pytest.fixture
def data(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    text = "".join(json.dumps({"question": p}) + "\n" for p in PROMPTS)
    file.write_text(text, encoding="utf-8")
    return file


def run(*arguments):
    return CliRunner().invoke(cli, ["traces", *map(str, arguments)])


def command(model, data, output, *options) -> list:
    files = ["--model", model, "--data", data, "--output", output]
    return [*files, "--temp", 0, "-m", 60, "--batch-size", 3, *options]


def fails(result) -> str:
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def contents(text: bytes) -> dict[str, list]:
    """The records but for their settings, which name the model's folder."""
    records = [json.loads(line) for line in text.splitlines()]
    return {r["id"]: [v for k, v in r.items() if k != "settings"] for r in records}


def test_the_command_writes_the_records_and_a_summary(
    converted, data, tmp_path, greedy
):
    output = tmp_path / "new" / "traces.jsonl"
    result = run(*command(converted, data, output))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert contents(output.read_bytes()) == contents(greedy)
    records = records_of(output).values()
    closed = sum(r["closed_by"] == "model" for r in records)
    mean = sum(r["thinking_tokens"] for r in records) / 4
    label, summary, *_ = result.stderr.splitlines()
    assert label == "Traces"
    assert summary.startswith(
        f"Traces: 4 records, {closed} closed by the model, {mean:.1f} thinking tokens "
        "on average, "
    )
    assert summary.endswith(" tokens-per-sec")
    # The name of a folder is the same from wherever it is spelt.
    again = run(*command(os.path.relpath(converted), data, output))
    assert again.exit_code == 0, again.stderr
    assert "tokens-per-sec" not in again.stderr
    *_, told, _ = again.stderr.splitlines()
    assert told == f"Nothing left to do: {output} is finished."
    assert "Nothing left" not in result.stderr


def test_few_closed_replies_bring_a_warning(converted, data, output):
    short = run(*command(converted, data, output, "-m", 3))
    assert short.exit_code == 0
    line = short.stderr.splitlines()[-1]
    assert line.startswith("Warning: fewer than half closed their thinking")
    assert "Raise --max-tokens (it is 3)" in line
    output.unlink()
    long = run(*command(converted, data, output, "-m", 200))
    assert "Warning" not in long.stderr


def test_options_reach_the_model(converted, data, tmp_path):
    def written(name: str, *options) -> dict[str, list]:
        file = tmp_path / f"{name}.jsonl"
        result = run(*command(converted, data, file, "-m", 12, *options))
        assert result.exit_code == 0, result.stderr
        return contents(file.read_bytes())

    plain = written("plain")
    for number, option in enumerate(
        (
            ["--system-prompt", "Be terse."],
            ["--ignore-chat-template"],
            ["--prompt-template", "{} Think."],
            ["--limit", 2],
            ["--temp", 1, "--seed", 1],
            ["--temp", 1, "--num-samples", 2],
            ["--thinking-end-token", "So"],
        )
    ):
        assert written(str(number), *option) != plain
    for number, option in enumerate(
        (["--top-k", 1, "--temp", 1], ["--top-p", 1e-6, "--temp", 1])
    ):
        assert written(f"likeliest-{number}", *option) == plain


def test_the_command_refuses_in_one_line(converted, data, output, tmp_path):
    def line(*options, model=converted, data=data, output=output) -> str:
        return fails(run(*command(model, data, output, *options)))

    assert "There is no file" in line(data=tmp_path / "none.jsonl")
    assert "There is no folder ./none" in line(model="./none")
    assert "At temp 0 all 2 samples" in line("--num-samples", 2)
    assert "no {} to stand" in line("--prompt-template", "x")
    assert "must be a file *.jsonl" in line(output=tmp_path / "out.txt")
    assert "0 is not in the range" in line("--limit", 0)
    assert "-m must be" in line("-m", 0)
    assert "not valid JSON" in line("--chat-template-config", "{")
    assert "No such option" in line("--predictor", "none")
    assert not output.exists()
    before = data.read_bytes()
    assert "line 1, is no record of traces" in line(output=data)
    assert data.read_bytes() == before
    output.mkdir()
    assert "is a folder: name a file" in line()
    assert "file.jsonl cannot be made" in line(output=data / "file.jsonl")


@pytest.mark.parametrize(
    "options",
    [
        ("--thinking-end-token", ""),
        ("--chat-template-config", '{"tools": 5}'),
        ("--thinking-start-token", "a", "--max-kv-size", 5),
    ],
)
def test_a_mistake_that_shows_late_leaves_nothing(converted, data, tmp_path, options):
    before = sorted(tmp_path.rglob("*"))
    fails(run(*command(converted, data, tmp_path / "new" / "out.jsonl", *options)))
    assert sorted(tmp_path.rglob("*")) == before
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    fails(run(*command(converted, data, empty, *options)))
    assert empty.exists()


def test_a_model_without_markers_is_refused_before_its_weights_are_read(
    converted, data, output, tmp_path, monkeypatch
):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in converted.iterdir():
        text = file.read_bytes()
        if file.name.startswith("tokenizer"):
            text = text.replace(b"think>", b"other>")
        (folder / file.name).write_bytes(text)
    assert "no thinking markers" in fails(run(*command(folder, data, output)))
    assert not output.exists()
    asked = []
    monkeypatch.setattr(
        "mlx_budget.models.loading.load",
        lambda *names, **options: asked.append(options) or load(*names, **options),
    )
    given = ["--thinking-start-token", "", "--thinking-end-token", "So", "--limit", 1]
    result = run(*command(folder, data, output, *given))
    assert result.exit_code == 0, result.stderr
    assert asked[0]["lazy"] is True and asked[0]["predictor"] is False


def test_help_says_what_to_sample():
    text = " ".join(run("--help").stdout.split())
    assert "sample the distribution that is going to be steered" in text
    for option in ("--num-samples", "--prompt-template", "--adapter-path", "--seed"):
        assert option in text
    assert "--predictor" not in text


def child(fail: str, arguments: list, number: int = 3, **options) -> subprocess.Popen:
    """The command in a process of its own, which fails at the third record."""
    return failing(number, fail, "traces", *arguments, **options)


def test_a_sampled_run_killed_twice_is_one_never_stopped(
    converted, data, output, tmp_path
):
    sampled = ("--temp", 1, "--seed", 5, "--num-samples", 2, "-m", 30)
    whole = tmp_path / "whole.jsonl"
    assert run(*command(converted, data, whole, *sampled)).exit_code == 0
    arguments = command(converted, data, output, *sampled)
    for number, kept in ((2, 1), (4, 4)):
        process = child(KILL, arguments, number, stderr=subprocess.DEVNULL)
        assert process.wait() == -signal.SIGKILL
        assert output.read_bytes().count(b"\n") == kept
    assert run(*arguments).exit_code == 0
    assert sorted(output.read_bytes().splitlines()) == sorted(
        whole.read_bytes().splitlines()
    )
    # They are draws: another seed has others, and so has a second sample.
    records = contents(whole.read_bytes())
    assert records["0-0"][1:] != records["0-1"][1:]
    other = tmp_path / "other.jsonl"
    run(*command(converted, data, other, *sampled, "--seed", 6))
    assert contents(other.read_bytes()) != records


def test_a_killed_run_is_gone_on_with(converted, data, output, greedy):
    process = child(KILL, command(converted, data, output), stderr=subprocess.DEVNULL)
    assert process.wait() == -signal.SIGKILL
    *_, whole, begun = output.read_bytes().split(b"\n")
    assert whole and len(begun) == 150
    result = run(*command(converted, data, output))
    assert result.exit_code == 0, result.stderr
    assert len(records_of(output)) == 4
    assert contents(output.read_bytes()) == contents(greedy)


def test_an_interrupt_shows_what_is_there_and_keeps_it(converted, data, output, greedy):
    ours, theirs = pty.openpty()
    arguments = command(converted, data, output)
    process = child(INTERRUPT, arguments, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux: the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 130
    assert b"Traceback" not in shown
    assert b"Traces  [##" in shown and b"2/4" in shown
    assert re.search(rb" tokens-per-sec, \d+:\d\d:\d\d", shown)
    assert b"\r\nStopped with 2 of 4 records in " in shown
    assert b": run the same again, and it goes on from there.\r\n" in shown
    assert len(records_of(output)) == 2
    result = run(*command(converted, data, output))
    assert result.exit_code == 0, result.stderr
    assert contents(output.read_bytes()) == contents(greedy)


def test_an_interrupt_before_the_first_record_leaves_nothing(
    converted, data, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_budget.train.traces.stream_batch_generate", interrupt)
    output = tmp_path / "new" / "out.jsonl"
    result = run(*command(converted, data, output))
    assert (result.exit_code, result.stdout) == (130, "")
    *_, line = result.stderr.splitlines()
    assert line == f"Stopped before there was a record in {output}: run the same again."
    assert not output.parent.exists()
