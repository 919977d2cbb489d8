"""Pictures of an evaluation: that they show what there is."""

import sys
from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from evaluation_records import record
from mlx_budget.evaluate import plots
from mlx_budget.evaluate.plots import NO_PLOTS, draw, main_strategies
from mlx_budget.evaluate.strategies import STRATEGIES
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


def test_four_pictures_are_drawn(records, tmp_path):
    files = draw(tmp_path, records, summarize(records))
    assert [f.name for f in files] == [
        "accuracy.png",
        "accuracy-thinking.png",
        "length.png",
        "difficulty.png",
    ]
    assert all(0.01 < ink(file) < 0.5 for file in files)


def test_a_strategy_more_is_drawn_more(records, tmp_path):
    (tmp_path / "few").mkdir()
    few = [r for r in records if r["strategy"] != "budget-forcing"]
    many = draw(tmp_path, records, summarize(records))
    fewer = draw(tmp_path / "few", few, summarize(few))
    assert all(ink(a) > ink(b) for a, b in zip(many[:3], fewer[:3], strict=True))


def arm(strategy: str, budget, accuracy: float = 0.5) -> dict:
    return {"strategy": strategy, "budget": budget, "accuracy": accuracy}


def test_no_budget_guidance_and_the_strongest_simple_cut_are_shown():
    names = ["full", "no-thinking", "about", "guidance", "hard-stop", "truncate", "s1"]
    arms = [arm(name, 20) for name in names]
    arms += [arm("budget-forcing", 20, 0.6), arm("truncate", 60, 0.9)]
    expected = ["full", "guidance", "budget-forcing"]
    assert main_strategies(arms) == main_strategies(arms[::-1]) == expected


def test_no_two_strategies_look_alike():
    assert len(set(map(plots.style, STRATEGIES))) == len(STRATEGIES)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["s1"], ["s1"]),
        (["no-thinking", "about", "s1"], ["no-thinking", "about", "s1"]),
        (["about", "auto", "s1", "wait"], ["about", "s1", "wait"]),
        (["full", "no-thinking", "s1", "wait"], ["full", "no-thinking", "s1"]),
        (["full", "prior", "truncate", "s1"], ["full", "prior", "truncate"]),
    ],
)
def test_three_are_shown_if_there_are_three(names, expected):
    assert sorted(main_strategies([arm(n, 9) for n in names])) == sorted(expected)


def test_only_the_strategies_that_are_asked_for_are_drawn(records, tmp_path):
    records += [record("s1", 20, i, 20) for i in range(9)]
    summary = summarize(records)
    for folder, names in (("main", None), ("all", ["full", "guidance", "s1"])):
        (tmp_path / folder).mkdir()
        draw(tmp_path / folder, records, summary, names)
    pictures = [(tmp_path / x / "length.png").read_bytes() for x in ("main", "all")]
    assert pictures[0] != pictures[1]


def test_markers_lie_on_their_budgets_and_a_line_says_where_all_is_used(records):
    axes = Figure().add_subplot()
    plots._draw_length(axes, summarize(records)["arms"])
    lines = {line.get_label(): line for line in axes.get_lines()}
    for strategy in ("guidance", "budget-forcing"):
        assert list(lines[strategy].get_xdata()) == [20, 60]
    same = lines["used = budget"]
    assert (same.get_xy1(), same.get_slope()) == ((0, 0), 1)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert 15 < left < 20 and 60 < right < 65
    assert bottom < 20 and top >= 60
    assert list(axes.get_xticks()) == [20, 60]


def test_the_axes_use_the_space(records):
    rows = [r for r in records if r["strategy"] in ("full", "guidance")]
    axes = Figure().add_subplot()
    arms = summarize([{**r, "correct": True} for r in rows])["arms"]
    plots._draw_accuracy(axes, arms)
    low, high = axes.get_ylim()
    # Nine of nine are right: by Wilson at least 70 % are.
    assert 60 < low < 70.1 and 100 < high < 105
    assert axes.get_xlim()[0] > 10
    assert {text.get_text() for text in axes.texts} == {"20", "60"}


def test_accuracy_is_drawn_over_all_tokens_and_over_those_of_thinking(records):
    arms = summarize([r for r in records if r["strategy"] == "guidance"])["arms"]
    for counted in ("total_tokens", "thinking_tokens"):
        axes = Figure().add_subplot()
        plots._draw_accuracy(axes, arms, counted)
        drawn = axes.lines[0].get_xdata()
        assert list(drawn) == sorted(arm[counted] for arm in arms)
    assert "thinking" in axes.get_xlabel()


def test_difficulty_needs_predictions(records, tmp_path):
    rows = [{**r, "predicted_tokens": None} for r in records]
    names = [f.name for f in draw(tmp_path, rows, summarize(rows))]
    assert names == ["accuracy.png", "accuracy-thinking.png", "length.png"]


def test_a_run_that_has_just_begun_is_drawn(tmp_path):
    rows = [record("full", None, 0, 10)]
    assert len(draw(tmp_path, rows, summarize(rows))) == 4


def test_without_matplotlib_there_are_no_plots(records, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(tmp_path, records, summarize(records)) == []
    assert not list(tmp_path.iterdir())
    assert "mlx-budget[eval]" in NO_PLOTS
