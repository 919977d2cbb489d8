"""What ends ranks that cannot go on together: one line on rank 0, and no hang."""

import json
import shutil
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest
from groups import HERE, Group, start

FAILING = str(HERE / "failing.py")
COMMAND = ["-m", "mlx_budget", "generate", "-p", "1 + 2", "-m", "4"]


def the_error(group: Group) -> str:
    """What rank 0 says at its end, in one line; the others say nothing."""
    first, *others = group.wait()
    assert first.code == 2
    assert [e.err for e in others if "[ring]" not in e.err] in ([], [""] * len(others))
    lines = [x for x in first.err.splitlines() if x and not x.startswith("[ring]")]
    (line,) = [x for x in lines if x.startswith("Error: ")]
    assert not any("Traceback" in x for x in lines)
    return line.removeprefix("Error: ")


def generate(tmp_path: Path, *options: list[str]) -> str:
    """The error of `generate` on ranks with options of their own."""
    return the_error(start(tmp_path, *[[*COMMAND, *given] for given in options]))


def test_other_options_on_another_rank_are_named(converted, tmp_path) -> None:
    model = ["--model", str(converted)]
    error = generate(tmp_path, [*model, "--temp", "1"], [*model, "--temp", "0.5"])
    assert error.startswith("Rank 1 was started with other options: ")
    assert "--temp 0.5" in error


def test_another_version_on_another_rank_is_named(tmp_path) -> None:
    script = (
        "import sys; from mlx_budget.ranks import joining; from mlx_budget.cli import "
        "cli; joining._version = lambda p: '9.9' if p == 'mlx-lm' else '1'; "
        f"cli({COMMAND[2:]})"
    )
    other = script.replace("9.9", "9.8")
    error = the_error(start(tmp_path, ["-c", script], ["-c", other]))
    assert error == (
        "Rank 1 has mlx-lm 9.8, and rank 0 has 9.9: install the same version on every "
        "Mac."
    )


def test_another_model_on_another_rank_is_refused(converted, tmp_path) -> None:
    other = tmp_path / "elsewhere" / "model"
    shutil.copytree(converted, other)
    file = other / "model.safetensors"
    weights = mx.load(str(file))
    weights["model.layers.1.mlp.up_proj.weight"] += 0.01
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    here = tmp_path / "here" / "model"
    here.parent.mkdir()
    here.symlink_to(converted)
    script = (
        "import os, sys; os.chdir(sys.argv[1]); sys.argv[1:] = []; "
        "from mlx_budget.cli import cli; "
        f"cli({[*COMMAND[2:], '--model', './model']})"
    )
    error = the_error(
        start(
            tmp_path,
            ["-c", script, str(here.parent)],
            ["-c", script, str(other.parent)],
        )
    )
    assert "./model is not the same on rank 1 as on rank 0" in error
    assert "model.layers.1.mlp.up_proj.weight differs" in error


def test_a_model_that_another_rank_has_not_is_named(converted, tmp_path) -> None:
    script = (
        "import os, sys; os.chdir(sys.argv[1]); sys.argv[1:] = []; "
        "from mlx_budget.cli import cli; "
        f"cli({[*COMMAND[2:], '--model', './' + converted.name]})"
    )
    group = start(
        tmp_path, ["-c", script, str(converted.parent)], ["-c", script, str(tmp_path)]
    )
    assert the_error(group).startswith(f"Rank 1: There is no folder ./{converted.name}")


def test_heads_that_the_ranks_do_not_divide_are_refused(converted, tmp_path) -> None:
    command = [*COMMAND, "--model", str(converted)]
    error = the_error(start(tmp_path, *[command] * 3))
    assert "has 4 heads in each layer, which 3 ranks do not divide" in error


def test_adapters_are_refused(converted, tmp_path) -> None:
    command = [*COMMAND, "--model", str(converted), "--adapter-path", str(tmp_path)]
    assert the_error(start(tmp_path, command, command)).startswith("Adapters")


@pytest.mark.parametrize("place", ["load", "prefill", "decoding", "idle"])
def test_a_rank_that_dies_ends_the_others(place, converted, tmp_path) -> None:
    command = [FAILING, str(converted), place]
    group = start(tmp_path, command, command)
    group.processes[1].wait(60)
    begin = time.monotonic()
    error = the_error(group)
    assert time.monotonic() - begin < 10
    assert error.startswith("Rank 1 (")
    assert error.endswith("has ended: no rank can go on without it.")


def test_rank_0_that_dies_ends_the_others(converted, tmp_path) -> None:
    command = [FAILING, str(converted), "decoding", "0"]
    _, other = start(tmp_path, command, command).wait(60)
    assert other.code != 0
    assert "Error: Rank 0 (127.0.0.1) has ended" in other.err


def test_ranks_that_round_differently_end(converted, tmp_path) -> None:
    command = [FAILING, str(converted), "rounding"]
    error = the_error(start(tmp_path, command, command))
    assert error.startswith("The ranks have come apart: rank")
    assert "chose token" in error


def test_a_script_hears_of_it_as_an_error(converted, tmp_path) -> None:
    command = [FAILING, str(converted), "script"]
    first, _ = start(tmp_path, command, command).wait(60)
    assert json.loads(first.out.splitlines()[-1]) == "thinking_budget"
    assert sys.version  # the script itself has ended
