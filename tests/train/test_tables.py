"""What is counted and solved for from positions: tables and linear probes."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from mlx_budget import estimate, load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.train import TrainOptions, loop, train
from mlx_budget.train.dataset import GuidedPositions
from mlx_budget.train.tables import Base, make_linear, make_table, predictions_of
from trainings import sum_chats, write_chats

CLOSE, V, LAYERS, WIDTH = 9, 12, 4, 6
BASE = Base("model", V, CLOSE)


def positions(records: int, lengths_of, seed: int = 0) -> GuidedPositions:
    """Replies of two lines and a close: the first is token 3, the second token 4."""
    rng = np.random.default_rng(seed)
    columns: list[list] = [[] for _ in range(8)]
    for record in range(records):
        first, second = lengths_of(rng)
        for token, used, length in (
            (3, 0, first + second + 1),
            (4, first, second + 1),
            (CLOSE, first + second, 1),
        ):
            row = record, record % 10 == 9, token, used, length, used == 0, 7, 3
            for column, value in zip(columns, row, strict=True):
                column.append(value)
    return GuidedPositions(*map(np.array, columns))


def drawn(rng) -> tuple[int, int]:
    return int(rng.integers(5, 60)), int(rng.integers(5, 60))


def test_a_table_counts_the_positions_that_it_is_given():
    p = positions(20, drawn)
    train = np.flatnonzero(~p.is_validation)
    table = make_table(BASE, p, train)
    assert table.counts.number == len(train) == 54
    assert table.counts.tokens.tolist() == [3, 4, CLOSE]


def test_predictions_are_those_of_the_validation_positions():
    p = positions(20, drawn)
    table = make_table(BASE, p, np.flatnonzero(~p.is_validation))
    found = predictions_of(table, p)
    held_out = p.is_validation
    np.testing.assert_array_equal(found.lengths, p.lengths[held_out])
    np.testing.assert_array_equal(found.is_first, p.is_first[held_out])
    assert len(found.train_lengths) == (~held_out).sum()
    is_close = p.tokens[held_out] == CLOSE
    means = found.concentration / found.rate
    np.testing.assert_allclose(means[is_close], math.log(2))
    others = table.at_positions(
        p.tokens[held_out][~is_close], p.thinking_tokens[held_out][~is_close]
    )
    np.testing.assert_allclose(found.rate[~is_close], others[1])


@pytest.mark.parametrize("records", [3, 200])
def test_a_probe_finds_the_layer_that_tells_the_length(records):
    p = positions(records, drawn)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(len(p.tokens), LAYERS + 1, WIDTH))
    told = noise.copy()
    told[:, 2, 4] = 100 * np.log1p(p.lengths) + 3
    read = lambda rows, layer: told[rows, layer].astype(np.float32)  # noqa: E731
    linear = make_linear(BASE, p, read, LAYERS)
    if records == 3:
        return  # too few to choose by: it is made all the same
    assert linear.probe.layer == 2 and linear.probe.layers == LAYERS
    assert 1 <= linear.probe.spread < 4
    rows = np.flatnonzero(p.is_validation & (p.tokens != CLOSE))
    states = mx.array(told[rows].astype(np.float32))
    concentration, rate = linear.at_positions(
        p.tokens[rows], p.thinking_tokens[rows], linear.encode(states)
    )
    np.testing.assert_allclose(
        concentration / rate, np.log1p(p.lengths[rows]), atol=0.1
    )


def test_states_that_tell_nothing_change_nothing():
    p = positions(300, drawn)
    noise = np.random.default_rng(1).normal(size=(len(p.tokens), LAYERS + 1, WIDTH))
    read = lambda rows, layer: noise[rows, layer].astype(np.float32)  # noqa: E731
    probe = make_linear(BASE, p, read, LAYERS).probe
    assert np.abs(probe.weight).max() < 0.1


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("size", ["table", "linear"])
def test_the_command_makes_a_predictor_that_guides_its_model(size, converted, tmp_path):
    data = write_chats(tmp_path / "chats.jsonl", sum_chats())
    folder = tmp_path / size
    args = ["train", "--model", str(converted), "--data", str(data), "--size", size]
    result = CliRunner().invoke(cli, [*args, "--output", str(folder)])
    assert result.exit_code == 0, result.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["records"] == len(sum_chats()) and report["val_loss"] is not None
    card = (folder / "README.md").read_text()
    assert f"--size {size}" in card and "loss on held-out positions" in card

    model, tokenizer, predictor = load(str(converted), predictor=folder)
    assert predictor.reads_states == (size == "linear")
    ids = encode_chat(tokenizer, "What is 3 + 4?")
    options = {"predictor": predictor, "thinking_budget": 10}
    responses = list(stream_generate(model, tokenizer, ids, **options))
    assert responses[-1].thinking_tokens <= 11
    found = estimate(model, tokenizer, predictor, ids)
    assert 1 < found.low < found.median < found.high
    automatic = {**options, "thinking_budget": "auto:0.5"}
    *_, last = stream_generate(model, tokenizer, ids, **automatic)
    assert last.thinking_budget == max(1, round(0.5 * found.median))


def test_a_table_reads_no_weights(converted, tmp_path, monkeypatch, no_picture):
    data = write_chats(tmp_path / "chats.jsonl", sum_chats())
    options = TrainOptions(
        model=str(converted), data=str(data), output=tmp_path / "p", size="table"
    )
    loaded = []
    original = loop.load_source

    def watch(source, **options):
        loaded.append(options)
        return original(source, **options)

    monkeypatch.setattr(loop, "load_source", watch)
    train(options)
    assert loaded == [{"lazy": True}]
    assert not (tmp_path / "p" / "training" / "states").exists()


def test_a_size_without_an_encoder_has_none_of_its_sizes(tmp_path):
    with pytest.raises(ValueError, match="A table predictor has no layers"):
        TrainOptions(model="m", data="d", output=tmp_path, size="table", layers=2)


@pytest.mark.parametrize("size", ["table", "linear"])
@pytest.mark.parametrize("given", [{"steps": 2}, {"epochs": 1.0}, {"keep": "last"}])
def test_options_of_updates_are_refused_where_there_are_none(tmp_path, size, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} has no effect"):
        TrainOptions(model="m", data="d", output=tmp_path, size=size, **given)
