"""The blocks of our Markdown files, and stand-ins for what cannot be had in a test.

Knows how Markdown fences its code and where a shell ends a command, and nothing of what
the commands do.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from mlx_budget import demo

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/mlx-budget/mlx-budget"
# Ordinary models and published checkpoints that the documents name.
PLAIN_MODELS = ("mlx-community/Qwen3-4B-4bit",)
# The help pages, which are made from the commands and compared with them.
GENERATED = ("docs/cli.md",)


class Block(NamedTuple):
    """A fenced block: its file, number of its first line, language and text."""

    file: str
    line: int
    language: str
    text: str


def markdown_files() -> list[str]:
    """What is written for readers: the root's Markdown files and those of docs/."""
    files = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "mlx_budget/demo/README.md"]
    names = [file.relative_to(ROOT).as_posix() for file in files]
    return sorted(name for name in names if name not in GENERATED)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fenced_blocks(name: str) -> list[Block]:
    """The fenced blocks of a file, in their order."""
    text = read(name)
    return [
        Block(name, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in re.finditer(
            r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE
        )
    ]


def commands_of(block: str) -> list[str]:
    """The commands of a shell block, each with all of its lines."""
    commands: list[str] = []
    rest = block.splitlines(keepends=True)
    while rest:
        command = rest.pop(0)
        while command.endswith("\\\n") or _is_open(command):
            command += rest.pop(0)
        if command.strip():
            commands.append(command)
    return commands


def words_of(command: str) -> list[str]:
    """The words of a command, behind the variables that are set for it."""
    words = shlex.split(command.replace("\\\n", ""))
    while re.match(r"\w+=", words[0]):
        words.pop(0)
    return words


def _is_open(command: str) -> bool:
    """Whether a quotation goes on in the next line."""
    try:
        shlex.split(command)
    except ValueError:
        return True
    return False


def write_inputs(folder: Path) -> None:
    """Writes the files that the documents take as given, of the built-in problems."""
    problems = demo.PROBLEMS_FILE.read_text(encoding="utf-8").splitlines()
    # The built-in model thinks briefly about short ones.
    short = [p.replace('"question"', '"prompt"') for p in sorted(problems, key=len)]
    for name, lines in (
        ("questions.jsonl", problems[:2]),
        ("prompts.jsonl", short[:14]),
    ):
        (folder / name).write_text("\n".join(lines), encoding="utf-8")


def plain_model(folder: Path) -> Path:
    """The built-in model as an ordinary one: without its predictor."""
    folder.mkdir()
    for file in demo.FOLDER.iterdir():
        if not file.name.startswith("predictor"):
            (folder / file.name).symlink_to(file)
    return folder
