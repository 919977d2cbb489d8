"""Defaults of options: a file, variables of the environment, and what beats what."""

import json
import sys
from pathlib import Path

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from mlx_budget.cli import cli
from mlx_budget.cli.command import Command, Group
from mlx_budget.cli.defaults import (
    CONFIG_VARIABLE,
    RESERVED,
    config_file,
    key_of,
    options_of,
    read_defaults,
)
from mlx_budget.cli.options import options_from
from mlx_budget.cli.parameters import PATH, command_option
from mlx_budget.engine.settings import ModelSource, Sampling, ThinkingBudget

SMALL = Group("mlx-budget")


@SMALL.command(cls=Command)
@options_from(source=ModelSource, thinking=ThinkingBudget, sampling=Sampling)
@command_option("--word", "words", multiple=True)
@command_option("--folder", type=PATH)
@command_option("--max-tokens", "-m", type=int)
def ask(source, thinking, sampling, words, folder, max_tokens):
    values = {
        "model": source.model,
        "predictor": source.predictor,
        "tokens": str(thinking.tokens),
        "hard_stop": thinking.hard_stop,
        "answer_anyway": thinking.answer_anyway,
        "temp": sampling.temp,
        "seed": sampling.seed,
        "words": words,
        "folder": str(folder),
        "max_tokens": max_tokens,
    }
    click.echo(json.dumps(values))


@SMALL.command(cls=Command)
@command_option("--from-path", "--model", "from_path", required=True)
@options_from(sampling=Sampling)
def change(from_path, sampling):
    click.echo(json.dumps({"from_path": from_path, "temp": sampling.temp}))


SMALL.take_variables()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the configuration file."""
    file = tmp_path / "config.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))

    def write(text: str) -> Path:
        file.write_text(text, encoding="utf-8")
        return file

    write("")
    return write


def run(*args: str, group: Group = SMALL, **environment: str) -> dict:
    result = CliRunner().invoke(group, args, env=environment)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def fails(*args: str, group: Group = SMALL, **environment: str) -> str:
    result = CliRunner().invoke(group, args, env=environment)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def test_the_command_line_beats_a_variable_and_that_the_file(write):
    assert run("ask")["temp"] == 0
    write("temp = 0.1")
    assert run("ask")["temp"] == 0.1
    write("temp = 0.1\n[ask]\ntemp = 0.2")
    assert (run("ask")["temp"], run("change", "--model", "x")["temp"]) == (0.2, 0.1)
    assert run("ask", MLX_BUDGET_TEMP="0.3")["temp"] == 0.3
    both = {"MLX_BUDGET_TEMP": "0.3", "MLX_BUDGET_ASK_TEMP": "0.4"}
    assert run("ask", **both)["temp"] == 0.4
    assert run("change", "--model", "x", **both)["temp"] == 0.3
    assert run("ask", "--temp", "0.5", **both)["temp"] == 0.5
    assert run("ask", MLX_BUDGET_TEMP="")["temp"] == 0.2


def test_a_file_has_values_of_every_kind(write):
    write(
        """
        model = "./m"
        predictor = "none"
        thinking_budget = "50%"
        hard-stop = 2
        answer-anyway = true
        [ask]
        temp = 1
        seed = 18446744073709551615
        word = ["a b", "c"]
        folder = "~/here"
        max-tokens = -1
        """
    )
    assert run("ask") == {
        "model": "./m",
        "predictor": False,
        "tokens": "50%",
        "hard_stop": 2,
        "answer_anyway": True,
        "temp": 1,
        "seed": 2**64 - 1,
        "words": ["a b", "c"],
        "folder": str(Path.home() / "here"),
        "max_tokens": -1,
    }


@pytest.mark.parametrize("text", ["500", '"500"'])
def test_a_budget_in_a_file_may_be_a_number_or_a_text(write, text):
    write(f"thinking-budget = {text}")
    assert run("ask")["tokens"] == "500"


@pytest.mark.parametrize(
    "text", ["no-answer-anyway = false", "answer-anyway = true", "answer_anyway=true"]
)
def test_a_switch_may_be_turned_by_either_name(write, text):
    write(text)
    assert run("ask")["answer_anyway"] is True
    assert run("ask", "--no-answer-anyway")["answer_anyway"] is False


def test_what_counts_more_beats_a_switch_that_says_otherwise(write):
    write("no-thinking = true")
    assert run("ask")["tokens"] == "0"
    assert run("ask", "--thinking-budget", "9")["tokens"] == "9"
    assert run("ask", MLX_BUDGET_THINKING_BUDGET="9")["tokens"] == "9"
    write("thinking-budget = 9\n[ask]\nno-thinking = true")
    assert run("ask")["tokens"] == "0"
    write("thinking-budget = 9\nhard-stop = 2")
    given = run("ask", "--no-thinking", "--no-hard-stop")
    assert (given["tokens"], given["hard_stop"]) == ("0", None)
    line = fails("ask", "--no-thinking", "--reasoning-budget", "9")
    assert line == "Error: Give --reasoning-budget or --no-thinking, not both."


def test_another_name_of_an_option_is_the_same_option(write):
    write("reasoning-budget = 9")
    assert run("ask")["tokens"] == "9"
    assert run("ask", MLX_BUDGET_REASONING_BUDGET="8")["tokens"] == "8"
    file = write("reasoning-budget = 9\nthinking-budget = 8")
    line = fails("ask")
    assert f"thinking-budget in {file} is the same option as reasoning-budget" in line


def test_a_model_is_not_what_another_command_calls_so_too(write):
    write('model = "./m"')
    environment = {"MLX_BUDGET_MODEL": "./n"}
    assert run("ask")["model"] == "./m"
    assert run("ask", **environment)["model"] == "./n"
    assert "Missing option" in fails("change", **environment)
    write('[change]\nmodel = "./m"')
    assert run("change")["from_path"] == "./m"
    specific = {"MLX_BUDGET_CHANGE_MODEL": "./n"}
    assert run("change", **specific)["from_path"] == "./n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tempp = 1", "tempp in FILE is no option of any command: did you mean temp?"),
        ("[ask]\nzzz = 1", "[ask] zzz in FILE is no option of that command."),
        ("[asks]\ntemp = 1", "FILE has a section [asks], and there is no such command"),
        ("temp = 'hot'", "temp in FILE must be a number, not 'hot'."),
        ("temp = true", "temp in FILE must be a number, not true."),
        ("[ask]\nmax-tokens = 1.5", "[ask] max-tokens in FILE must be a whole number"),
        ("no-thinking = 'yes'", "no-thinking in FILE must be true or false, not 'yes'"),
        ("model = 5", "model in FILE must be a text, not 5."),
        ("budget-mode = ['about']", "budget-mode in FILE must be a text"),
        ("word = 3", "word in FILE must be a text or a list of texts, not 3."),
        (
            "thinking-budget = 0.5",
            "thinking-budget in FILE must be a text or a whole number",
        ),
        ("thinking-budget = 'lo'", "thinking-budget in FILE must be an integer"),
        ("thinking-budget = -5", "thinking-budget in FILE must be -1 (no budget), 0"),
        ("temp = -1", "temp in FILE must be finite and 0 or more, not -1.0."),
        ("top-p = 3", "Invalid value for top-p in FILE: 3.0 is not in the range"),
        ("budget-mode = 'x'", "Invalid value for budget-mode in FILE: 'x' is not one"),
        ("temp = ?", "FILE is not valid TOML: Invalid value (at line 1, column 8)."),
        ("temp = 1\ntemp = 2", "FILE is not valid TOML: Cannot overwrite a value"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(write, text, message):
    file = write(text)
    line = fails("ask")
    assert line.startswith(f"Error: {message.replace('FILE', str(file))}"), line
    # Help is there all the same.
    assert CliRunner().invoke(SMALL, ["ask", "--help"]).exit_code == 0


def test_a_file_that_cannot_be_read_is_one_line(write, tmp_path):
    file = write("")
    file.write_bytes(b"\xff\xfe")
    assert fails("ask") == f"Error: {file} is not UTF-8 text."
    file.unlink()
    assert f"There is no file {file}, which {CONFIG_VARIABLE} names" in fails("ask")
    file.mkdir()
    assert fails("ask") == f"Error: {file} cannot be read: Is a directory."


def test_a_wrong_variable_is_named(write):
    line = fails("ask", MLX_BUDGET_THINKING_BUDGET="lo")
    assert line.startswith("Error: MLX_BUDGET_THINKING_BUDGET must be an integer")
    line = fails("ask", MLX_BUDGET_ASK_TOP_P="3")
    assert line.startswith("Error: Invalid value for MLX_BUDGET_ASK_TOP_P: 3.0 is not")
    line = fails("ask", MLX_BUDGET_NO_THINKING="perhaps")
    assert "MLX_BUDGET_NO_THINKING" in line


def test_a_variable_of_no_option_is_told(write):
    environment = {"MLX_BUDGET_TEMPP": "1", "MLX_BUDGET_DEBUG": ""}
    result = CliRunner().invoke(SMALL, ["ask"], env=environment)
    assert result.exit_code == 0
    assert result.stderr == (
        "Warning: MLX_BUDGET_TEMPP is the variable of no option: did you mean "
        "MLX_BUDGET_TEMP?\n"
    )


def test_every_option_has_its_variables_and_none_that_mean_something_else():
    for name, command in cli.commands.items():
        for option in options_of(command):
            key = key_of(option).replace("-", "_").upper()
            names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
            assert f"MLX_BUDGET_{name.upper()}_{key}" in names
            assert not {*RESERVED} & {*names}
    key = {o.name: o.envvar for o in options_of(cli.commands["serve"])}["api_key"]
    assert key[0] == "MLX_BUDGET_API_KEY"


def test_the_file_lies_where_the_platform_keeps_such_files(monkeypatch, tmp_path):
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    if sys.platform == "linux":
        assert config_file() == tmp_path / ".config/mlx-budget/config.toml"
    assert config_file().name == "config.toml"
    assert config_file().is_relative_to(tmp_path)
    monkeypatch.setenv(CONFIG_VARIABLE, "~/mine.toml")
    assert config_file() == tmp_path / "mine.toml"


def value_for(option: click.Option) -> object:
    """A value of the option's type, as a file has it."""
    if option.is_flag or option.type is click.BOOL:
        return True
    kind = option.type
    if isinstance(kind, click.types.IntParamType):
        return max(int(getattr(kind, "min", None) or 0), 1)
    if isinstance(kind, click.types.FloatParamType):
        return 0.25
    return kind.choices[0] if isinstance(kind, click.Choice) else "x"


def test_every_option_of_every_command_may_have_a_default(write, monkeypatch):
    text = ""
    for name, command in cli.commands.items():
        text += f"[{name}]\n"
        for option in options_of(command):
            text += f"{key_of(option)} = {json.dumps(value_for(option))}\n"
    write(text)
    defaults = read_defaults(cli.commands)
    for name, command in cli.commands.items():
        assert {o.name for o in options_of(command)} == {*defaults[name]}
        for option in options_of(command):
            context = click.Context(command, default_map=defaults[name])
            _, source = option.consume_value(context, {})
            assert source is ParameterSource.DEFAULT_MAP, (name, option.name)
            variable = f"MLX_BUDGET_{name}_{key_of(option)}".upper().replace("-", "_")
            with monkeypatch.context() as patch:
                patch.setenv(variable, "1")
                value, source = option.consume_value(context, {})
            assert source is ParameterSource.ENVIRONMENT, (name, option.name)


def test_a_secret_is_not_told_by_what_is_wrong_with_it(write):
    write("[serve]\napi-key = 31415926")
    assert "31415926" not in fails("serve", group=cli)


# The command that shows them.


def config(*args: str, **environment: str):
    return CliRunner().invoke(cli, ["config", *args], env=environment)


def test_config_tells_where_each_value_comes_from(write):
    file = write('thinking-budget = "low"\n[chat]\ntemp = 1\n[serve]\napi-key = "k3y"')
    environment = {"MLX_BUDGET_TOP_K": "4", "MLX_BUDGET_CHAT_SEED": "5"}
    found = json.loads(config("--json", **environment).stdout)
    assert found["file"] == str(file) and found["file_exists"]
    assert found["problems"] == []
    chat = found["commands"]["chat"]
    assert chat["thinking-budget"] == {
        "value": "low",
        "from": "file",
        "name": f"thinking-budget in {file}",
    }
    assert chat["temp"]["name"] == f"[chat] temp in {file}"
    assert (chat["top-k"]["value"], chat["top-k"]["from"]) == ("4", "variable")
    assert chat["seed"]["name"] == "MLX_BUDGET_CHAT_SEED"
    assert "temp" not in found["commands"]["generate"]
    assert found["commands"]["serve"]["api-key"]["value"] == "***"
    text = config(**environment).stdout
    assert "k3y" not in text
    assert "thinking-budget  low    thinking-budget in" in text
    assert "MLX_BUDGET_TOP_K" in text and "(chat)" in text


def test_config_of_a_command_lists_all_its_options(write):
    write("temp = 0.5")
    lines = config("generate").stdout.splitlines()
    listed = {line.split()[0] for line in lines[3:]}
    assert listed == {key_of(o) for o in options_of(cli.commands["generate"])}
    assert any(line.split() == ["hard-stop", "1.1", "default"] for line in lines)
    assert any(line.startswith("temp ") and "config.toml" in line for line in lines)


def test_config_tells_what_is_wrong(write):
    file = write("tempp = 1")
    result = config(MLX_BUDGET_TOP_K="-3", MLX_BUDGET_NOPE="1")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"Problem: tempp in {file} is no option of any command: did you mean temp?",
        "Problem: MLX_BUDGET_TOP_K: -3 is not in the range x>=0.",
        "Problem: MLX_BUDGET_NOPE is the variable of no option.",
    ]
    assert config("path").stdout == f"{file}\n"
    assert "choose from" in config("nope").stderr


def test_config_without_anything_says_so(write):
    file = write("")
    result = config()
    assert result.exit_code == 0
    assert result.stdout.startswith(f"File: {file}\n")
    assert "All options have the program's own defaults" in result.stdout
