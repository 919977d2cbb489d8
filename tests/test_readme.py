"""The README's commands and Python run, as a reader would run them.

Knows how a Markdown file fences its code, and nothing of what the commands do. A block
that is new is run, or fails: only what a table here names is left out, with its reason.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import pytest

from mlx_budget import demo
from server.served import SECONDS, serving

README = Path(__file__).parents[1] / "README.md"
# Commands that hold one of these are not run.
NOT_RUN = {
    "--hf-path": "needs the Hub",
    "--model Qwen3-8B-BG-4bit": "needs a checkpoint of the Hub",
    "--predictor qwen3-8b-predictor": "needs a checkpoint of the Hub",
    "--task gsm8k": "needs the Hub",
    "pip install": "installs what runs here; .ci/run runs it",
}
# What is put in place of what.
REPLACED = {
    # The reader's own model and prompts, and a checkpoint of the Hub.
    "--model MODEL": "--model demo",
    '"Qwen3-8B-BG-4bit"': '"demo"',
    ", prompts, predictor": ", [prompt] * 3, predictor",
    # Two questions and one arm in place of minutes.
    "--output run ": "--output run --limit 2 --budgets 60 --strategies guidance ",
    "--output run-mine": "--output run-mine --budgets 60 --strategies guidance",
    "--hours 2": "--data short.jsonl --sizes table --held-out-prompts 2",
    # The status of an error must be seen.
    "curl ": "curl --fail --silent --show-error ",
}
# Files that the commands read, and how many of the built-in problems they hold.
INPUTS = {"questions.jsonl": 2, "prompts.jsonl": 4}
# What commands that read standard input are told.
TYPED = "What is 2 + 3 + 4 - 1?\n"


class Block(NamedTuple):
    """A fenced block: the number of its first line, its language and its text."""

    line: int
    language: str
    text: str


def fenced_blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown file, in their order."""
    return [
        Block(text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(
            r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
        )
    ]


def commands_of(block: str) -> list[tuple[str, str]]:
    """The commands of a shell block, each with the output that the block shows.

    Only what follows a command behind the prompt ``$`` is output.
    """
    commands: list[tuple[str, str]] = []
    console = block.startswith("$ ")
    rest = block.splitlines(keepends=True)
    while rest:
        command = rest.pop(0)
        if console and not command.startswith("$ "):
            commands[-1] = (commands[-1][0], commands[-1][1] + command)
            continue
        while command.endswith("\\\n") or is_open(command):
            command += rest.pop(0)
        if shlex.split(command, comments=True):
            commands.append((command.removeprefix("$ "), ""))
    return commands


def is_open(command: str) -> bool:
    """Whether a quotation goes on in the next line."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def is_run(command: str) -> bool:
    return not any(part in command for part in NOT_RUN)


def replace(text: str) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return text


BLOCKS = fenced_blocks(README.read_text(encoding="utf-8"))
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [pair for block in SHELL for pair in commands_of(block.text)]


def shown_by(block: Block) -> str:
    """The output that the README shows in a block of its own, or an empty string.

    A block without a language shows what the last shell block before it prints.
    """
    for before, after in itertools.pairwise(BLOCKS):
        if before is block and not after.language:
            return after.text
    return ""


def run(command: list[str], folder: Path, stdin: str) -> str:
    """What a command prints, run in a folder with our commands on the path."""
    found = subprocess.run(
        command,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    assert found.returncode == 0, f"{command[-1]}\n{found.stderr}"
    return found.stdout


def assert_shown(printed: str, shown: str) -> None:
    """Checks output against the README, whose numbers are those of the CPU build."""
    if shown and mx.default_device() == mx.cpu:
        assert printed == shown
    elif shown:
        assert printed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands, with the files that the README takes as given."""
    problems = demo.PROBLEMS_FILE.read_text(encoding="utf-8").splitlines()
    # The built-in model thinks briefly about short ones.
    short = sorted(problems, key=len)
    for name, chosen in (
        *((name, problems[:count]) for name, count in INPUTS.items()),
        ("short.jsonl", [p.replace('"question"', '"prompt"') for p in short[:14]]),
    ):
        (tmp_path / name).write_text("\n".join(chosen), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "block",
    [b for b in SHELL if any(is_run(c) for c, _ in commands_of(b.text))],
    ids=lambda block: f"line-{block.line}",
)
def test_the_commands_run_and_print_what_is_shown(block, folder):
    printed = ""
    with ExitStack() as servers:
        address = ""
        for command, shown in commands_of(block.text):
            if not is_run(command):
                continue
            command = replace(command)
            if command.startswith("mlx-budget serve"):
                options = shlex.split(command, comments=True)[2:]
                server = servers.enter_context(serving(*options))
                address = f"{server.host}:{server.port}"
                continue
            if address:
                command = command.replace("127.0.0.1:8080", address)
            output = run(["bash", "-c", command], folder, TYPED)
            assert_shown(output, shown)
            printed += output
    assert_shown(printed, shown_by(block))


def test_the_python_runs_from_top_to_bottom(folder):
    code = replace("\n".join(block.text for block in PYTHON))
    assert run([sys.executable, "-c", code], folder, "")


def test_each_block_is_of_a_kind_that_is_run_or_compared():
    assert {block.language for block in BLOCKS} <= {"bash", "python", ""}
    for before, after in itertools.pairwise(BLOCKS):
        assert after.language or before.language == "bash", after


def test_no_exception_outlives_its_block():
    whole = "".join(command for command, _ in COMMANDS)
    for part in NOT_RUN:
        assert part in whole
    whole += "".join(block.text for block in PYTHON)
    for old in REPLACED:
        assert old in whole


def test_commands_are_split_where_a_shell_splits_them():
    block = "# A comment.\none --a \\\n  'b\nc'  # more\n\ntwo \"$x\"\n"
    assert commands_of(block) == [
        ("one --a \\\n  'b\nc'  # more\n", ""),
        ('two "$x"\n', ""),
    ]
    assert commands_of("$ one\n1\n2\n$ two\n") == [("one\n", "1\n2\n"), ("two\n", "")]
