"""Summary of an evaluation: every arm measured, arms compared, and tables of both.

Knows records and what they are compared by; nothing of models, tasks or pictures. An
arm is a strategy at one budget, "guidance@25%". Only `speed_table` shows times: the
other tables are the same whenever the replies are.
"""

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files.records import Record
from ..files.texts import write_text
from ..method.correlation import rank_correlation
from .metrics import Measures, area_under_accuracy, measure_arm, paired_difference
from .strategies import STRATEGIES

SUMMARY_FILE = "summary.json"
WIDTH = 99

# What JSON holds of an evaluation, see `summarize`.
Summary = dict[str, Any]

_Columns = dict[str, Callable[[Measures], str]]
_BASELINES = ("budget-forcing", "truncate")
_NEEDED = (
    "strategy budget thinking_budget problem sample thinking_tokens answer_tokens "
    "closed_by finish_reason predicted_tokens correct grading_problem seconds"
).split()


def summarize(
    records: Sequence[Record], settings: dict[str, Any] | None = None
) -> Summary:
    """Measures and compares the arms of an evaluation, which may be incomplete.

    Args:
        records: Finished replies, of any arms and in any order.
        settings: Of the evaluation, kept as they are.

    Returns:
        dict: Of what JSON can hold; a number that is undefined is None.

        - settings
        - arms: with arm, strategy, budget (as it was asked for) and what `measure_arm`
          gives; full, no-thinking, then by strategy and mean budget.
        - strategies: of those that ran at budgets given in advance, with strategy,
          budgets, and area: the mean accuracy over the budgets from from_tokens to
          to_tokens, the range that all strategies with two budgets or more share. See
          `area_under_accuracy`; the tokens here are budgets, not tokens used.
        - comparisons: what `paired_difference` gives, with the names of the arms a and
          b and a kind. "budget": every strategy against budget-forcing at the same
          budget, or against truncate where there is none. "full": every arm against no
          budget. "auto": an automatic budget against the arm of guidance whose mean
          thinking is nearest.
        - predictions: rank_correlation of the thinking tokens without a budget with the
          length predicted before, and the number n of such replies.

    Raises:
        ValueError: If a record lacks something.
    """
    groups: dict[str, list[Record]] = {}
    for i, record in enumerate(records):
        for field in _NEEDED:
            if field not in record:
                raise ValueError(f"Record {record.get('id', i)} has no {field!r}.")
        strategy, budget = record["strategy"], record["budget"]
        name = strategy if budget is None else f"{strategy}@{budget}"
        groups.setdefault(name, []).append(record)
    arms = []
    for name, group in groups.items():
        asked = {field: group[0][field] for field in ("strategy", "budget")}
        arms.append({"arm": name, **asked, **measure_arm(group)})
    arms.sort(key=_place)
    return {
        "settings": settings or {},
        "arms": arms,
        "strategies": _measure_strategies(arms),
        "comparisons": [
            {"kind": kind, "a": a, "b": b, **difference}
            for kind, a, b in _pairs(arms)
            if (difference := paired_difference(groups[a], groups[b]))
        ],
        "predictions": _measure_predictions(groups.get("full", [])),
    }


def table(summary: Summary) -> str:
    """All arms, in plain text, and notes; 99 columns if numbers are not very long."""
    if not summary["arms"]:
        return "No reply is finished."
    notes = (textwrap.fill(note, WIDTH) for note in _notes(summary))
    return "\n".join([_plain(_arm_columns(summary), summary["arms"]), *notes])


def comparison_table(summary: Summary) -> str:
    """All comparisons, in plain text; empty if there are none."""
    return _plain(_COMPARISON_COLUMNS, summary["comparisons"])


def speed_table(summary: Summary) -> str:
    """Tokens a second and seconds of all arms, in plain text."""
    return _plain(_SPEED_COLUMNS, summary["arms"])


def markdown(summary: Summary) -> str:
    """What `table` and `comparison_table` show, as GitHub Markdown."""
    blocks = [_pipes(_arm_columns(summary), summary["arms"]), *_notes(summary)]
    if summary["comparisons"]:
        blocks.append(_pipes(_COMPARISON_COLUMNS, summary["comparisons"]))
    return "\n\n".join(blocks)


def write_summary(folder: Path, summary: Summary) -> None:
    """Writes `summary.json` into a folder, whole or not at all."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(Path(folder) / SUMMARY_FILE, text)


def _place(arm: Measures) -> tuple:
    """Where an arm stands among the others; a strategy not known here is last."""
    names = list(STRATEGIES)
    name, mean_budget = arm["strategy"], arm["mean_budget"]
    place = names.index(name) if name in names else len(names)
    return place, name, -1.0 if mean_budget is None else mean_budget, arm["arm"]


def _has_given_budget(arm: Measures) -> bool:
    return None not in (arm["budget"], arm["mean_budget"]) and arm["strategy"] != "auto"


def _measure_strategies(arms: list[Measures]) -> list[Measures]:
    found: dict[str, list[Measures]] = {}
    for arm in filter(_has_given_budget, arms):
        found.setdefault(arm["strategy"], []).append(arm)
    budgets = [{arm["mean_budget"] for arm in group} for group in found.values()]
    several = [tokens for tokens in budgets if len(tokens) > 1]
    low, high = max(map(min, several), default=0), min(map(max, several), default=0)
    strategies = []
    for strategy, group in found.items():
        points = [(arm["mean_budget"], arm["accuracy"]) for arm in group]
        area = area_under_accuracy(points, high, low)
        strategies.append(
            {
                "strategy": strategy,
                "budgets": [arm["budget"] for arm in group],
                "area": area,
                "from_tokens": None if area is None else low,
                "to_tokens": None if area is None else high,
            }
        )
    return strategies


def _pairs(arms: list[Measures]) -> list[tuple[str, str, str]]:
    """Kind and names of the arms to compare."""
    names = [arm["arm"] for arm in arms]
    pairs = []
    for arm in filter(_has_given_budget, arms):
        baselines = (f"{baseline}@{arm['budget']}" for baseline in _BASELINES)
        baseline = next((name for name in baselines if name in names), arm["arm"])
        if baseline != arm["arm"]:
            pairs.append(("budget", arm["arm"], baseline))
    guided = [arm for arm in arms if arm["strategy"] == "guidance"]
    for arm in arms:
        if arm["strategy"] == "auto" and guided:
            tokens = arm["thinking_tokens"]
            nearest = min(guided, key=lambda g: abs(g["thinking_tokens"] - tokens))
            pairs.append(("auto", arm["arm"], nearest["arm"]))
    if "full" in names:
        pairs += [("full", name, "full") for name in names if name != "full"]
    return pairs


def _measure_predictions(full: list[Record]) -> Measures:
    known = [r for r in full if r["predicted_tokens"] is not None]
    fields = ("predicted_tokens", "thinking_tokens")
    lengths = (np.array([r[field] for r in known], np.float64) for field in fields)
    return {"rank_correlation": rank_correlation(*lengths), "n": len(known)}


def _notes(summary: Summary) -> list[str]:
    notes = []
    if ungraded := sum(arm["grading_problems"] for arm in summary["arms"]):
        answers = "1 answer" if ungraded == 1 else f"{ungraded} answers"
        notes.append(f"{answers} could not be graded.")
    loops = sum(round(arm["closed_by_loop"] * arm["n"]) for arm in summary["arms"])
    if loops:
        replies = "1 reply was" if loops == 1 else f"{loops} replies were"
        notes.append(f"The thinking of {replies} closed because it was in a loop.")
    areas = [s for s in summary["strategies"] if s["area"] is not None]
    if areas:
        ends = f"{areas[0]['from_tokens']:.0f} to {areas[0]['to_tokens']:.0f} tokens"
        means = ", ".join(f"{s['strategy']} {_percent(s['area'], 1)}" for s in areas)
        notes.append(f"Mean accuracy over budgets of {ends}: {means}.")
    correlation = summary["predictions"]["rank_correlation"]
    if correlation is not None:
        what = "the predicted length with the thinking tokens without a budget"
        n = summary["predictions"]["n"]
        notes.append(f"Rank correlation of {what}: {correlation:.2f} (n = {n}).")
    return notes


def _percent(fraction: float, digits: int = 0, unit: str = " %") -> str:
    number = f"{100 * fraction:.{digits}f}"
    # A hundred needs no decimals, and the width is dear.
    return number.replace("100.0", "100") + unit


def _accuracy(arm: Measures) -> str:
    low, high = (_percent(arm[f"accuracy_{end}"], 1, "") for end in ("low", "high"))
    return f"{_percent(arm['accuracy'], 1)} ({low}-{high})"


def _tokens(mean: float) -> str:
    return f"{mean:.1f}" if mean < 100 else f"{mean:.0f}"


def _thinking(arm: Measures) -> str:
    ends = (arm["thinking_p10"], arm["thinking_p90"])
    low, high = (f"{t:.0f}" if t < 9999.5 else f"{t / 1000:.0f}k" for t in ends)
    return f"{_tokens(arm['thinking_tokens'])} ({low}-{high})"


def _over_budget(arm: Measures) -> str:
    if not arm["mean_budget"]:
        return "-"
    excess = "" if not arm["over_budget"] else f" +{_tokens(arm['excess_tokens'])}"
    return _percent(arm["over_budget"]) + excess


def _deviation(arm: Measures) -> str:
    share = arm["deviation"]
    return "-" if share is None else _percent(share)


def _e3(arm: Measures) -> str:
    value = arm["e3"]
    return "-" if value is None else f"{1000 * value:.{2 if value < 0.01 else 1}f}"


def _difference(comparison: Measures, names: str, scale: int) -> str:
    # Adding 0 makes 0 of a negative 0.
    value, low, high = (
        f"{round(scale * comparison[name], 1) + 0.0:+.1f}" for name in names.split()
    )
    return f"{value} ({low} to {high})"


def _plain(columns: _Columns, items: list[Measures]) -> str:
    if not items:
        return ""
    headers = [header.split("\n") for header in columns]
    height = max(map(len, headers))
    headers = [[""] * (height - len(lines)) + lines for lines in headers]
    rows = [*zip(*headers, strict=True), *_cells(columns, items)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    # One space is enough where two would make lines that a terminal breaks.
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    aligned = (
        [
            cell.ljust(width) if header in _TEXTS else cell.rjust(width)
            for header, cell, width in zip(columns, row, widths, strict=True)
        ]
        for row in rows
    )
    return "\n".join(gap.join(cells).rstrip() for cells in aligned)


def _pipes(columns: _Columns, items: list[Measures]) -> str:
    header = [name.replace("\n", " ") for name in columns]
    rule = ["---" if name in _TEXTS else "---:" for name in columns]
    rows = [header, rule, *_cells(columns, items)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(columns: _Columns, items: list[Measures]) -> list[tuple[str, ...]]:
    return [tuple(cell(item) for cell in columns.values()) for item in items]


def _arm_columns(summary: Summary) -> _Columns:
    """Those of all arms, without one that would be 0 everywhere."""
    has_any = any(arm["after_close_tokens"] for arm in summary["arms"])
    return {
        header: cell
        for header, cell in _ARM_COLUMNS.items()
        if has_any or header != _AFTER_CLOSE
    }


_AFTER_CLOSE = "after\nclose"
# Columns of the tables by their headers, each with what makes its cells.
_TEXTS = ("strategy", "arm", "against")
_ARM_COLUMNS: _Columns = {
    "strategy": lambda arm: arm["strategy"],
    # The strategy says "auto" already.
    "budget": lambda arm: (arm["budget"] or "-").removeprefix("auto:"),
    "n": lambda arm: str(arm["n"]),
    "accuracy\n(95 %)": _accuracy,
    "thinking\n(p10-p90)": _thinking,
    "over\nbudget": _over_budget,
    "off\nby": _deviation,
    "closed\nby\nmodel": lambda arm: _percent(arm["closed_by_model"]),
    _AFTER_CLOSE: lambda arm: _tokens(arm["after_close_tokens"]),
    "answer\ntokens": lambda arm: _tokens(arm["answer_tokens"]),
    "E3\nx1000": _e3,
}
_SPEED_COLUMNS: _Columns = {
    "arm": lambda arm: arm["arm"],
    "tokens/s": lambda arm: f"{arm['tokens_per_second'] or 0:,.1f}",
    "seconds": lambda arm: f"{arm['seconds']:,.1f}",
}
_COMPARISON_COLUMNS: _Columns = {
    "arm": lambda comparison: comparison["a"],
    "against": lambda comparison: comparison["b"],
    "pairs": lambda comparison: str(comparison["n"]),
    "accuracy, points\n(95 %)": lambda comparison: _difference(
        comparison, "difference difference_low difference_high", 100
    ),
    "thinking tokens\n(95 %)": lambda comparison: _difference(
        comparison, "tokens_difference tokens_low tokens_high", 1
    ),
    "won/lost": lambda comparison: f"{comparison['wins']}/{comparison['losses']}",
}
