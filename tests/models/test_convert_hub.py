"""Conversion from and to the Hub."""

import subprocess

import pytest

from conversions import (
    TOKENIZER,
    VOCABULARY,
    answers,
    apart,
    change,
    config_of,
    fixture_config,
    fixture_weights,
    in_child,
    line_of,
    write_folder,
)
from fake_hub import FakeHub
from mlx_budget import Predictor


@pytest.fixture
def hub(tmp_path):
    """Serves the fixture: in two shards, in one file as "v1", and as pickles."""
    weights, config = fixture_weights(), fixture_config()
    sharded = write_folder(tmp_path / "main", config, *apart(weights))
    v1 = write_folder(tmp_path / "v1", {**config, "made_up": 1}, weights)
    pickles = write_folder(tmp_path / "pickles", config)
    (pickles / "pytorch_model.bin").touch()
    folders = {"owner/tiny-BG": sharded, "owner/pickles": pickles}
    with FakeHub(folders, {"owner/tiny-BG": {"v1": v1}}) as hub:
        yield hub


@pytest.fixture
def from_hub(hub, tmp_path, out):
    """Converts a name on the Hub, in a process of its own."""

    def convert(name: str, *options, **environment) -> subprocess.CompletedProcess:
        names = ["--hf-path", name, "--mlx-path", out, "--predictor-heads", 4]
        environment = {**hub.environment(tmp_path / "home"), **environment}
        return in_child("", *names, *options, **environment)

    return convert


def test_a_name_on_the_hub_is_converted_and_uploaded(hub, from_hub, out):
    child = from_hub("owner/tiny-BG", "--revision", "v1", "--upload-repo", "me/tiny-4b")
    assert child.returncode == 0, child.stderr
    assert config_of(out)["made_up"] == 1
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert hub.uploaded == {"me/tiny-4b": files}
    assert Predictor.load(out).config.base_model == "owner/tiny-BG"
    card = files["README.md"].decode()
    assert "base_model: owner/tiny-BG\n" in card
    assert "mlx-budget generate --model me/tiny-4b " in card


def test_the_predictor_alone_downloads_its_own_shards_only(hub, from_hub, out):
    child = from_hub("owner/tiny-BG", "--predictor-only")
    assert child.returncode == 0, child.stderr
    assert hub.downloaded("owner/tiny-BG") == {
        "config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    }
    assert Predictor.load(out).config.vocab_size == VOCABULARY


def test_a_tokenizer_and_nothing_else_is_taken_from_the_hub(
    hub, from_hub, copy, out, converted
):
    for name in TOKENIZER:
        (copy / name).unlink()
    child = from_hub(copy, "--tokenizer", "owner/tiny-BG")
    assert child.returncode == 0, child.stderr
    assert hub.downloaded("owner/tiny-BG") == set(TOKENIZER)
    assert answers(out) == answers(converted)


@pytest.mark.parametrize(
    ("name", "options", "environment", "message"),
    [
        ("owner/none", [], {}, "There is no folder owner/none here and no such name"),
        ("owner/pickles", [], {}, "owner/pickles offers its weights only as pickles"),
        (
            "owner/tiny-BG",
            ["--upload-repo", "me/new"],
            {"HF_TOKEN": "other"},
            "The Hub refused me/new",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub, from_hub, out, name, options, environment, message
):
    child = from_hub(name, *options, **environment)
    assert message in line_of(child.returncode, child.stdout, child.stderr)
    assert not out.parent.exists()
    assert hub.uploaded == {}


def test_an_interrupted_download_is_one_line_and_leaves_nothing(hub, from_hub, out):
    file = "model-00001-of-00002.safetensors"
    hub.cut_after("owner/tiny-BG", file, 100_000, reset=True)
    child = from_hub("owner/tiny-BG")
    line = line_of(child.returncode, child.stdout, child.stderr)
    assert "owner/tiny-BG" in line and "try again" in line
    assert not out.parent.exists()


def test_a_checkpoint_that_fails_makes_no_repository(hub, from_hub, copy, out):
    change(copy, cls_token=None)
    child = from_hub(copy, "--upload-repo", "me/new")
    assert "cls_token" in line_of(child.returncode, child.stdout, child.stderr)
    assert hub.uploaded == {}
