"""Each row of the table of messages: its message comes up as it says.

The table is found wherever in the documents it stands. A row that is new has a case
here, or fails.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chat_terminal import copy_demo
from conversions import REFERENCE
from documents import markdown_files, read
from mlx_budget import demo
from mlx_budget.cli import cli

HEAD = "| message | what to do |\n|---|---|\n"
QUESTION = "What is 7 + 8 - 6 - 3?"


def rows() -> list[tuple[str, str]]:
    """The messages of the table, and what is to be done about each."""
    (text,) = (text for name in markdown_files() if HEAD in (text := read(name)))
    table = text.partition(HEAD)[2].partition("\n\n")[0]
    return [tuple(line.strip("| ").split(" | ", 1)) for line in table.splitlines()]


ROWS = rows()


class Place:
    """What cases need: models that lack something, and commands to run on them."""

    def __init__(self, folder: Path, converted: Path):
        self.folder = folder
        self.converted = converted
        self.environment: dict[str, str] = {}

    def run(self, command: str, *args: object, **options) -> Result:
        words = [command, *map(str, args)]
        return CliRunner().invoke(cli, words, env=self.environment, **options)

    def generate(self, *args: object) -> Result:
        return self.run("generate", "-p", QUESTION, *args)

    def model(self, without: str = "", thinks: bool = True) -> Path:
        """A copy of the built-in model, without some files or without markers."""
        folder = copy_demo(self.folder / "model")
        for file in folder.glob(without or "predictor*"):
            file.unlink()
        for file in [] if thinks else [*folder.glob("tokenizer*")]:
            text = file.read_text().replace("think>", "other>")
            file.unlink()
            file.write_text(text)
        return folder

    def predictor(self) -> Path:
        """The predictor of the built-in model, without the model."""
        folder = self.folder / "alone"
        folder.mkdir()
        for file in demo.FOLDER.glob("predictor*"):
            (folder / file.name).symlink_to(file)
        return folder

    def reference(self) -> Path:
        """A checkpoint of the reference without a tokenizer."""
        folder = self.folder / "reference"
        folder.mkdir()
        for file in REFERENCE.iterdir():
            if not re.match("tokenizer|special|chat_template", file.name):
                (folder / file.name).symlink_to(file)
        return folder

    def config(self, text: str) -> None:
        file = self.folder / "config.toml"
        file.write_text(text)
        self.environment["MLX_BUDGET_CONFIG"] = str(file)


def ended_behind(place: Place) -> Result:
    # The first token of the answer ends the reply.
    return place.generate(
        *("--thinking-budget", 1, "--predictor", "none", "--hard-stop", 1),
        *("--extra-eos-token", "My"),
    )


# By a part of the message.
Case = Callable[[Place], Result]
CASES: dict[str, list[Case]] = {
    "no usable tokenizer": [
        lambda p: p.run(
            *("convert", "--hf-path", p.reference(), "--mlx-path", p.folder / "out")
        ),
        lambda p: p.run(
            *("convert", "--hf-path", REFERENCE, "--mlx-path", p.folder / "out"),
            *("--tokenizer", p.model("tokenizer.json"), "--predictor-heads", 4),
        ),
    ],
    "is a share of what a predictor": [
        lambda p: p.generate("--model", p.model(), "--thinking-budget", "auto"),
        lambda p: p.generate("--model", p.model(), "--thinking-budget", "50%"),
        lambda p: p.generate("--predictor", "none", "--reasoning-budget", "auto:2"),
        lambda p: p.run("chat", "--model", p.model(), "--thinking-budget", "auto"),
        lambda p: p.run(
            *("chat", "--model", p.model()), input=f"/budget 50%\n{QUESTION}\n"
        ),
    ],
    "was made for another model": [
        lambda p: p.generate("--predictor", p.converted),
        lambda p: p.generate("--model", p.converted, "--predictor", p.model("x")),
        lambda p: p.run("estimate", "-p", QUESTION, "--predictor", p.converted),
    ],
    "no thinking markers": [
        lambda p: p.generate("--model", p.model(thinks=False), "--thinking-budget", 9),
        lambda p: p.generate(
            *("--model", p.model(thinks=False), "--thinking-budget", "low")
        ),
        lambda p: p.run(
            *("chat", "--model", p.model(thinks=False)), input="/budget 9\n"
        ),
    ],
    "not converted yet": [
        lambda p: p.generate("--model", REFERENCE),
        lambda p: p.generate("--model", p.reference(), "--thinking-budget", 9),
        lambda p: p.run("chat", "--model", REFERENCE),
        lambda p: p.run("info", REFERENCE),
    ],
    "holds a predictor alone": [
        lambda p: p.generate("--model", p.predictor()),
        lambda p: p.run("estimate", "-p", QUESTION, "--model", p.predictor()),
    ],
    "cut off by the limit": [
        lambda p: p.generate("--max-tokens", 5),
        lambda p: p.generate("--max-tokens", 5, "--thinking-budget", 60),
        # Thinking is closed, and nothing is left for the answer.
        lambda p: p.generate("--max-tokens", 36, "--thinking-budget", 60),
        lambda p: p.run("chat", "--max-tokens", 5, input=f"{QUESTION}\n"),
    ],
    "ended its reply there": [
        lambda p: p.generate("--extra-eos-token", "Ċ"),
        lambda p: p.generate("--extra-eos-token", "Ċ", "--thinking-budget", 60),
    ],
    "ended its reply right behind": [ended_behind],
    "is no option of any command": [
        lambda p: [p.config("tempp = 1"), p.generate()][1],
        lambda p: [p.config("zzz = true"), p.run("chat")][1],
    ],
    "is the variable of no option": [
        lambda p: [
            p.environment.update(MLX_BUDGET_TEMPP="1"),
            p.generate("--max-tokens", 1),
        ][1],
    ],
}


@pytest.fixture
def place(tmp_path: Path, converted: Path) -> Place:
    return Place(tmp_path, converted)


def pattern_of(message: str) -> str:
    """A message of the table as a pattern: dots stand for any text on its line."""
    (shown,) = re.findall("`([^`]+)`", message)[:1]
    return ".*".join(map(re.escape, re.split(r" ?\.\.\. ?", shown)))


def case_of(message: str) -> str:
    """The key of a row's cases."""
    found = [key for key in CASES if key in message]
    assert len(found) == 1, f"The row {message} has no case here, or several."
    return found[0]


@pytest.mark.parametrize(
    ("message", "case"),
    [
        pytest.param(message, case, id=f"{case_of(message)}-{i}")
        for message, _ in ROWS
        for i, case in enumerate(CASES[case_of(message)])
    ],
)
def test_the_message_comes_up_as_the_table_says(place, message, case):
    result = case(place)
    lines = result.stderr.splitlines()
    assert any(re.search(pattern_of(message), line) for line in lines), result.stderr
    assert "Traceback" not in result.stderr


def test_every_case_has_its_row():
    assert len(ROWS) == len(CASES)
    assert {case_of(message) for message, _ in ROWS} == {*CASES}


def test_what_is_to_be_done_names_options_that_there_are():
    known = {name for c in cli.commands.values() for p in c.params for name in p.opts}
    for _, advice in ROWS:
        for option in re.findall(r"`(--[\w-]+)", advice):
            assert option in known, option
