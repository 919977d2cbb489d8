"""Summaries: what is compared with what, and tables that are the same for the same."""

import json
import re

import pytest

from evaluation_records import record
from mlx_budget.evaluate.summary import (
    comparison_table,
    markdown,
    speed_table,
    summarize,
    table,
    write_summary,
)


@pytest.fixture
def records() -> list[dict]:
    rows = [record("auto", 25, i, 24 + i, budget="50%") for i in range(9)]
    for strategy in ("budget-forcing", "guidance"):
        for budget in (60, 20):
            rows += [record(strategy, budget, i, budget - i) for i in range(9)]
    rows += [record("full", None, i, 60 + 7 * i) for i in range(9)]
    return rows


def test_arms_are_in_a_fixed_order(records):
    arms = [arm["arm"] for arm in summarize(records)["arms"]]
    assert arms == [
        "full",
        "guidance@20",
        "guidance@60",
        "budget-forcing@20",
        "budget-forcing@60",
        "auto@50%",
    ]
    assert arms == [arm["arm"] for arm in summarize(records[::-1])["arms"]]


def test_strategies_are_compared_with_budget_forcing_at_the_same_budget(records):
    pairs = {
        (c["kind"], c["a"], c["b"])
        for c in summarize(records)["comparisons"]
        if c["kind"] != "full"
    }
    assert pairs == {
        ("budget", "guidance@20", "budget-forcing@20"),
        ("budget", "guidance@60", "budget-forcing@60"),
        ("auto", "auto@50%", "guidance@20"),
    }


def test_every_arm_is_compared_with_no_budget(records):
    found = [c for c in summarize(records)["comparisons"] if c["kind"] == "full"]
    assert {c["b"] for c in found} == {"full"}
    assert len(found) == 5


def test_areas_are_over_the_same_budgets(records):
    found = {s["strategy"]: s for s in summarize(records)["strategies"]}
    assert set(found) == {"guidance", "budget-forcing"}
    assert found["guidance"]["area"] == found["budget-forcing"]["area"]
    assert (found["guidance"]["from_tokens"], found["guidance"]["to_tokens"]) == (
        20,
        60,
    )


def test_the_table_tells_areas_and_predictions_where_there_are_any(records):
    lines = table(summarize(records)).split("\n")
    areas = {s["strategy"]: s["area"] for s in summarize(records)["strategies"]}
    told = ", ".join(f"{name} {100 * area:.1f} %" for name, area in areas.items())
    assert f"Mean accuracy over budgets of 20 to 60 tokens: {told}." in lines
    assert lines[-1].endswith("without a budget: 1.00 (n = 9).")
    full = [r for r in records if r["strategy"] == "full"]
    unknown = [{**r, "predicted_tokens": None} for r in full]
    few = table(summarize(unknown))
    assert "Mean accuracy" not in few and "Rank correlation" not in few


def test_predictions_are_ranked(records):
    # In these records both grow with the problem.
    assert summarize(records)["predictions"]["rank_correlation"] == pytest.approx(1)


@pytest.mark.parametrize("left_out", ["full", "guidance", "budget-forcing", "auto"])
def test_a_run_that_is_incomplete_is_summarised(records, left_out):
    rows = [r for r in records if r["strategy"] != left_out][:-1]
    summary = summarize(rows)
    assert json.dumps(summary, allow_nan=False)
    assert left_out not in {line.split()[0] for line in table(summary).split("\n")}


def test_the_table_is_aligned_narrow_and_without_times(records):
    first = table(summarize(records))
    assert max(map(len, first.split("\n"))) < 100
    heading, *rows = first.split("\n")[2:9]
    assert heading.split()[:3] == ["strategy", "budget", "n"]
    _, *ends = (found.end() for found in re.finditer(r"\(95 %\)|\S+", heading))
    for row in rows:
        assert len(row) == ends[-1]
        for end in ends:
            assert row[end - 1] != " " and row[end : end + 1] in (" ", "")
    slower = [{**r, "seconds": 9 * r["seconds"]} for r in records]
    assert table(summarize(slower)) == first
    assert comparison_table(summarize(slower)) == comparison_table(summarize(records))
    assert speed_table(summarize(slower)) != speed_table(summarize(records))


def test_thinking_after_the_close_is_shown_where_there_is_any(records):
    """Whole tables, and those that are printed."""
    without = table(summarize(records))
    assert "close" not in without.replace("closed", "")
    # What an earlier version wrote says nothing of it.
    assert all("after_close_tokens" not in r for r in records)
    none = [{**r, "after_close_tokens": 0} for r in records]
    assert table(summarize(none)) == without
    (one,) = [r for r in none if (r["strategy"], r["problem"]) == ("full", "4")]
    one["after_close_tokens"] = 45
    summary = summarize(none)
    shown = {arm["arm"]: arm["after_close_tokens"] for arm in summary["arms"]}
    assert shown == {**dict.fromkeys(shown, 0), "full": 5}
    text = table(summary)
    assert max(map(len, text.split("\n"))) < 100
    heading, full, *_ = text.split("\n")[2:]
    assert heading.split()[-4:] == ["model", "close", "tokens", "x1000"]
    assert full.split()[-3:-1] == ["5.0", "5.0"]
    assert "after close" in markdown(summary)


def test_answers_that_could_not_be_graded_are_told(records):
    assert "could not be graded" not in table(summarize(records))
    records[0]["grading_problem"] = "unclear"
    assert "1 answer could not be graded." in table(summarize(records))


def test_loops_are_told(records):
    assert "loop" not in table(summarize(records))
    records[0]["closed_by"] = "loop"
    summary = summarize(records)
    assert "The thinking of 1 reply was closed because it was in a loop." in table(
        summary
    )
    (share,) = {arm["closed_by_loop"] for arm in summary["arms"]} - {0}
    assert share == pytest.approx(1 / 9)


def test_markdown_has_a_row_for_each_arm(records):
    text = markdown(summarize(records))
    rows = [line for line in text.split("\n") if line.startswith("| guidance |")]
    assert len(rows) == 2
    widths = {line.count("|") for line in text.split("\n\n")[0].split("\n")}
    assert len(widths) == 1


def test_a_summary_is_written_whole(records, tmp_path):
    summary = summarize(records, {"seed": 0})
    write_summary(tmp_path, summary)
    (file,) = tmp_path.iterdir()
    assert file.name == "summary.json"
    assert json.loads(file.read_text(encoding="utf-8")) == summary


def test_a_record_that_lacks_something_is_named(records):
    del records[3]["correct"]
    records[3]["id"] = "auto/3-0"
    with pytest.raises(ValueError, match="Record auto/3-0 has no 'correct'"):
        summarize(records)
