"""The picture of a training run's report, if matplotlib is installed.

Knows what the report holds; nothing of how it was measured.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..installing import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_FILE = "report.png"
NO_PICTURE = (
    f"{PICTURE_FILE} was not drawn, since matplotlib is not installed: "
    f"`{install_command('train')}`."
)

# Ends of the axes in tokens where there is nothing to draw.
_NOWHERE = (1.0, 100.0)


def draw_report(
    report: dict[str, Any], folder: Path, curves: list[dict[str, float]]
) -> str | None:
    """Draws `report.png`, which appears whole or not at all.

    Args:
        report (dict): From `report.make_report`.
        folder (Path): Where the picture goes.
        curves (list): As of `report.write_report`.

    Returns:
        str: None, or a note for the user on why there is no picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return NO_PICTURE
    # A figure of its own, without pyplot, draws with Agg and needs no display.
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    _draw_curves(panels[0, 0], report, curves)
    _draw_medians(panels[0, 1], report)
    _draw_calibration(panels[1, 0], report)
    _draw_first_tokens(panels[1, 1], report)
    partial = folder / f".{PICTURE_FILE}.{os.getpid()}"
    try:
        figure.savefig(partial, format="png", dpi=120)
        os.replace(partial, folder / PICTURE_FILE)
    finally:
        partial.unlink(missing_ok=True)
    return None


def _draw_curves(
    axes: "Axes", report: dict[str, Any], curves: list[dict[str, float]]
) -> None:
    styles: dict[str, dict[str, Any]] = {
        "loss": {"label": "training", "color": "C0", "alpha": 0.5},
        "val_loss": {"label": "validation", "color": "C1", "marker": "o", "ms": 4},
        "open_loss": {
            "label": "validation, length open",
            "color": "C3",
            "marker": "o",
            "ms": 4,
        },
    }
    for key, style in styles.items():
        known = [c for c in curves if c.get(key) is not None]
        if known:
            steps, losses = zip(*((c["step"], c[key]) for c in known), strict=True)
            axes.plot(steps, losses, **style)
    for key, label, line in (
        ("tokens", "one Gamma for each token, length open", "--"),
        ("marginal", "one Gamma for all, length open", ":"),
    ):
        if report["open_losses"][key] is not None:
            axes.axhline(report["open_losses"][key], color="0.4", ls=line, label=label)
    axes.set(title="Learning curves", xlabel="step", ylabel="loss (nats)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _draw_medians(axes: "Axes", report: dict[str, Any]) -> None:
    _scatter(axes, report, report["points"]["positions"])
    means = [(d["mean_length"], d["mean_median"]) for d in report["deciles"]]
    axes.plot(
        *_within_chart(report, means),
        "o-",
        color="C3",
        label="means by decile of the prediction",
    )
    axes.set(title="Positions where the length is open")
    axes.legend(loc="upper left")


def _draw_first_tokens(axes: "Axes", report: dict[str, Any]) -> None:
    _scatter(axes, report, report["points"]["first_tokens"])
    found = report["rank_correlations"]["predictor"]
    text = "unknown" if found["value"] is None else f"{found['value']:.2f}"
    if found["low"] is not None:
        text += f", {found['low']:.2f} to {found['high']:.2f}"
    axes.set(title=f"At the first thinking token\n(rank correlation {text})")
    axes.legend(loc="upper left")


def _draw_calibration(axes: "Axes", report: dict[str, Any]) -> None:
    known = [c for c in report["calibration"] if c["share"] is not None]
    quantiles = [c["quantile"] for c in known]
    shares = [c["share"] for c in known]
    axes.plot([0, 1], [0, 1], color="0.4", ls="--", label="perfect")
    axes.plot(quantiles, shares, "o-", color="C0", label="predictor")
    axes.set(
        title="Calibration where the length is open",
        xlabel="predicted quantile",
        ylabel="share of true lengths at or below it",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(loc="upper left")


def _scatter(axes: "Axes", report: dict[str, Any], points: list[list]) -> None:
    limits = _limits(report)
    axes.plot(limits, limits, color="0.4", ls="--", label="perfect")
    x, y = _within_chart(report, points)
    axes.scatter(x, y, s=8, color="C0", alpha=0.35, lw=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=limits,
        ylim=limits,
        xlabel="true thinking tokens left",
        ylabel="predicted median",
    )


def _limits(report: dict[str, Any]) -> tuple[float, float]:
    """Ends of both axes in tokens: true lengths, and room for errors of 2 to 1."""
    lengths = [length for points in report["points"].values() for length, _ in points]
    if not lengths:
        return _NOWHERE
    return min(lengths) / 2, max(lengths) * 2


def _within_chart(report: dict[str, Any], points: list) -> np.ndarray:
    """Coordinates of points, shape (2, m); what is off the chart is on its edge."""
    pairs = np.array([p for p in points if None not in p], np.float64).reshape(-1, 2)
    return np.clip(pairs, *_limits(report)).T
