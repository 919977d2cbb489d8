"""Pictures of an evaluation: what a budget buys, what it holds to, what was foreseen.

Knows records and their summary; nothing of models or tasks.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.records import Record
from .metrics import Measures
from .strategies import STRATEGIES, WITHOUT_BUDGET
from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY_FILE, LENGTH_FILE, DIFFICULTY_FILE = (
    "accuracy.png",
    "length.png",
    "difficulty.png",
)
NO_PLOTS = (
    "No plots were drawn, since matplotlib is not installed: "
    '`pip install "mlx-budget[eval]"`.'
)
# What guides is blue and green, what cuts orange, what makes thinking last purple, what
# asks again brown, and a prompt grey; most of it Okabe and Ito's colours, told apart by
# colour-blind readers too, and every marker is another's neighbour.
_STYLES = {
    "full": ("#000000", "*"),
    "no-thinking": ("#000000", "X"),
    "guidance": ("#0072B2", "o"),
    "guidance-no-hard-stop": ("#56B4E9", "s"),
    "about": ("#44AA99", "d"),
    "at-least": ("#117733", "p"),
    "prior": ("#332288", "h"),
    "auto": ("#009E73", "h"),
    "hard-stop": ("#D55E00", "<"),
    "budget-forcing": ("#D55E00", "^"),
    "truncate": ("#E69F00", "v"),
    "elastic": ("#E69F00", ">"),
    "soft-close": ("#C8A400", "s"),
    "top-k-close": ("#C8A400", "o"),
    "s1": ("#882255", "p"),
    "wait": ("#CC79A7", "D"),
    "alpha-one": ("#AA4499", "d"),
    "no-wait": ("#CC0000", "P"),
    "deer": ("#7A4A1E", "^"),
    "convergence": ("#7A4A1E", "v"),
    "majority": ("#B08A5A", "s"),
    "prompt": ("#999999", "P"),
    "tale": ("#999999", "o"),
    "remaining-budget": ("#666666", "D"),
    "chain-of-draft": ("#666666", "X"),
}
_POINTS = WITHOUT_BUDGET
_SIZE, _DPI = (7.5, 4.6), 150


def draw(folder: Path, records: Sequence[Record], summary: Summary) -> list[Path]:
    """Draws what there is to see, as PNG files.

    - `ACCURACY_FILE`: accuracy over the mean of all tokens, a line a strategy, with
      bands of 95 %.
    - `LENGTH_FILE`: mean thinking tokens and their 10 to 90 % range over the budget.
    - `DIFFICULTY_FILE`: thinking tokens without a budget over the length that the
      predictor expected; left out where nothing was predicted.

    Args:
        folder (Path): Where to put them.
        records (Sequence): The finished replies.
        summary (dict): What `summarize` makes of them.

    Returns:
        list[Path]: The files; none if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    full = [
        r
        for r in records
        if r["strategy"] == "full" and r["predicted_tokens"] is not None
    ]
    pictures: dict[str, Callable[[Axes], None]] = {
        ACCURACY_FILE: lambda axes: _draw_accuracy(axes, summary["arms"]),
        LENGTH_FILE: lambda axes: _draw_length(axes, summary["arms"]),
    }
    if full:
        pictures[DIFFICULTY_FILE] = lambda axes: _draw_difficulty(
            axes, full, summary["predictions"]["rank_correlation"]
        )
    files = []
    for name, draw_on in pictures.items():
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        draw_on(axes)
        partial = folder / f".{name}.partial"
        figure.savefig(partial, format="png")
        os.replace(partial, folder / name)
        files.append(folder / name)
    return files


def _draw_accuracy(axes: "Axes", arms: list[Measures]) -> None:
    for strategy, group in by_strategy(arms).items():
        group = sorted(group, key=lambda arm: arm["total_tokens"])
        tokens = [arm["total_tokens"] for arm in group]
        accuracy, low, high = (
            [100 * arm[name] for arm in group]
            for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        color, marker = style(strategy)
        is_point = len(group) == 1
        if is_point:
            axes.vlines(tokens, low, high, color=color, linewidth=1)
        else:
            axes.fill_between(tokens, low, high, color=color, alpha=0.09, linewidth=0)
        axes.plot(
            tokens,
            accuracy,
            color=color,
            marker=marker,
            markersize=11 if strategy == "full" else 6,
            linewidth=1.8,
            linestyle="none" if is_point else "-",
            label=strategy,
            zorder=3 if strategy in ("guidance", "full") else 2,
        )
        if strategy == "full":
            axes.axhline(accuracy[0], color=color, linestyle=":", linewidth=1)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 102)
    axes.set_xlabel("tokens of all kinds (mean)")
    axes.set_ylabel("accuracy (%), with 95 % bands")
    axes.set_title("What tokens buy")
    axes.figure.legend(fontsize=8, frameon=False, loc="outside right upper")


def _draw_length(axes: "Axes", arms: list[Measures]) -> None:
    shown = {
        strategy: sorted(group, key=lambda arm: arm["mean_budget"])
        for strategy, group in by_strategy(arms).items()
        if strategy not in _POINTS and all(arm["mean_budget"] for arm in group)
    }
    budgets = [arm["mean_budget"] for group in shown.values() for arm in group]
    largest = max(budgets, default=1.0)
    axes.plot([0, largest], [0, largest], color="black", linestyle=":", linewidth=1)
    axes.text(
        largest, largest, " budget", fontsize=8, va="bottom", ha="right", rotation=0
    )
    for i, (strategy, group) in enumerate(shown.items()):
        # A little beside each other, so that no range hides another.
        shift = (i - (len(shown) - 1) / 2) * largest / 150
        color, marker = style(strategy)
        means = [arm["thinking_tokens"] for arm in group]
        # Of a skewed distribution the mean may lie beyond a quantile.
        ranges = [
            [max(0, arm["thinking_tokens"] - arm["thinking_p10"]) for arm in group],
            [max(0, arm["thinking_p90"] - arm["thinking_tokens"]) for arm in group],
        ]
        axes.errorbar(
            [arm["mean_budget"] + shift for arm in group],
            means,
            yerr=ranges,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.5,
            elinewidth=0.8,
            capsize=2,
            label=strategy,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("budget (tokens)")
    axes.set_ylabel("thinking tokens (mean, 10 to 90 %)")
    axes.set_title("How thinking follows the budget")
    if shown:
        axes.figure.legend(fontsize=8, frameon=False, loc="outside right upper")


def _draw_difficulty(
    axes: "Axes", full: list[Record], correlation: float | None
) -> None:
    for correct, color, label in (
        (True, "#0072B2", "right"),
        (False, "#D55E00", "wrong"),
    ):
        group = [r for r in full if r["correct"] is correct]
        axes.scatter(
            [r["predicted_tokens"] for r in group],
            [r["thinking_tokens"] for r in group],
            s=12,
            alpha=0.5,
            color=color,
            linewidths=0,
            label=f"{label} ({len(group)})",
        )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("length predicted before thinking (median, tokens)")
    axes.set_ylabel("thinking tokens without a budget")
    known = "" if correlation is None else f", rank correlation {correlation:.2f}"
    axes.set_title(f"Length against predicted difficulty{known}")
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def by_strategy(arms: list[Measures]) -> dict[str, list[Measures]]:
    """The arms of each strategy, in the order in which strategies are listed."""
    groups: dict[str, list[Measures]] = {}
    for arm in arms:
        groups.setdefault(arm["strategy"], []).append(arm)
    names = [*STRATEGIES, *sorted(set(groups) - set(STRATEGIES))]
    return {name: groups[name] for name in names if name in groups}


def style(strategy: str) -> tuple[str, str]:
    """The colour of a strategy, and its marker in matplotlib's names."""
    return _STYLES.get(strategy, ("#666666", "."))
