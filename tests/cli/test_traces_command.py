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
    assert "max_tokens must be" in line("-m", 0)
    assert "not valid JSON" in line("--chat-template-config", "{")
    assert "No such option" in line("--predictor", "none")
    assert not output.exists()
    before = data.read_bytes()
    assert "line 1, is no record of traces" in line(output=data)
    assert data.read_bytes() == before
    output.mkdir()
    assert "Is a directory" in line()


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


def child(fail: str, arguments: list, **options) -> subprocess.Popen:
    """The command in a process of its own, which fails at the third record."""
    return failing(3, fail, "traces", *arguments, **options)


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
    assert len(records_of(output)) == 2
    result = run(*command(converted, data, output))
    assert result.exit_code == 0, result.stderr
    assert contents(output.read_bytes()) == contents(greedy)
