"""The command `convert`, as a user stops it or names an impossible output."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from conversions import REFERENCE
from mlx_budget.cli import cli


def run(output: Path, *options):
    names = ["--hf-path", REFERENCE, "--predictor-heads", 4, "--mlx-path", output]
    return CliRunner().invoke(cli, ["convert", *map(str, [*names, *options])])


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_budget.models.convert.write_shards", interrupt)
    output = tmp_path / "new" / "out"
    result = run(output)
    assert (result.exit_code, result.stdout) == (130, "")
    *_, line = result.stderr.splitlines()
    assert line == f"Stopped; {output} was not made: run the same again."
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_upload_leaves_what_was_converted(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_budget.files.hub.create", lambda name: name)
    monkeypatch.setattr("mlx_budget.files.hub.upload", interrupt)
    output = tmp_path / "out"
    result = run(output, "--predictor-only", "--upload-repo", "me/mine")
    assert result.exit_code == 130
    *_, line = result.stderr.splitlines()
    assert line == (
        f"Stopped; {output} is converted, but was not uploaded: run `hf upload me/mine "
        f"{output}`."
    )
    assert (output / "predictor.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-q", "--q-bits", 7), "bits 7 is not supported"),
        (("-q", "--q-mode", "mxfp4", "--q-bits", 3), "requires bits to be 4 but got 3"),
        (
            ("-q", "--quant-predicate", "mixed_3_6", "--q-mode", "mxfp4"),
            "works with --q-mode affine only",
        ),
    ],
)
def test_a_quantisation_that_cannot_be_is_refused_before_a_download(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("mlx_budget.models.convert._fetch", interrupt)
    result = run(tmp_path / "out", *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("below", ["", "deep"])
def test_an_output_that_is_a_file_is_refused(tmp_path, below):
    file = tmp_path / "out"
    file.touch()
    result = run(file / below)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    ends = "exists already" if not below else "is a file: choose another --mlx-path"
    assert ends in line
