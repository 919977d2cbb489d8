"""The tables of an evaluation, in plain text and in Markdown.

Knows summaries; nothing of records. Only `speed_table` shows times: the other tables
are the same whenever the replies are.
"""

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from .metrics import Measures

WIDTH = 99

_Columns = dict[str, Callable[[Measures], str]]


def table(summary: dict[str, Any]) -> str:
    """All arms, in plain text, and notes; 99 columns if numbers are not very long."""
    if not summary["arms"]:
        return "No reply is finished."
    said = (
        textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in notes(summary)
    )
    arms = summary["arms"]
    spent = _plain(_token_columns(arms), arms)
    return "\n".join([_plain(_ARM_COLUMNS, arms), "", spent, "", *said]).rstrip()


def comparison_table(summary: dict[str, Any]) -> str:
    """All comparisons, in plain text; empty if there are none."""
    return _plain(_COMPARISON_COLUMNS, summary["comparisons"])


def speed_table(summary: dict[str, Any]) -> str:
    """Tokens a second and seconds of all arms, in plain text."""
    return _plain(_SPEED_COLUMNS, summary["arms"])


def markdown(summary: dict[str, Any]) -> str:
    """What `table` and `comparison_table` show, as GitHub Markdown."""
    arms = summary["arms"]
    tables = [_pipes(_ARM_COLUMNS, arms), _pipes(_token_columns(arms), arms)]
    blocks = [*tables, *notes(summary)]
    if summary["comparisons"]:
        blocks.append(_pipes(_COMPARISON_COLUMNS, summary["comparisons"]))
    return "\n\n".join(blocks)


def rows(
    summary: dict[str, Any],
) -> Iterator[tuple[list[str], list[bool], list[tuple[str, ...]]]]:
    """The tables for other media: headers, which columns are texts, and cells.

    Those of the arms, of their tokens, and of the comparisons if there are any.
    """
    arms = summary["arms"]
    for columns, items in (
        (_ARM_COLUMNS, arms),
        (_token_columns(arms), arms),
        (_COMPARISON_COLUMNS, summary["comparisons"]),
    ):
        if items:
            headers = [name.replace("\n", " ") for name in columns]
            are_texts = [name in _TEXTS for name in columns]
            yield headers, are_texts, _cells(columns, items)


def notes(summary: dict[str, Any]) -> list[str]:
    """What there is to say below the tables, a sentence each."""
    said = []
    most = max((arm["n"] for arm in summary["arms"]), default=0)
    begun = [
        f"{a['arm']} ({a['n']} of {most})" for a in summary["arms"] if a["n"] < most
    ]
    if begun:
        said.append(f"Not finished, and short replies come first: {', '.join(begun)}.")
    if ungraded := sum(arm["grading_problems"] for arm in summary["arms"]):
        answers = "1 answer" if ungraded == 1 else f"{ungraded} answers"
        said.append(f"{answers} could not be graded.")
    loops = sum(round(arm["closed_by_loop"] * arm["n"]) for arm in summary["arms"])
    if loops:
        replies = "1 reply was" if loops == 1 else f"{loops} replies were"
        said.append(f"The thinking of {replies} closed because it was in a loop.")
    found = summary["strategies"]
    if areas := [s for s in found if s["area"] is not None and s["budgets"]]:
        end = f"{areas[0]['to_tokens']:.0f}"
        what = f"Mean accuracy over 0 to {end} tokens of all kinds"
        said.append(f"{what}: {_areas(areas, 'area')}.")
    if areas := [s for s in found if s["budget_area"] is not None]:
        ends = f"{areas[0]['from_budget']:.0f} to {areas[0]['to_budget']:.0f} tokens"
        what = f"Mean accuracy over budgets of {ends}"
        said.append(f"{what}: {_areas(areas, 'budget_area')}.")
    if anytime := summary.get("anytime"):
        budgets = ", ".join(anytime["budgets"])
        said.append(
            f"Anytime accuracy, the mean over budgets of {budgets}: "
            f"{_accuracy(anytime)} (n = {anytime['n']})."
        )
    said += [
        f"Of {arm['n']} replies of {arm['arm']}, by their own tags: "
        + ", ".join(f"{tag} {n}" for tag, n in tags.items())
        + "."
        for arm in summary["arms"]
        if any((tags := arm.get("tags") or {}).values())
    ]
    correlation = summary["predictions"]["rank_correlation"]
    if correlation is not None:
        what = "the predicted length with the thinking tokens without a budget"
        n = summary["predictions"]["n"]
        said.append(f"Rank correlation of {what}: {correlation:.2f} (n = {n}).")
    return said


def _areas(strategies: list[Measures], name: str) -> str:
    return ", ".join(f"{s['strategy']} {_percent(s[name], 1)}" for s in strategies)


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


def _e3(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.{2 if value < 0.01 else 1}f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


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


def _token_columns(arms: list[Measures]) -> _Columns:
    """Those of the tokens, without what no arm spends anything on."""
    counts = {
        "after\nclose": "after_close_tokens",
        "answer": "answer_tokens",
        "put in": "forced_tokens",
        "markers": "marker_tokens",
        "probes": "probe_tokens",
    }
    spent = {h: n for h, n in counts.items() if any(arm[n] for arm in arms)}
    return {
        **_NAMES,
        "thinking\n(p10-p90)": _thinking,
        **{header: _count_cell(name) for header, name in spent.items()},
        "all\ntokens": lambda arm: _tokens(arm["total_tokens"]),
        "off\nby": _deviation,
        "E3 x1000,\nthinking": lambda arm: _e3(arm["e3_thinking"]),
    }


def _count_cell(name: str) -> Callable[[Measures], str]:
    return lambda arm: _tokens(arm[name])


# Columns of the tables by their headers, each with what makes its cells.
_TEXTS = ("strategy", "arm", "against")
_NAMES: _Columns = {
    "strategy": lambda arm: arm["strategy"],
    # The strategy says "auto" already.
    "budget": lambda arm: (arm["budget"] or "-").removeprefix("auto:"),
}
_ARM_COLUMNS: _Columns = {
    **_NAMES,
    "n": lambda arm: str(arm["n"]),
    "accuracy\n(95 %)": _accuracy,
    "all\ntokens": lambda arm: _tokens(arm["total_tokens"]),
    "E3\nx1000": lambda arm: _e3(arm["e3"]),
    "over\nbudget": _over_budget,
    "closed\nby\nmodel": lambda arm: _percent(arm["closed_by_model"]),
}
_SPEED_COLUMNS: _Columns = {
    "arm": lambda arm: arm["arm"],
    "tokens/s": lambda arm: f"{arm['tokens_per_second'] or 0:,.1f}",
    "seconds": lambda arm: f"{arm['seconds']:,.1f}",
}
_COMPARISON_COLUMNS: _Columns = {
    "arm": lambda comparison: comparison["a"],
    "against": lambda comparison: comparison["b"],
    "accuracy, points\n(95 %)": lambda comparison: _difference(
        comparison, "difference difference_low difference_high", 100
    ),
    "all tokens": lambda comparison: f"{comparison['tokens_difference'] + 0.0:+.1f}",
    "won/lost": lambda comparison: f"{comparison['wins']}/{comparison['losses']}",
    "p": lambda comparison: _p(comparison["p_value"]),
    "p, Holm": lambda comparison: _p(comparison["p_holm"]),
}
