"""The README as its reader uses it: pasted into a Mac's default shell, line by line.

The shell is zsh without anybody's settings, in a terminal of its own. Installers are
stand-ins that write down what they were asked (`.ci/install.py` runs the real ones). A
Hub on loopback serves the built-in model under the names of big ones.
"""

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from documents import (
    PLAIN_MODELS,
    REPOSITORY,
    commands_of,
    fenced_blocks,
    plain_model,
    read,
    words_of,
    write_inputs,
)
from fake_hub import FakeHub
from shell import Zsh

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
SHELL = [block for block in fenced_blocks("README.md") if block.language == "bash"]
INSTALLERS = ("uv", "pipx", "git", "pip", "pytest", "python3")
# What is put in place of what: hours, by minutes; a port that others may use, by ours.
REPLACED = {
    "--hours 2": "--data prompts.jsonl --sizes table --held-out-prompts 2",
    "curl ": "curl --fail --silent --show-error ",
}


def is_installing(command: str) -> bool:
    return words_of(command)[0] in (*INSTALLERS, "cd", "source")


def is_serving(block) -> bool:
    return block.text.startswith("mlx-budget serve")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = plain_model(tmp_path_factory.mktemp("hub") / "plain")
    with FakeHub({name: folder for name in PLAIN_MODELS}) as hub:
        yield hub


@pytest.fixture
def zsh(hub, tmp_path):
    """A shell in an empty folder, with our commands on its path."""
    write_inputs(tmp_path)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in INSTALLERS:
        stub = stubs / name
        stub.write_text(f'#!/bin/sh\necho "{name} $@" >> "{tmp_path}/asked"\n{FAKES}')
        stub.chmod(0o755)
    environment = {
        **os.environ,
        **hub.environment(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with Zsh(tmp_path, environment) as shell:
        yield shell


# A comment that the shell hands over is refused, as the real ones would; and what git
# and python3 leave behind, the next lines find.
FAKES = """\
case " $*" in *" #"*) exit 1;; esac
case "$(basename "$0") $1" in
    "git clone") mkdir mlx-budget;;
    "python3 -m") mkdir -p "$3/bin"; : > "$3/bin/activate";;
esac
"""


@needs_zsh
@pytest.mark.parametrize(
    "block",
    [b for b in SHELL if not is_serving(b) and "curl" not in b.text],
    ids=lambda block: f"line-{block.line}",
)
def test_each_block_can_be_pasted(block, zsh):
    text = block.text
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    commands = commands_of(text)
    if is_installing(commands[0]):
        zsh.run('PATH="$PWD/stubs:$PATH"')
    assert [zsh.run(command) for command in commands] == [0] * len(commands)
    if is_installing(commands[0]):
        asked = (zsh.folder / "asked").read_text().splitlines()
        assert len(asked) >= len(
            [c for c in commands if not c.startswith(("cd", "so"))]
        )
    if mx.default_device() == mx.cpu:
        shown = "\n".join(line.rstrip() for line in zsh.screen())
        for line in shown_behind(block):
            assert line in shown


@needs_zsh
def test_what_is_served_answers_the_next_block(zsh, hub, tmp_path):
    serve = next(block for block in SHELL if is_serving(block))
    ask = SHELL[SHELL.index(serve) + 1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    zsh.type(serve.text.rstrip("\n") + f" --port {port}\n")
    zsh.waits_for(f"Serving at http://127.0.0.1:{port}/v1")
    asked = ask.text.replace("8080", str(port))
    for old, new in REPLACED.items():
        asked = asked.replace(old, new)
    with Zsh(tmp_path, zsh.environment) as other:
        assert other.run(asked.rstrip("\n") + " > reply.json\n") == 0
    reply = json.loads((tmp_path / "reply.json").read_text())
    budget = json.loads(re.search(r"-d '(.*)'", ask.text, re.S)[1])["thinking_budget"]
    (choice,) = reply["choices"]
    assert choice["message"]["content"]
    assert choice["thinking"]["budget"] == budget
    zsh.type("\x03")
    assert zsh.status() == 0


def shown_behind(block) -> list[str]:
    """The lines that the README shows in a block of its own behind this one."""
    blocks = fenced_blocks("README.md")
    after = blocks[blocks.index(block) + 1 :][:1]
    return [
        line
        for shown in after
        if not shown.language
        for line in shown.text.splitlines()
        if line
    ]


def test_the_clone_line_and_the_tools_name_the_repository():
    whole = "".join(block.text for block in SHELL)
    for command in ("uv tool install git+", "pipx install git+", "git clone "):
        assert command + REPOSITORY in whole


def test_no_stand_in_outlives_what_it_stands_for():
    whole = "".join(block.text for block in SHELL)
    for old in (*REPLACED, *PLAIN_MODELS):
        assert old in whole


def test_pictures_and_links_are_absolute():
    # The README is shown on PyPI as well, where nothing lies beside it.
    targets = re.findall(r"\]\(([^)]+)\)", read("README.md"))
    assert [t for t in targets if not t.startswith(("https://", "#"))] == []
