"""Pictures of an evaluation: that they show what there is."""

import sys
from pathlib import Path

import matplotlib.image
import pytest

from evaluation_records import record
from mlx_budget.evaluate.plots import NO_PLOTS, draw
from mlx_budget.evaluate.summary import summarize


@pytest.fixture
def records() -> list[dict]:
    rows = [record("full", None, i, 60 + 7 * i) for i in range(9)]
    rows += [record("no-thinking", 0, i, 0) for i in range(9)]
    for strategy in ("guidance", "budget-forcing"):
        for budget in (20, 60):
            rows += [record(strategy, budget, i, budget - i) for i in range(9)]
    return rows


def ink(file: Path) -> float:
    """The share of a picture that is not white."""
    pixels = matplotlib.image.imread(file)[..., :3]
    return float((pixels.min(axis=-1) < 0.9).mean())


def test_three_pictures_are_drawn(records, tmp_path):
    files = draw(tmp_path, records, summarize(records))
    assert [f.name for f in files] == ["accuracy.png", "length.png", "difficulty.png"]
    assert all(0.01 < ink(file) < 0.5 for file in files)


def test_a_strategy_more_is_drawn_more(records, tmp_path):
    (tmp_path / "few").mkdir()
    few = [r for r in records if r["strategy"] != "budget-forcing"]
    many = draw(tmp_path, records, summarize(records))
    fewer = draw(tmp_path / "few", few, summarize(few))
    assert all(ink(a) > ink(b) for a, b in zip(many[:2], fewer[:2], strict=True))


def test_difficulty_needs_predictions(records, tmp_path):
    rows = [{**r, "predicted_tokens": None} for r in records]
    names = [f.name for f in draw(tmp_path, rows, summarize(rows))]
    assert names == ["accuracy.png", "length.png"]


def test_a_run_that_has_just_begun_is_drawn(tmp_path):
    rows = [record("full", None, 0, 10)]
    assert len(draw(tmp_path, rows, summarize(rows))) == 3


def test_without_matplotlib_there_are_no_plots(records, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(tmp_path, records, summarize(records)) == []
    assert not list(tmp_path.iterdir())
    assert "mlx-budget[eval]" in NO_PLOTS
