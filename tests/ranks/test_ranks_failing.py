"""What ends ranks that cannot go on together: one line on rank 0, and no hang."""

import time
from pathlib import Path

import pytest
from groups import HERE, Group, start

from mlx_budget.cli import options
from mlx_budget.models.splitting import check_alike, check_same_predictor, split
from mlx_budget.ranks.joining import difference
from tiny_models import LLAMA, build

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


def test_another_version_on_another_rank_is_named() -> None:
    ours, theirs = {"mlx-lm": "9.9"}, {"mlx-lm": "9.8"}
    assert difference(ours, ours, ["-m", "4"], ["-m", "4"]) is None
    assert difference(theirs, ours, [], []) == (
        "has mlx-lm 9.8, and rank 0 has 9.9: install the same version on every Mac."
    )


class Ranks:
    """Two ranks, of which the other one has said something else."""

    rank = 0

    def __init__(self, theirs: dict):
        self.theirs = theirs

    def gather(self, ours: dict, what: str) -> list[dict]:
        return [ours, {**ours, **self.theirs}]


@pytest.mark.parametrize(
    "part", ["config.json", "model.layers.1.mlp.up_proj.weight", "tokenizer.json"]
)
def test_another_model_on_another_rank_is_refused(part, converted) -> None:
    check_alike(Ranks({}), "m", converted)
    with pytest.raises(ValueError, match=f"m is not the same on rank 1 .*: {part} "):
        check_alike(Ranks({part: "other"}), "m", converted)


def test_another_predictor_on_another_rank_is_refused(loaded) -> None:
    check_same_predictor(Ranks({}), loaded[2])
    with pytest.raises(ValueError, match="The predictor is not the same on rank 1"):
        check_same_predictor(Ranks({"cls": "other"}), loaded[2])


class Three:
    """A group of three ranks, of which this is the first."""

    def size(self) -> int:
        return 3

    def rank(self) -> int:
        return 0


def test_heads_that_the_ranks_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError) as error:
        split("m", build("qwen2"), Three(), pipeline=False)
    assert str(error.value) == (
        "m has 4 heads in each layer, which 3 ranks do not divide: start as many as "
        "divide it, or take --pipeline."
    )


def test_heads_of_keys_that_the_ranks_do_not_divide_are_refused() -> None:
    model = build("llama", dict(LLAMA, num_attention_heads=3, hidden_size=24))
    with pytest.raises(ValueError, match="2 heads of keys and values .* 3 ranks"):
        split("m", model, Three(), pipeline=False)


def test_a_pipeline_longer_than_the_model_is_refused() -> None:
    model = build("qwen2", dict(LLAMA, num_hidden_layers=2))
    with pytest.raises(ValueError, match="m cannot be split over 3 ranks: .* fewer"):
        split("m", model, Three(), pipeline=True)


def test_the_other_way_is_named_where_a_model_cannot_be_split_so() -> None:
    for name, pipeline, said in (
        ("llama", True, "with --pipeline: start it without --pipeline."),
        ("gpt2", False, "without --pipeline: take a model that it can"),
    ):
        with pytest.raises(ValueError) as error:
            split("m", build(name), Three(), pipeline)
        assert f"mlx-lm cannot split m ({name}) {said}" in str(error.value)


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


@pytest.mark.parametrize("place", ["load", "decoding", "idle"])
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
    assert first.code != 0
    assert "thinking_budget is 6 on rank 1 and 5 on rank 0" in first.err


def test_standard_input_that_never_ends_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(options, "current", object)
    with pytest.raises(ValueError, match="which mlx.launch never ends"):
        options.read_prompt("-")
    assert options.read_prompt("1 + 2") == "1 + 2"
