"""Options: what help says of them is what the fields say, the same in all commands."""

import re
from collections.abc import Iterator
from dataclasses import MISSING

import click
import pytest
from click.testing import CliRunner

from mlx_budget.cli import cli
from mlx_budget.cli.options import options_from
from mlx_budget.engine.fields import Option, all_options_of
from mlx_budget.engine.settings import (
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from mlx_budget.evaluate.options import EvaluateOptions
from mlx_budget.planning.options import PlanOptions
from mlx_budget.train.learn_options import LearnOptions
from mlx_budget.train.options import TraceOptions, TrainOptions

FOUR = (ModelSource, ThinkingBudget, Sampling, PromptOptions)
# What the options of each command are made from; the last one counts.
MADE_FROM = {
    "convert": (ModelSource,),
    "generate": FOUR,
    "estimate": FOUR,
    "chat": (*FOUR, ThinkingBudget(answer_anyway=True)),
    "plan": (*FOUR, PlanOptions),
    "learn": (ModelSource, LearnOptions()),
    "traces": (ModelSource, TraceOptions()),
    "train": (TrainOptions,),
    "evaluate": (ModelSource, EvaluateOptions()),
    "predictors": (),
    "report": (),
    "config": (),
    "info": FOUR,
    "serve": (*FOUR, ThinkingBudget(answer_anyway=True)),
}


def fields_of(command: str) -> dict[str, tuple[object, Option]]:
    """Defaults and options by keyword of the fields behind a command's options."""
    return {
        option.keyword: (default, option)
        for settings in MADE_FROM[command]
        for default, _, option in all_options_of(settings)
    }


def shown_defaults(command: str) -> dict[str, str]:
    """The defaults that a command's help shows, by the first spelling of the option."""
    wide = {"terminal_width": 2000, "max_content_width": 2000}
    text = CliRunner().invoke(cli, [command, "--help"], **wide).stdout
    shown = {}
    for entry in re.split(r"\n  (?=-)", text):
        # Behind the default there may be a range, such as 0<=x<=1.
        pattern = r"\[default: (.*?)(?:; [^;]*x[<>][^;]*)?\]$"
        if found := re.search(pattern, entry.partition("\n\n")[0].strip()):
            shown[re.findall(r"--[\w-]+", entry)[0]] = found[1]
    return shown


def parameters(*keywords: str) -> Iterator[tuple[str, click.Option]]:
    """The options of those names, or all that come from fields, with their command."""
    for name, command in cli.commands.items():
        for parameter in command.params:
            if parameter.name in (keywords or fields_of(name)):
                assert isinstance(parameter, click.Option)
                yield name, parameter


@pytest.mark.parametrize("command", MADE_FROM)
def test_the_defaults_that_help_shows_are_those_of_the_fields(command):
    shown = shown_defaults(command)
    fields = fields_of(command)
    seen = 0
    for parameter in cli.commands[command].params:
        if parameter.name not in fields:
            continue
        default, option = fields[parameter.name]
        if option.shown and not parameter.required:
            expected = option.shown
        elif "/" in option.flags[0]:
            expected = option.flags[0].split("/")[not default].lstrip("-")
        elif default in (None, MISSING, "") or isinstance(default, bool):
            expected = None
        elif isinstance(default, tuple):
            expected = ",".join(map(str, default))
        else:
            expected = str(default)
        if parameter.required:
            expected = None
        assert shown.get(parameter.opts[0]) == expected, parameter.name
        seen += expected is not None
    assert seen >= {
        "convert": 0,
        "report": 0,
        "config": 0,
        "predictors": 0,
        "estimate": 1,
        "info": 1,
    }.get(command, 4)


def test_help_texts_tell_no_defaults_of_their_own():
    for name, command in cli.commands.items():
        for parameter in command.params:
            help = getattr(parameter, "help", None) or ""
            assert "default:" not in help, (name, parameter.name)


def test_every_command_is_held_to_its_fields():
    assert set(MADE_FROM) == set(cli.commands)


@pytest.mark.parametrize(
    "option",
    [o for values in FOUR for _, _, o in all_options_of(values) if o.help],
    ids=lambda option: option.keyword,
)
def test_an_option_is_the_same_in_all_commands_that_know_it(option):
    found = list(parameters(option.keyword))
    assert len(found) >= 2
    for command, parameter in found:
        off = (f"/{name}" for name in parameter.secondary_opts)
        flags = [f"{on}{next(off, '')}" for on in parameter.opts]
        assert tuple(flags) == option.flags, command
        assert parameter.help == option.help, command
        limits = parameter.type.to_info_dict()
        assert limits == found[0][1].type.to_info_dict(), command
        if option.least is not None and option.most is not None:
            assert (limits["min"], limits["max"]) == (option.least, option.most)


@pytest.mark.parametrize(
    ("keyword", "commands"),
    [
        ("guidance_tolerance", {"generate", "chat", "plan", "evaluate", "serve"}),
        ("no_hard_stop", {"generate", "chat", "plan", "evaluate", "serve"}),
        (
            "xtc_probability",
            {"generate", "chat", "plan", "evaluate", "traces", "learn"},
        ),
        (
            "min_tokens_to_keep",
            {"generate", "chat", "plan", "evaluate", "traces", "learn"},
        ),
        ("seed", {"generate", "chat", "plan", "evaluate", "traces", "train", "learn"}),
        (
            "chat_template_config",
            set(MADE_FROM) - {"convert", "report", "config", "info", "predictors"},
        ),
    ],
)
def test_commands_that_can_use_an_option_know_it(keyword, commands):
    assert {command for command, _ in parameters(keyword)} == commands


def test_seeds_have_64_bits_in_every_command():
    for command, parameter in parameters("seed"):
        assert (parameter.type.min, parameter.type.max) == (0, 2**64 - 1), command


def run(*args: str, **settings) -> list:
    """What a command with options from settings gets, run with these arguments."""
    given = []
    restrictions = ("only", "without", "required", "types")
    only = {k: settings.pop(k) for k in restrictions if k in settings}

    @click.command()
    @options_from(**only, **settings)
    def command(**values):
        given.append(values)

    result = CliRunner().invoke(command, args)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return given or result.output.splitlines()[-1:]


def test_a_command_gets_the_values_themselves():
    (given,) = run(
        "--top-k", "4", "--thinking-budget", "9", b=ThinkingBudget, s=Sampling
    )
    assert given == {"b": ThinkingBudget(9), "s": Sampling(top_k=4)}


def test_what_is_not_given_is_as_the_value_has_it():
    assert run(s=Sampling(temp=0.6, seed=3)) == [{"s": Sampling(temp=0.6, seed=3)}]
    assert run("--temp", "2", s=Sampling(temp=0.6, seed=3)) == [
        {"s": Sampling(temp=2.0, seed=3)}
    ]


def test_values_within_values_get_their_options_too():
    (given,) = run("--temp", "0.5", "--system-prompt", "Hm.", "-m", "7", t=TraceOptions)
    sampling, prompt = Sampling(temp=0.5), PromptOptions("Hm.")
    assert given["t"] == TraceOptions(max_tokens=7, sampling=sampling, prompt=prompt)


@pytest.mark.parametrize(
    ("word", "predictor"), [("none", False), ("./none", "./none"), ("None", "None")]
)
def test_the_word_none_means_no_predictor(word, predictor):
    assert run("--predictor", word, s=ModelSource) == [
        {"s": ModelSource(predictor=predictor)}
    ]


@pytest.mark.parametrize(
    ("args", "hard_stop"),
    [((), 1.5), (("--no-hard-stop",), None), (("--hard-stop", "2"), 2.0)],
)
def test_a_switch_sets_its_field_to_none(args, hard_stop):
    (given,) = run(*args, b=ThinkingBudget(hard_stop=1.5))
    assert given["b"].hard_stop == hard_stop


def test_a_command_may_have_fewer_options():
    (line,) = run("--temp", "1", s=Sampling, only=["seed"])
    assert "No such option '--temp'" in line
    (line,) = run("--seed", "1", s=Sampling, without=["seed"])
    assert "No such option '--seed'" in line
    (line,) = run(s=ModelSource, required=["model"])
    assert "Missing option '--model'" in line


@pytest.mark.parametrize("flag", ["--chat-template-config", "--chat-template-args"])
def test_the_templates_arguments_have_both_names(flag):
    expected = PromptOptions(chat_template_config={"a": [1]})
    assert run(flag, '{"a": [1]}', p=PromptOptions) == [{"p": expected}]


@pytest.mark.parametrize(
    "arguments",
    [
        ("traces", "--model", "demo", "--data", "", "--output", "a.jsonl"),
        ("traces", "--model", "demo", "--data", "a.jsonl", "--output", ""),
        ("train", "--model", "demo", "--data", "a.jsonl", "--output", ""),
        ("train", "--model", "demo", "--data", "", "--output", "a"),
        ("evaluate", "--data", "", "--output", "a"),
        ("estimate", "--data", ""),
        ("report", ""),
    ],
)
def test_an_empty_path_is_not_the_folder_that_the_user_is_in(arguments, tmp_path):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "empty; is a variable not set?" in line


def test_a_mistyped_command_or_option_is_guessed():
    for arguments, guess in (
        (["trian"], "Did you mean 'train'?"),
        (["traces", "--limt", "5"], "Did you mean '--limit'?"),
        (["train", "--modle", "demo"], "Did you mean '--model'?"),
    ):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2
        assert guess in result.stderr
