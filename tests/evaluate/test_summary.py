"""Summaries: what is compared with what, and tables that are the same for the same."""

import json
import re

import pytest

from evaluation_records import record
from mlx_budget.evaluate.paired import holm
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


def test_guidance_is_compared_with_every_rival(records):
    rows = [record(name, 20, i, 15) for name in ("prior", "s1") for i in range(9)]
    rows += [record("no-wait", None, i, 30) for i in range(9)]
    found = summarize([*records, *rows])["comparisons"]
    rivals = {c["b"] for c in found if (c["kind"], c["a"]) == ("budget", "guidance@20")}
    assert rivals == {"budget-forcing@20", "prior@20", "s1@20", "no-wait"}


def test_without_guidance_strategies_are_compared_with_cutting(records):
    rows = [r for r in records if r["strategy"] != "guidance"]
    rows += [record("prior", 20, i, 15) for i in range(9)]
    found = [c for c in summarize(rows)["comparisons"] if c["kind"] == "budget"]
    assert [(c["a"], c["b"]) for c in found] == [("prior@20", "budget-forcing@20")]


def test_p_values_are_corrected_by_the_kind_of_comparison(records):
    found = summarize(records)["comparisons"]
    for kind in ("budget", "full", "auto"):
        family = [c for c in found if c["kind"] == kind]
        assert [c["p_holm"] for c in family] == holm([c["p_value"] for c in family])


def test_every_arm_is_compared_with_no_budget(records):
    found = [c for c in summarize(records)["comparisons"] if c["kind"] == "full"]
    assert {c["b"] for c in found} == {"full"}
    assert len(found) == 5


def test_areas_are_over_the_same_budgets_and_the_same_tokens(records):
    found = {s["strategy"]: s for s in summarize(records)["strategies"]}
    guidance, forcing = found["guidance"], found["budget-forcing"]
    assert guidance["budget_area"] == forcing["budget_area"]
    assert (guidance["from_budget"], guidance["to_budget"]) == (20, 60)
    assert found["auto"]["budget_area"] is found["full"]["budget_area"] is None
    # Those of no budget: 60 to 116 of thinking, 5 of answer and a marker.
    assert {s["to_tokens"] for s in found.values()} == {88 + 6}
    assert 0 < guidance["area"] == forcing["area"] < 1
    assert found["full"]["area"] == 0


def test_the_table_tells_areas_and_predictions_where_there_are_any(records):
    lines = table(summarize(records)).split("\n")
    areas = {s["strategy"]: s["budget_area"] for s in summarize(records)["strategies"]}
    told = ", ".join(
        f"{name} {100 * area:.1f} %" for name, area in areas.items() if area is not None
    )
    assert f"Mean accuracy over budgets of 20 to 60 tokens: {told}." in lines
    assert any(line.startswith("Mean accuracy over 0 to 94 tokens") for line in lines)
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
    lines = filter(None, table(summary).split("\n"))
    assert left_out not in {line.split()[0] for line in lines}


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


def test_what_arms_spend_tokens_on_is_shown_where_there_is_any(records):
    headers = {"after": "after_close", "put": "forced", "probes": "probe"}
    without = table(summarize(records))
    assert not any(f" {header} " in without for header in headers)
    for header, name in headers.items():
        rows = [dict(r) for r in records]
        (one,) = [r for r in rows if (r["strategy"], r["problem"]) == ("full", "4")]
        one[f"{name}_tokens"] = 45
        one["total_tokens"] += 45
        summary = summarize(rows)
        shown = {arm["arm"]: arm[f"{name}_tokens"] for arm in summary["arms"]}
        assert shown == {**dict.fromkeys(shown, 0), "full": 5}
        text = table(summary)
        assert max(map(len, text.split("\n"))) < 100
        assert re.search(rf"\b{header}\b", text)
        full = [line for line in text.split("\n") if line.startswith("full")]
        # Among all tokens, and beside the others.
        assert full[0].split()[6] == "99.0"
        assert full[1].split()[4:8].count("5.0") == 2
        assert header in markdown(summary)


def test_arms_that_are_not_finished_are_told(records):
    assert "Not finished" not in table(summarize(records))
    rows = [r for r in records if (r["budget"], r["problem"]) != ("60", "3")]
    told = "Not finished, and short replies come first: "
    assert told + "guidance@60 (8 of 9), budget-forcing@60 (8 of 9)." in table(
        summarize(rows)
    ).replace("\n", " ")


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
    assert len(rows) == 2 * 2
    for block in text.split("\n\n")[:2]:
        assert len({line.count("|") for line in block.split("\n")}) == 1


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
