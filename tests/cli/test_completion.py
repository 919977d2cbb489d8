"""Completion: what a shell is told that a begun word may become."""

import os
import shutil
import subprocess

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from mlx_budget.cli import cli
from mlx_budget.files.hub_cache import cached_models, cached_snapshot, hub_cache


def completed(*words: str) -> list[str]:
    """What the last word may become, behind the others."""
    *args, last = words
    complete = BashComplete(cli, {}, "mlx-budget", "_MLX_BUDGET_COMPLETE")
    return [item.value for item in complete.get_completions(list(args), last)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache with two models, a predictor, a data set and what is not whole."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, file in (
        ("models--mlx-community--Qwen3-4B-4bit", "config.json"),
        ("models--own--my--model", "config.json"),
        ("models--own--reader", "predictor_config.json"),
        ("datasets--openai--gsm8k", "config.json"),
    ):
        folder = tmp_path / name / "snapshots" / "abc"
        folder.mkdir(parents=True)
        (folder / file).write_text("{}")
    (tmp_path / "models--begun--only" / "blobs").mkdir(parents=True)
    (tmp_path / "models--no-config--here" / "snapshots" / "abc").mkdir(parents=True)
    return tmp_path


def test_models_of_the_hub_cache_are_found_by_name(cache):
    assert [*cached_models()] == ["mlx-community/Qwen3-4B-4bit", "own/my--model"]
    assert cached_snapshot("own/my--model") == cache / (
        "models--own--my--model/snapshots/abc"
    )
    assert cached_snapshot("own/other") is None


def test_of_several_snapshots_the_one_that_main_names_counts(cache):
    repository = cache / "models--own--reader"
    (repository / "snapshots" / "def").mkdir()
    (repository / "refs").mkdir()
    for commit in ("abc", "def"):
        (repository / "refs" / "main").write_text(commit)
        assert cached_snapshot("own/reader") == repository / "snapshots" / commit


def test_the_cache_is_where_the_hubs_client_looks(monkeypatch, tmp_path):
    from huggingface_hub import constants

    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        if variable not in os.environ:
            monkeypatch.delenv(variable, raising=False)
    assert str(hub_cache()) == constants.HF_HUB_CACHE
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub_cache() == tmp_path / "hub"


@pytest.mark.parametrize("command", ["generate", "chat", "serve", "evaluate", "learn"])
def test_models_are_completed(cache, command):
    assert completed(command, "--model", "") == [
        "demo",
        "mlx-community/Qwen3-4B-4bit",
        "own/my--model",
    ]
    assert completed(command, "--model", "mlx") == ["mlx-community/Qwen3-4B-4bit"]


def test_where_no_model_begins_so_the_shell_looks_for_folders(cache):
    complete = BashComplete(cli, {}, "mlx-budget", "_MLX_BUDGET_COMPLETE")
    (item,) = complete.get_completions(["generate", "--model"], "./mod")
    assert (item.type, item.value) == ("dir", "./mod")


def test_predictors_are_completed(cache):
    found = completed("generate", "--predictor", "")
    assert found[0] == "none"
    assert {"senfu/Qwen3-8B-BG", "own/reader"} < set(found)
    assert completed("chat", "--predictor", "senfu/Q") == ["senfu/Qwen3-8B-BG"]


def test_tasks_strategies_and_budgets_are_completed():
    assert completed("evaluate", "--task", "g") == ["gsm8k", "gpqa-diamond"]
    assert "demo" in completed("evaluate", "--task", "")
    assert completed("evaluate", "--strategies", "guid") == [
        "guidance",
        "guidance-no-hard-stop",
    ]
    assert completed("evaluate", "--strategies", "guidance,guid") == [
        "guidance,guidance-no-hard-stop"
    ]
    assert completed("evaluate", "--budgets", "50%,me") == ["50%,medium"]
    for command in ("generate", "chat", "serve"):
        for option in ("--thinking-budget", "--reasoning-budget"):
            assert completed(command, option, "m") == ["minimal", "medium", "max"]
    assert completed("config", "gen") == ["generate"]


def test_options_and_choices_are_completed():
    assert "--thinking-budget" in completed("generate", "--thi")
    assert completed("generate", "--budget-mode", "ab") == ["about"]
    assert "generate" in completed("gen")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_that_switches_it_on_is_one_that_the_shell_takes(shell):
    runner = CliRunner()
    made = runner.invoke(
        cli,
        [],
        prog_name="mlx-budget",
        env={"_MLX_BUDGET_COMPLETE": f"{shell}_source"},
    )
    assert made.exit_code == 0
    assert "mlx-budget" in made.stdout
    if (program := shutil.which(shell)) and shell != "fish":
        subprocess.run([program, "-n"], input=made.stdout, text=True, check=True)
