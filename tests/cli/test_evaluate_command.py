"""The commands `evaluate` and `report`, as a user runs them."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from dying import KILL, failing
from evaluation_records import record
from mlx_budget import demo
from mlx_budget.cli import cli
from mlx_budget.files.records import RecordFile

PICTURES = {"accuracy.png", "accuracy-thinking.png", "length.png", "difficulty.png"}


@pytest.fixture
def questions(tmp_path) -> Path:
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"What is {a} + 7?", "answer": a + 7} for a in (14, 3, 9)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def run(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


def evaluate(converted, questions, output, *args):
    options = ("--max-tokens", 80, "--budgets", "15,50%")
    return run(
        "evaluate",
        *("--model", converted, "--data", questions, "--output", output),
        *options,
        *args,
    )


def fails(result) -> str:
    """The one line of a command that ended on bad input."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_a_table_and_files_come_of_it_and_come_again(converted, questions, tmp_path):
    output = tmp_path / "run"
    result = evaluate(converted, questions, output)
    assert result.exit_code == 0, result.stderr
    for arm in ("full", "guidance", "budget-forcing"):
        assert arm in result.stdout
    names = {f.name for f in output.iterdir()}
    assert names >= {"records.jsonl", "settings.json", "summary.json", "summary.md"}
    assert names >= PICTURES
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert [arm["n"] for arm in summary["arms"]] == [3] * 5
    assert summary["settings"]["task"]
    for name in names - {"records.jsonl", "settings.json", "lengths.jsonl"}:
        (output / name).unlink()
    again = run("report", output)
    assert again.exit_code == 0
    assert again.stdout == result.stdout
    assert {f.name for f in output.iterdir()} == names
    assert json.loads(run("report", output, "--json").stdout) == summary


def test_the_same_seed_prints_the_same_table(converted, questions, tmp_path):
    options = ("--temp", 1, "--budgets", 15, "--strategies", "full,guidance")
    tables = [
        evaluate(converted, questions, tmp_path / name, *options, "--seed", seed)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    one, two, other = (table.stdout for table in tables)
    assert one == two
    assert one != other


def test_budgets_and_strategies_are_read_from_lists(converted, questions, tmp_path):
    result = evaluate(
        converted, questions, tmp_path / "run", "--strategies", "truncate,no-thinking"
    )
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    arms = [arm["arm"] for arm in summary["arms"]]
    assert arms == ["full", "no-thinking", "truncate@15", "truncate@50%"] or (
        arms == ["full", "no-thinking", "truncate@50%", "truncate@15"]
    )
    assert "full" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--budgets", "x"], "such as 500 or 63%; not 'x'"),
        (["--strategies", "cut"], "There is no strategy 'cut': choose from full"),
        (["--temp", "-1"], "temp must be finite and 0 or more"),
        (["--hard-stop", "0.5"], "--hard-stop must be a factor of the budget"),
        (["--predictor", "none"], "strategy guidance needs a predictor"),
    ],
)
def test_bad_options_end_in_one_line(converted, questions, tmp_path, args, message):
    result = evaluate(converted, questions, tmp_path / "run", *args)
    assert message in fails(result)
    assert not (tmp_path / "run").exists()


def test_a_mistake_does_not_stand_in_the_way_of_the_corrected_command(
    converted, questions, tmp_path
):
    output = tmp_path / "run"
    output.mkdir()
    template = ("--strategies", "full", "--chat-template-config", '{"tools": 5}')
    bad = evaluate(converted, questions, output, *template)
    assert (bad.exit_code, bad.stdout) == (2, "")
    assert "cannot render this prompt" in bad.stderr.splitlines()[-1]
    assert list(output.iterdir()) == []
    assert "There is no folder" in fails(evaluate("./none", questions, output))
    # Nor does what a run left that was killed before its first reply.
    (output / "records.jsonl").touch()
    (output / "settings.json").write_text('{"model": "other", "temp": 9}')
    result = evaluate(converted, questions, output, "--strategies", "full")
    assert result.exit_code == 0, result.stderr
    settings = json.loads((output / "settings.json").read_text())
    assert settings["model"] == str(converted)
    other = evaluate("./none", questions, output, "--strategies", "full")
    assert "is of a run with model" in fails(other)


def test_a_finished_run_has_nothing_left_to_do(converted, questions, tmp_path):
    output, options = tmp_path / "run", ("--strategies", "full")
    first = evaluate(converted, questions, output, *options)
    again = evaluate(converted, questions, output, *options)
    told = f"Nothing left to do: {output} is finished."
    assert told in again.stderr.splitlines()
    assert "Nothing left" not in first.stderr
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    more = evaluate(converted, questions, output, "--strategies", "full,no-thinking")
    assert "Nothing left" not in more.stderr


# What three questions are expected to take comes before their replies.
@pytest.mark.parametrize("number", [1, 4, 5])
def test_an_interrupt_says_how_to_go_on(
    converted, questions, tmp_path, monkeypatch, number
):
    output, written = tmp_path / "run", []

    def interrupt(self, record):
        written.append(record)
        if len(written) == number:
            raise KeyboardInterrupt
        append(self, record)

    append = RecordFile.append
    monkeypatch.setattr(RecordFile, "append", interrupt)
    result = evaluate(converted, questions, output, "--strategies", "full")
    assert (result.exit_code, result.stdout) == (130, "")
    *_, line = result.stderr.splitlines()
    if number < 5:
        expected = f"Stopped before there was a reply in {output}: run the same again."
    else:
        expected = (
            "Stopped: run the same again, and it goes on from there. What there is so "
            f"far: `mlx-budget report {output}`."
        )
    assert line == expected
    assert output.exists() == (number > 1)


def test_a_folder_that_cannot_be_written_is_refused_before_the_model(
    questions, tmp_path
):
    assert "is a file: name a folder" in fails(evaluate("./no", questions, questions))
    below = questions / "run"
    assert "run cannot be made" in fails(evaluate("./no", questions, below))


def test_a_model_needs_a_task(converted, tmp_path):
    result = run("evaluate", "--model", converted, "--output", tmp_path / "run")
    assert "gsm8k" in fails(result)


def test_a_report_shows_three_strategies_and_all_if_it_is_asked_for(tmp_path):
    names = ("full", "guidance", "hard-stop", "truncate", "s1")
    rows = [
        record(
            name, None if name == "full" else 20, n, 10 + n + len(name), id=f"{name}{n}"
        )
        for name in names
        for n in range(4)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "records.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "settings.json").write_text("{}", encoding="utf-8")
    few = run("report", tmp_path)
    assert few.exit_code == 0, few.stderr
    told = re.search(
        "The pictures show full, guidance and (.*?); `(.*)` shows", few.stderr
    )
    assert told[1] in ("hard-stop", "truncate")
    assert told[2] == f"mlx-budget report --all {tmp_path}"
    pictures = [(tmp_path / name).read_bytes() for name in PICTURES]
    every = run("report", "--all", tmp_path)
    assert every.exit_code == 0 and "The pictures show" not in every.stderr
    assert every.stdout == few.stdout
    now = [(tmp_path / name).read_bytes() for name in PICTURES]
    assert sum(a != b for a, b in zip(pictures, now, strict=True)) == 3


def test_reports_of_nothing_say_so(tmp_path):
    assert "name the --output folder" in fails(run("report", tmp_path / "none"))


def test_a_killed_run_loses_and_doubles_nothing(tmp_path):
    """The built-in model, killed at four moments, against a run left alone."""

    def command(output: Path) -> list[str]:
        options = ["--limit", "3", "--budgets", "40", "--max-tokens", "60"]
        return ["evaluate", "--model", "demo", *options, "--output", str(output)]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # After two of the three predicted lengths, then after 1, 3 and 7 of the 9 records,
    # with half of the next.
    for number, kept in ((2, 0), (3, 1), (3, 3), (5, 7)):
        process = failing(
            number,
            KILL,
            *command(killed),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.wait() == -signal.SIGKILL
        *lines, begun = (killed / "records.jsonl").read_bytes().split(b"\n")
        assert (len(lines), len(begun)) == (kept, 150 if kept else 0)
        lengths = (killed / "lengths.jsonl").read_bytes().splitlines()
        assert len(lengths) == (3 if kept else 2)
    results = [run(*command(output)) for output in (killed, whole)]
    assert [r.exit_code for r in results] == [0, 0], results[0].stderr
    assert len(_lines(killed)) == len(_lines(whole)) == 3 * 3
    ids = {json.loads(line)["id"] for line in _lines(killed)}
    assert ids == {json.loads(line)["id"] for line in _lines(whole)}
    assert results[0].stdout == results[1].stdout


def test_the_built_in_model_has_its_own_problems(tmp_path):
    result = run(
        *("evaluate", "--limit", 4, "--strategies", "no-thinking"),
        *("--output", tmp_path / "run", "--budgets", "40"),
    )
    assert result.exit_code == 0
    assert demo.NOTICE in result.stderr
    settings = json.loads((tmp_path / "run/settings.json").read_text(encoding="utf-8"))
    assert (settings["model"], settings["task"]) == ("demo", "demo")


def _lines(folder: Path) -> list[bytes]:
    return (folder / "records.jsonl").read_bytes().splitlines()
