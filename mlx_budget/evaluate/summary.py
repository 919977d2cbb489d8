"""Summary of an evaluation: every arm measured, and arms compared.

Knows records and what they are compared by; nothing of models, tasks or pictures. An
arm is a strategy at one budget, "guidance@25%".
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files.records import Record
from ..files.texts import write_text
from ..method.correlation import rank_correlation
from .metrics import (
    TOKEN_COUNTS,
    Measures,
    area_over_tokens,
    area_under_accuracy,
    measure_anytime,
    measure_arm,
    paired_difference,
)
from .paired import holm
from .strategies import STRATEGIES
from .tables import comparison_table, markdown, speed_table, table

__all__ = [
    "SUMMARY_FILE",
    "Summary",
    "comparison_table",
    "markdown",
    "speed_table",
    "summarize",
    "table",
    "write_summary",
]

SUMMARY_FILE = "summary.json"

# What JSON holds of an evaluation, see `summarize`.
Summary = dict[str, Any]

_METHOD = "guidance"
_BASELINES = ("budget-forcing", "truncate")
_NEEDED = (
    *"strategy budget thinking_budget problem sample thinking_tokens".split(),
    *TOKEN_COUNTS,
    *"closed_by finish_reason predicted_tokens correct grading_problem seconds".split(),
)


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
        - strategies: with strategy, budgets, and two mean accuracies. area is over all
          tokens from 0 to to_tokens, which are those of no budget, or of the dearest
          arm where that is missing, see `area_over_tokens`. budget_area is over the
          budgets from from_budget to to_budget, the range that all strategies with two
          budgets or more share, see `area_under_accuracy`; None without them.
        - comparisons: what `paired_difference` gives, with the names of the arms a and
          b, a kind, and p_holm, the p-value with Holm's correction for all comparisons
          of its kind. "budget": guidance against every other strategy at the same
          budget, and against those without one; where guidance is missing every
          strategy against budget-forcing or truncate. "full": every arm against no
          budget. "auto": an automatic budget against the arm of guidance whose mean
          thinking is nearest.
        - predictions: rank_correlation of the thinking tokens without a budget with the
          length predicted before, and the number n of such replies.
        - anytime: what `measure_anytime` gives; None without the strategy.

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
    comparisons = [
        {"kind": kind, "a": a, "b": b, **difference}
        for kind, a, b in _pairs(arms)
        if (difference := paired_difference(groups[a], groups[b]))
    ]
    for kind in {c["kind"] for c in comparisons}:
        family = [c for c in comparisons if c["kind"] == kind]
        corrected = holm([c["p_value"] for c in family])
        for comparison, p_value in zip(family, corrected, strict=True):
            comparison["p_holm"] = p_value
    return {
        "settings": settings or {},
        "arms": arms,
        "strategies": _measure_strategies(arms),
        "comparisons": comparisons,
        "predictions": _measure_predictions(groups.get("full", [])),
        "anytime": measure_anytime([r for r in records if r["strategy"] == "anytime"]),
    }


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
    for arm in arms:
        found.setdefault(arm["strategy"], []).append(arm)
    at_budgets = [list(filter(_has_given_budget, group)) for group in found.values()]
    budgets = [{arm["mean_budget"] for arm in group} for group in at_budgets]
    several = [tokens for tokens in budgets if len(tokens) > 1]
    low, high = max(map(min, several), default=0), min(map(max, several), default=0)
    dearest = max((arm["total_tokens"] for arm in found.get("full", arms)), default=0)
    strategies = []
    for (strategy, group), limited in zip(found.items(), at_budgets, strict=True):
        points = [(arm["mean_budget"], arm["accuracy"]) for arm in limited]
        budget_area = area_under_accuracy(points, high, low)
        used = [(arm["total_tokens"], arm["accuracy"]) for arm in group]
        strategies.append(
            {
                "strategy": strategy,
                "budgets": [arm["budget"] for arm in group if arm["budget"]],
                "area": area_over_tokens(used, dearest) if dearest > 0 else None,
                "to_tokens": dearest,
                "budget_area": budget_area,
                "from_budget": None if budget_area is None else low,
                "to_budget": None if budget_area is None else high,
            }
        )
    return strategies


def _pairs(arms: list[Measures]) -> list[tuple[str, str, str]]:
    """Kind and names of the arms to compare."""
    names = [arm["arm"] for arm in arms]
    pairs = []
    guided = [arm for arm in arms if arm["strategy"] == _METHOD]
    rivals = {arm["budget"] for arm in arms if arm["strategy"] not in (_METHOD, "auto")}
    for arm in guided:
        if arm["budget"] not in rivals:
            continue  # the companion of an automatic budget
        pairs += [
            ("budget", arm["arm"], other["arm"])
            for other in arms
            if other["strategy"] not in (_METHOD, "auto", "full")
            and other["budget"] in (arm["budget"], None)
        ]
    for arm in [] if guided else filter(_has_given_budget, arms):
        baselines = (f"{baseline}@{arm['budget']}" for baseline in _BASELINES)
        baseline = next((name for name in baselines if name in names), arm["arm"])
        if baseline != arm["arm"]:
            pairs.append(("budget", arm["arm"], baseline))
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
