"""The command `info`: what a person reads, and what a bug report holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from chat_terminal import copy_demo
from mlx_budget import __version__
from mlx_budget.cli import cli
from mlx_budget.cli.info import _advice, _machine_lines, _memory_lines, _model_lines
from mlx_budget.models.facts import MarkerFacts, ModelFacts, PredictorFacts
from mlx_budget.models.machine import Memory, read_machine
from mlx_budget.models.published import PUBLISHED


def info(*args, **environment):
    return CliRunner().invoke(cli, ["info", *map(str, args)], env=environment)


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_machine_is_shown_without_a_model():
    result = info()
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(f"mlx-budget {__version__}\n  system ")
    for label in ("chip", "Python", "packages", "device", "memory", "defaults"):
        assert f"\n  {label} " in result.stdout
    assert "there is no Metal" in result.stdout or "GPU" in result.stdout


def test_a_model_is_shown_to_a_person():
    result = info("demo")
    assert result.exit_code == 0
    text = words(result.stdout)
    assert "demo: the built-in model architecture qwen3, 4 layers" in text
    assert "thinking from '<think>' to '</think>'" in text
    assert 'leaves it out by {"enable_thinking": false}' in text
    assert "it fits into" in text
    assert "guided by an encoder (demo)" in text
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert (
        info("--model", "demo").stdout.partition("\n\n")[2]
        == (result.stdout.partition("\n\n")[2])
    )


def test_a_bug_report_holds_the_same_and_names_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    config = tmp_path / "mine.toml"
    config.write_text('system-prompt = "I am Ada."\n[serve]\napi-key = "k3y"')
    folder = copy_demo(tmp_path / "model")
    result = info(
        folder,
        "--json",
        MLX_BUDGET_CONFIG=str(config),
        MLX_BUDGET_TEMP="0.25",
    )
    found = json.loads(result.stdout)
    assert [*found] == ["mlx_budget", "machine", "configuration", "model"]
    assert found["mlx_budget"] == __version__
    assert found["machine"]["versions"]["mlx-lm"]
    assert found["machine"]["memory"]["total"] > 0
    assert found["model"]["name"] == "~/model"
    assert found["model"]["markers"]["end"] == "</think>"
    assert found["model"]["guided_by"] == "predictor"
    assert found["model"]["fits"] == "yes"
    assert found["configuration"]["keys"] == ["[serve] api-key", "system-prompt"]
    assert found["configuration"]["variables"] == ["MLX_BUDGET_TEMP"]
    for private in (str(tmp_path), "Ada", "k3y", "hf_secret", "0.25"):
        assert private not in result.stdout + result.stderr


def test_without_a_model_there_is_none_in_the_report():
    found = json.loads(info("--json").stdout)
    assert found["model"] is None and found["configuration"]["problems"] == []


def test_what_is_broken_is_said_and_the_rest_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = copy_demo(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    for args in ([folder], [folder, "--json"]):
        result = info(*args)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("Problem: ~/model cannot be loaded")
        assert "qwen3" in result.stdout
    assert json.loads(result.stdout)["model"]["problems"]
    missing = info("./none")
    assert missing.exit_code == 2
    assert missing.stderr == "Problem: There is no folder ./none. Check the path.\n"
    assert "./none: not found" in missing.stdout


def test_a_configuration_that_is_wrong_is_a_fact_as_well(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("tempp = 1")
    result = info(MLX_BUDGET_CONFIG=str(file), MLX_BUDGET_NOPE="1")
    assert result.exit_code == 0
    first, second = result.stderr.splitlines()
    assert "did you mean temp?" in first and "MLX_BUDGET_NOPE" in second


def test_a_default_model_is_the_one_at_hand(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('model = "demo"')
    found = json.loads(info("--json", MLX_BUDGET_CONFIG=str(file)).stdout)
    assert found["model"]["name"] == "demo"


# The three ways, of point at which there is a choice.


def facts(**changes) -> ModelFacts:
    markers = MarkerFacts("<think>", "</think>", are_tokens=True)
    values = {"model_type": "qwen3", "records_states": True, "markers": markers}
    return ModelFacts("owner/name", **{**values, **changes})


def test_one_of_three_ways_is_advised():
    own = " ".join(_advice(facts(predictor=PredictorFacts("here"))))
    assert "A budget works as it is" in own and "learn" not in own
    published = " ".join(_advice(facts(published=PUBLISHED[1])))
    assert "--predictor senfu/Qwen3-8B-BG" in published
    learn = " ".join(_advice(facts()))
    assert "`mlx-budget learn --model owner/name --output my-predictor`" in learn
    assert "works at once, by the prior" in learn
    table = " ".join(_advice(facts(records_states=False)))
    assert "--sizes table" in table
    assert _advice(facts(markers=None)) == []
    assert _advice(facts(problems=["x"])) == []


@pytest.mark.parametrize(
    ("gigabytes", "verdict"), [(40, "it fits"), (9.5, "close to"), (8, "does not fit")]
)
def test_whether_it_fits_is_said(gigabytes, verdict):
    model = facts(weight_bytes=9 * 10**9, weight_files=2, missing_bytes=10**9)
    memory = Memory(recommended=int(gigabytes * 1e9))
    text = words(
        "\n".join(_memory_lines(model, replace(read_machine(), memory=memory)))
    )
    assert verdict in text
    assert "9.0 GB in 2 files, 1.0 GB to download" in text


def test_a_mac_is_told_what_is_wired():
    memory = Memory(32 << 30, 20 << 30, 3 << 30, 22 << 30, wired_limit=24 << 30)
    machine = replace(
        read_machine(), memory=memory, has_metal=True, device="gpu", is_translated=True
    )
    text = words("\n".join(_machine_lines(machine)))
    assert "device MLX computes on the GPU memory 34.4 GB, 21.5 GB of it free" in text
    assert "wired now 3.2 GB" in text
    assert "can be wired 23.6 GB, by generation; iogpu.wired_limit_mb is set to" in text
    assert "needs one for arm64" in text


def test_a_model_without_markers_is_told_the_way_out():
    text = words("\n".join(_model_lines(facts(markers=None), read_machine())))
    assert "no markers" in text and "--thinking-end-token" in text


def test_the_home_folder_is_shortened_everywhere(monkeypatch):
    from mlx_budget.cli.info import _shortened

    home = str(Path.home())
    assert _shortened({"a": [f"{home}/x", 3, None]}) == {"a": ["~/x", 3, None]}


def test_two_models_are_one_too_many():
    result = CliRunner().invoke(cli, ["info", "demo", "--model", "other"])
    assert result.exit_code == 2
    assert "two models" in result.stderr


def test_an_option_of_a_model_asks_about_one():
    result = CliRunner().invoke(cli, ["info", "--predictor", "./nope"])
    assert result.exit_code == 2
    assert "nope" in result.stderr
