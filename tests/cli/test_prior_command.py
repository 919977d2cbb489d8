"""Commands without a predictor: the prior that guides, and what it learns."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_budget import demo
from mlx_budget.cli import cli

QUESTION = "What is 7 + 1 - 3 + 4?"


@pytest.fixture(scope="module")
def plain_demo(tmp_path_factory) -> Path:
    """The built-in model without its predictor."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    folder.mkdir()
    for file in demo.FOLDER.iterdir():
        if not file.name.startswith("predictor"):
            (folder / file.name).symlink_to(file)
    return folder


def run(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_replies_without_a_budget_teach_the_prior(plain_demo, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_BUDGET_CACHE", str(tmp_path))
    ask = "generate", "--model", plain_demo, "-p", QUESTION, "--learn-prior"
    unlearnt = run(*ask, "--thinking-budget", "40")
    assert "a prior guides" in unlearnt.stderr and "learnt" not in unlearnt.stderr
    assert not list(tmp_path.rglob("*.safetensors"))
    refused = run(*ask, "--thinking-budget", "auto")
    assert refused.exit_code == 2 and "auto is a share" in refused.stderr

    free = run(*ask)
    assert free.exit_code == 0 and "prior" not in free.stderr
    (file,) = tmp_path.rglob("*.safetensors")
    assert QUESTION.encode() not in file.read_bytes()
    learnt = run(*ask, "--thinking-budget", "40")
    assert "It has learnt from" in learnt.stderr
    automatic = run(*ask, "--thinking-budget", "auto", "--json")
    assert automatic.exit_code == 0
    assert json.loads(automatic.stdout)["thinking_budget"] > 5


def test_a_chat_teaches_the_prior(plain_demo, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_BUDGET_CACHE", str(tmp_path))
    args = ["chat", "--model", str(plain_demo), "--learn-prior"]
    result = CliRunner().invoke(cli, args, input=f"{QUESTION}\n/quit\n")
    assert result.exit_code == 0, result.stderr
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_nothing_is_kept_unless_it_is_asked_for(plain_demo, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_BUDGET_CACHE", str(tmp_path))
    assert run("generate", "--model", plain_demo, "-p", QUESTION).exit_code == 0
    assert not list(tmp_path.iterdir())
