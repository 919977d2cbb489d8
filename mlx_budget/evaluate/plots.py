"""Pictures of an evaluation: what a budget buys, what it holds to, what was foreseen.

Knows records and their summary; nothing of models or tasks.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.records import Record
from ..installing import install_command
from .metrics import Measures
from .strategies import STRATEGIES, WITHOUT_BUDGET
from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCURACY_FILE, THINKING_FILE, LENGTH_FILE, DIFFICULTY_FILE = (
    "accuracy.png",
    "accuracy-thinking.png",
    "length.png",
    "difficulty.png",
)
NO_PLOTS = (
    "No plots were drawn, since matplotlib is not installed: "
    f"`{install_command('eval')}`."
)
# What guides is blue and green, what cuts orange, what makes thinking last purple, what
# asks again brown, what plans rose, and a prompt grey; most of it Okabe and Ito's
# colours, told apart by colour-blind readers too, and every marker is another's
# neighbour.
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
    "wait-1": ("#CC79A7", "^"),
    "wait-2": ("#CC79A7", "s"),
    "wait-4": ("#CC79A7", "v"),
    "wait-6": ("#CC79A7", "p"),
    "wait-8": ("#CC79A7", "h"),
    "anytime": ("#332288", "^"),
    "alpha-one": ("#AA4499", "d"),
    "no-wait": ("#CC0000", "P"),
    "deer": ("#7A4A1E", "^"),
    "convergence": ("#7A4A1E", "v"),
    "majority": ("#B08A5A", "s"),
    "plan-guided": ("#CC6677", "o"),
    "plan-rollover": ("#CC6677", "D"),
    "plan-words": ("#CC6677", "P"),
    "prompt": ("#999999", "P"),
    "tale": ("#999999", "o"),
    "remaining-budget": ("#666666", "D"),
    "chain-of-draft": ("#666666", "X"),
    "easy": ("#228833", "^"),
    "hard": ("#228833", "v"),
}
_COUNTED = {
    "total_tokens": "tokens of a reply, all kinds (mean)",
    "thinking_tokens": "thinking tokens of a reply (mean)",
}
_POINTS = WITHOUT_BUDGET
_SIZE, _DPI = (7.5, 4.6), 150
# What a picture shows at a glance: no budget, what guides, and what cuts by itself. Of
# what guides the first that there is.
MOST_SHOWN = 3
_GUIDING = ("guidance", "guidance-no-hard-stop", "about", "prior", "auto")
_CUTTING = ("hard-stop", "budget-forcing", "truncate")


def draw(
    folder: Path,
    records: Sequence[Record],
    summary: Summary,
    strategies: Sequence[str] | None = None,
) -> list[Path]:
    """Draws what there is to see, as PNG files.

    - `ACCURACY_FILE`: accuracy over the mean of all tokens, a line a strategy, with
      bands of 95 %.
    - `THINKING_FILE`: the same over the mean of thinking tokens.
    - `LENGTH_FILE`: mean thinking tokens over the budget, with the 10 to 90 % range if
      the strategies are few.
    - `DIFFICULTY_FILE`: thinking tokens without a budget over the length that the
      predictor expected; left out where nothing was predicted.

    Args:
        folder (Path): Where to put them.
        records (Sequence): The finished replies.
        summary (dict): What `summarize` makes of them.
        strategies (Sequence, optional): Those to show; `main_strategies` by default.

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
    names = main_strategies(summary["arms"]) if strategies is None else strategies
    arms = [arm for arm in summary["arms"] if arm["strategy"] in names]
    pictures: dict[str, Callable[[Axes], None]] = {
        ACCURACY_FILE: lambda axes: _draw_accuracy(axes, arms),
        THINKING_FILE: lambda axes: _draw_accuracy(axes, arms, "thinking_tokens"),
        LENGTH_FILE: lambda axes: _draw_length(axes, arms),
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


def _draw_accuracy(
    axes: "Axes", arms: list[Measures], counted: str = "total_tokens"
) -> None:
    groups = by_strategy(arms)
    is_few = len(groups) <= MOST_SHOWN
    for strategy, group in groups.items():
        group = sorted(group, key=lambda arm: arm[counted])
        tokens = [arm[counted] for arm in group]
        accuracy, low, high = (
            [100 * arm[name] for arm in group]
            for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        color, marker = style(strategy)
        is_point = len(group) == 1
        if is_point:
            axes.vlines(tokens, low, high, color=color, linewidth=1)
        else:
            axes.fill_between(tokens, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(
            tokens,
            accuracy,
            color=color,
            marker=marker,
            markersize=11 if strategy == "full" else 6,
            linewidth=1.8,
            linestyle="none" if is_point else "-",
            label=_label(strategy),
            zorder=3 if strategy in ("guidance", "full") else 2,
        )
        if strategy == "full":
            axes.axhline(accuracy[0], color=color, linestyle=":", linewidth=1)
        if is_few and strategy not in _POINTS:
            for arm, x, y in zip(group, tokens, accuracy, strict=True):
                _name_budget(axes, arm, (x, y), color)
    # The axes begin where the points do: what is to be seen is how far they are apart.
    axes.margins(0.07)
    axes.set_xlabel(_COUNTED[counted])
    axes.set_ylabel("right answers (%), with 95 % bands")
    axes.set_title("What tokens buy")
    _add_legend(axes, is_few)


def _draw_length(axes: "Axes", arms: list[Measures]) -> None:
    shown = {
        strategy: sorted(group, key=lambda arm: arm["mean_budget"])
        for strategy, group in by_strategy(arms).items()
        if strategy not in _POINTS and all(arm["mean_budget"] for arm in group)
    }
    is_few = len(shown) <= MOST_SHOWN
    budgets = [arm["mean_budget"] for group in shown.values() for arm in group]
    for strategy, group in shown.items():
        color, marker = style(strategy)
        places = [arm["mean_budget"] for arm in group]
        low, high = (
            [arm[name] for arm in group] for name in ("thinking_p10", "thinking_p90")
        )
        if is_few and len(group) == 1:
            axes.vlines(places, low, high, color=color, linewidth=1)
        elif is_few:
            axes.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(
            places,
            [arm["thinking_tokens"] for arm in group],
            color=color,
            marker=marker,
            markersize=6,
            linewidth=1.8,
            label=_label(strategy),
        )
    axes.margins(0.07)
    if budgets:
        _draw_identity(axes, budgets)
        _add_legend(axes, is_few)
    axes.set_xlabel("budget (tokens)")
    ranges = ", with 10 to 90 % bands" if is_few else ""
    axes.set_ylabel(f"thinking tokens (mean{ranges})")
    axes.set_title("How thinking follows the budget")


def _draw_identity(axes: "Axes", budgets: list[float]) -> None:
    """The line on which all of the budget is used, and ticks at the budgets."""
    # What the axes show is set by the replies: the line leaves it where it ends.
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    bottom, top = min(bottom, min(budgets)), max(top, max(budgets))
    axes.axline(
        (0, 0),
        slope=1,
        color="black",
        linestyle=":",
        linewidth=1.2,
        label="used = budget",
    )
    axes.set_xlim(left, right)
    axes.set_ylim(max(bottom, 0), top)
    known = sorted(set(map(round, budgets)))
    # Those that would be written over each other stay without a tick.
    width = (right - left) / 14
    if all(b - a >= width for a, b in zip(known, known[1:], strict=False)):
        axes.set_xticks(known)


def _name_budget(
    axes: "Axes", arm: Measures, place: tuple[float, float], color: str
) -> None:
    """Writes the budget of a point below it."""
    axes.annotate(
        str(arm["budget"]),
        place,
        xytext=(5, -13),
        textcoords="offset points",
        fontsize=8,
        color=color,
    )


def _add_legend(axes: "Axes", is_few: bool) -> None:
    if is_few:
        axes.legend(fontsize=9, frameon=False, loc="best")
    else:
        axes.figure.legend(fontsize=8, frameon=False, loc="outside right upper")


def _label(strategy: str) -> str:
    return "full (no budget)" if strategy == "full" else strategy


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


def main_strategies(arms: Sequence[Measures]) -> list[str]:
    """The strategies that are shown unless all are asked for: three at most.

    These are "full", the first there is of those that guide, and the strongest of the
    simple cuts, by mean accuracy on budgets that all of these have in common; places
    that are left go to the first ones of the others.
    """
    groups = by_strategy(list(arms))
    cutting = {name: groups[name] for name in _CUTTING if name in groups}
    budgets = [{arm["budget"] for arm in group} for group in cutting.values()]
    shared = set.intersection(*budgets) if budgets else set()

    def strength(name: str) -> float:
        group = [a for a in cutting[name] if a["budget"] in shared] or cutting[name]
        return sum(arm["accuracy"] for arm in group) / len(group)

    chosen = [
        *(["full"] if "full" in groups else []),
        *[name for name in _GUIDING if name in groups][:1],
        *sorted(cutting, key=strength, reverse=True)[:1],
    ]
    chosen += [name for name in groups if name not in chosen]
    return [name for name in groups if name in chosen[:MOST_SHOWN]]


def style(strategy: str) -> tuple[str, str]:
    """The colour of a strategy, and its marker in matplotlib's names."""
    return _STYLES.get(strategy, ("#666666", "."))
