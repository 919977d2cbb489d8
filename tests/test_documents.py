"""The documents' commands and Python, run as they stand, with the built-in model.

What is new is run, or fails: only what a table here names is left out, with its reason.
The README is pasted into a shell by tests of its own; here its Python runs.
"""

import io
import re
import shutil
import subprocess
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import pytest
from click.testing import CliRunner

from documents import (
    PLAIN_MODELS,
    REPOSITORY,
    ROOT,
    commands_of,
    fenced_blocks,
    markdown_files,
    plain_model,
    read,
    words_of,
    write_inputs,
)
from mlx_budget.cli import cli
from mlx_budget.server import running

BLOCKS = [block for name in markdown_files() for block in fenced_blocks(name)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
LOCAL = "http://127.0.0.1:8080"
RAW = "https://raw.githubusercontent.com/mlx-budget/mlx-budget/main"
OURS = "mlx-budget "
# Commands of ours that hold one of these are read, not run.
NOT_RUN = {
    "--hf-path": "needs a published checkpoint; tests/models converts a small one",
    "--task math-500": "needs the Hub's questions",
    "--task medqa": "needs the Hub's questions, and m1's weights",
    "--task lm-eval": "needs the harness; tests/evaluate/test_harness.py runs it",
    "SMOLLM2": "takes an hour; docs/training.md has what came of it",
    "QWEN_CODER": "takes hours; docs/evidence.md has what came of it",
    "run-math-500": "needs a converted checkpoint and a day",
    "--predictor senfu/": "needs a published checkpoint, as --hf-path does",
    "qwen3-8b-predictor": "needs a converted checkpoint",
    "mlx-budget serve": "stays; the Python blocks of the page ask such a server",
    "train --model demo": "wants its own traces; training.md begins with others",
}
# Other commands, by their first word, and who runs them.
OTHERS = {
    "uv": "tests/test_readme.py pastes it",
    "pipx": "tests/test_readme.py pastes it",
    "cd": "tests/test_readme.py pastes it",
    "source": "tests/test_readme.py pastes it",
    "pip": "installs what runs here; .ci/run runs it",
    "git": "needs the network",
    "pytest": "is what runs this",
    "ruff": ".ci/run runs it",
    "curl": "tests/test_readme.py pastes one",
    "python3": "makes an environment",
    "mlx.launch": "tests/distributed starts ranks",
    "export": "preloads what may not be there",
    "claude": "is another program",
    "python": "benchmarks: tests/benchmarks runs them at a small size",
}
# What is put in place of what.
SMALL = "--limit 1 --budgets 40 --strategies guidance"
REPLACED = {
    "--model MODEL": "--model demo",
    "--model Qwen3-8B-BG-4bit": "--model demo",
    **{f'"{name}"': '"plain"' for name in PLAIN_MODELS},
    "--output run-demo": f"--output run-demo {SMALL}",
    "--output run-mine": f"--output run-mine {SMALL}",
    "--output run-built-in": f"--output run-built-in {SMALL}",
    "--strategies all --budgets 40%,60%,100%": SMALL,
    "--data planned.jsonl": "--data questions.jsonl",
    "--strategies full,guidance,plan-guided,plan-rollover,plan-words": SMALL,
    "learn --model demo": "learn --model demo --data prompts.jsonl --sizes table"
    " --held-out-prompts 2",
    ", prompts, predictor": ", [prompt] * 3, predictor",
}
TYPED = "What is 2 + 3 + 4 - 1?\n/help\n"


def replace(text: str) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return text


def is_run(command: str) -> bool:
    return command.startswith(OURS) and not any(part in command for part in NOT_RUN)


def read_options(name: str, words: list[str]) -> None:
    """Reads a command's options as the command would, and runs nothing."""
    with cli.commands[name].make_context(name, words):
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Where a reader stands, with the files that the documents take as given."""
    write_inputs(tmp_path)
    plain_model(tmp_path / "plain")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    sorted(
        {b.file for b in SHELL if any(map(is_run, commands_of(b.text)))} - {"README.md"}
    ),
)
def test_the_commands_of_a_page_run_one_after_another(name, folder):
    for block in fenced_blocks(name):
        if block.language != "bash":
            continue
        printed = ""
        for command in filter(is_run, commands_of(block.text)):
            words = words_of(replace(command))[1:]
            found = CliRunner().invoke(cli, words, input=TYPED)
            assert found.exit_code == 0, f"{command}\n{found.stderr}"
            printed += found.stdout
        if shown := shown_behind(block):
            assert printed == shown


@pytest.mark.parametrize("name", sorted({b.file for b in SHELL}))
def test_every_command_is_known_with_all_of_its_options(name):
    for block in fenced_blocks(name):
        if block.language != "bash":
            continue
        for command in commands_of(block.text):
            words = words_of(command)
            if words[0] == OURS.strip():
                read_options(words[1], words[2:])
            else:
                assert words[0] in OTHERS, command


@pytest.mark.parametrize("name", sorted({b.file for b in PYTHON}))
def test_the_python_of_a_page_runs_from_top_to_bottom(name, folder):
    code = replace("\n".join(b.text for b in PYTHON if b.file == name))
    with ExitStack() as stack:
        if LOCAL in code:
            url = stack.enter_context(running("demo"))
            code = code.replace(LOCAL, url)
        printed = stack.enter_context(redirect_stdout(io.StringIO()))
        exec(compile(code, name, "exec"), {})
    assert printed.getvalue()


def test_blocks_are_of_a_kind_that_is_run_compared_or_shown():
    kinds = {"bash", "python", "toml", "json", ""}
    assert {block.language for block in BLOCKS} <= kinds


def test_shell_blocks_hold_commands_alone():
    # zsh takes no comment at its prompt, and a prompt is no command.
    for block in SHELL:
        for command in commands_of(block.text):
            words = words_of(command)
            assert not any(word.startswith("#") for word in words), command
            assert words[0] not in ("$", "%", ">"), command


def test_the_shell_of_a_mac_takes_every_block():
    shell = shutil.which("zsh") or shutil.which("bash")
    whole = "".join(block.text for block in SHELL)
    found = subprocess.run([shell, "-n"], input=whole, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_no_exception_outlives_its_block():
    whole = "".join(block.text for block in BLOCKS)
    for part in (*NOT_RUN, *REPLACED):
        # Some are put in place of what others were put in place of.
        assert part in whole or part in replace(whole), part
    first = {words_of(c)[0] for b in SHELL for c in commands_of(b.text)}
    assert set(OTHERS) <= first


@pytest.mark.parametrize("name", markdown_files())
def test_links_and_pictures_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        target = re.sub(rf"^(?:{REPOSITORY}/blob/main|{RAW})/", "/", target)
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        root = ROOT if path.startswith("/") else (ROOT / name).parent
        file = root / path.lstrip("/") if path else ROOT / name
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The names under which GitHub lets a page's headings be reached."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in found}


def test_every_page_is_in_the_index():
    pages = {Path(n).name for n in markdown_files() if n.startswith("docs/")}
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", read("docs/README.md")))
    assert pages - {"README.md"} <= listed


def shown_behind(block) -> str:
    """The output that a page shows in a block of its own behind a shell block."""
    blocks = fenced_blocks(block.file)
    after = blocks[blocks.index(block) + 1 :][:1]
    return "".join(b.text for b in after if not b.language)
