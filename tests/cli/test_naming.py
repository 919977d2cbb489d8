"""Errors call an option as the user wrote it; scripts and help by their own names."""

import runpy
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mlx_budget.cli import cli
from mlx_budget.cli.naming import typed_spellings

ROOT = Path(__file__).parents[2]
ASK = ("generate", "-p", "What is 2 + 3?")


def line(*args: str) -> str:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


@pytest.mark.parametrize("typed", ["--thinking-budget", "--reasoning-budget"])
@pytest.mark.parametrize("value", ["lo", "-5", "9-5", "0%", "99999999999", ""])
def test_a_bad_budget_is_called_as_it_was_typed(typed, value):
    for command in (ASK, ("chat",), ("serve",)):
        message = line(*command, f"{typed}={value}")
        assert typed in message
        assert "thinking_budget" not in message
        assert ("--thinking-budget" in message) == (typed == "--thinking-budget")


@pytest.mark.parametrize(
    ("args", "beginning"),
    [
        (["-m", "x"], "Invalid value for '-m'"),
        (["--max-tokens", "x"], "Invalid value for '--max-tokens'"),
        (["-m", "0"], "-m must be 1 or more"),
        (["--max-tokens=0"], "--max-tokens must be 1 or more"),
        (["--chat-template-args", "["], "--chat-template-args is not valid JSON"),
        (["--chat-template-args=3"], "--chat-template-args must be a JSON object"),
        (["--chat-template-config", "["], "--chat-template-config is not valid JSON"),
        (["--hard-stop", "0.5"], "--hard-stop must be a factor"),
        (["--temp", "-1"], "--temp must be finite"),
        (["--reasoning-budget", "4", "--no-thinking"], "Give --reasoning-budget or"),
        (
            ["--reasoning-budget", "4", "--min-thinking-tokens", "5"],
            "--min-thinking-tokens is 5, above",
        ),
        (["--xtc-threshold", "2"], "Invalid value for '--xtc-threshold'"),
        (["--json-schema", "no/file"], "--json-schema is neither"),
    ],
)
def test_other_options_are_called_as_they_were_typed(args, beginning):
    assert line(*ASK, *args).startswith(beginning)


@pytest.mark.parametrize(
    ("args", "beginning"),
    [
        (["serve", "--prompt-cache-bytes", "x"], "Invalid value for '--prompt-cache"),
        (["serve", "--effort", "x"], "--effort must give tokens"),
        (["evaluate", "--output", "a", "--budgets", "x"], "Invalid value for '--budg"),
        (["evaluate", "--output", "a", "--strategies", "x"], "Invalid value for '--st"),
        (["traces", "--model", "demo", "--data", ""], "Invalid value for '--data'"),
        (["convert", "--model", "m", "--q-bits", "x"], "Invalid value for '--q-bits'"),
    ],
)
def test_so_are_those_of_other_commands(args, beginning):
    assert line(*args).startswith(beginning)


def test_hints_for_callers_from_python_keep_their_names():
    message = line(*ASK, "--kv-bits", "4", "--max-kv-size", "100")
    assert "--kv-bits or --max-kv-size (kv_bits or max_kv_size in Python)" in message


@pytest.mark.parametrize(
    ("args", "typed"),
    [
        (["-m", "5"], {"max": "-m"}),
        (["-m5", "-q"], {"max": "-m", "quick": "-q"}),
        (["-qm", "5", "--most=3"], {"max": "--most", "quick": "-q"}),
        (["--most", "-q"], {"max": "--most"}),
        (["--", "-q"], {}),
        (["word", "--not-quick", "--none"], {"quick": "--not-quick"}),
    ],
)
def test_spellings_are_found_as_click_reads_them(args, typed):
    options = [
        click.Option(["--most", "-m", "max"]),
        click.Option(["--quick/--not-quick", "-q"]),
    ]
    assert typed_spellings(options, args) == typed


@pytest.mark.parametrize("script", ["generate.py", "convert.py"])
@pytest.mark.parametrize("help", ["-h", "--help"])
def test_a_script_has_its_own_name_in_help(script, help, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, help])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"Usage: {script} [OPTIONS]\n")


def test_a_script_obeys_the_users_defaults(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", "-p", "Hm."])
    monkeypatch.setenv("MLX_BUDGET_GENERATE_THINKING_BUDGET", "lo")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "generate.py"), run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: MLX_BUDGET_GENERATE_THINKING_BUDGET must be")


COMMANDS = [(), *((name,) for name in cli.commands)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there_by_both_names_and_fits_a_terminal(command):
    short, long = (CliRunner().invoke(cli, [*command, h]) for h in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert max(map(len, short.stdout.splitlines())) <= 80


def test_no_summary_is_cut():
    text = " ".join(CliRunner().invoke(cli, ["--help"]).stdout.split())
    assert "..." not in text.partition("Commands:")[2]
    for name, command in cli.commands.items():
        paragraph = (command.help or "").split("\n\n")[0]
        assert f" {name} {' '.join(paragraph.split())}" in text


def test_options_are_in_groups():
    text = CliRunner().invoke(cli, ["generate", "--help"]).stdout
    groups = {
        part.split(" options:\n")[0]: part.split(" options:\n")[1]
        for part in text.split("\n\n")
        if " options:\n" in part
    }
    assert list(groups) == [
        *("Model", "Thinking", "Sampling", "Prompt", "Memory and speed"),
        "Output",
    ]
    assert "--thinking-budget" in groups["Thinking"]
    assert "--temp" in groups["Sampling"]
    assert "--predictor" in groups["Model"]
    assert "--json" in groups["Output"]
    for name, command in cli.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert getattr(parameter, "group", "Other") != "Other", (
                    name,
                    parameter.name,
                )
