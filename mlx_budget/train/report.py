"""What to read after training: how well a predictor foretells thinking lengths.

Knows predicted Gamma distributions and the lengths that came; nothing of models,
training or where the predictions are from. n is the number of validation positions.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from ..files.texts import write_text
from ..method import gamma
from ..method.correlation import rank_correlation
from ..method.guidance import length_to_log, log_to_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What JSON holds: what `make_report` finds, and the losses after one update.
Report = dict[str, Any]
Losses = dict[str, float]

REPORT_FILE = "report.json"
PICTURE_FILE = "report.png"
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MAX_CONCENTRATION = 1e4
MAX_POINTS = 500
NO_PICTURE = (
    f"{PICTURE_FILE} was not drawn, since matplotlib is not installed: "
    '`pip install "mlx-budget[train]"`.'
)

# Positions at a time whose quantiles are searched for, to bound the memory.
_BLOCK = 1 << 16
_SHIFT = 10


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a predictor said at the validation positions, and the lengths that came.

    Attributes:
        concentration: Of the Gamma distribution of log(L + 1) for the token that came
            next, shape (n,).
        rate: Of the same distribution, shape (n,).
        lengths: The true L in tokens, integers >= 1, shape (n,).
        is_first: Whether that token is the first of its reply's thinking, booleans,
            shape (n,).
        train_lengths: L at the training positions, any number of them, for the baseline
            that knows no hidden states.
    """

    concentration: np.ndarray
    rate: np.ndarray
    lengths: np.ndarray
    is_first: np.ndarray
    train_lengths: np.ndarray

    def __post_init__(self) -> None:
        for name in ("lengths", "train_lengths"):
            values = getattr(self, name)
            if values.ndim != 1 or not values.size:
                raise ValueError(
                    f"{name} must be an array of one length or more, not of shape "
                    f"{values.shape}: record more replies."
                )
            if values.min() < 1:
                raise ValueError(f"{name} must be >= 1 token, not {values.min()}.")
        for name in ("concentration", "rate", "is_first"):
            shape = getattr(self, name).shape
            if shape != self.lengths.shape:
                raise ValueError(
                    f"{name} must have a value for each of the lengths, shape "
                    f"{self.lengths.shape}, not {shape}."
                )


def fit_gamma(log_lengths: np.ndarray) -> tuple[float, float]:
    """The Gamma distribution under which samples are likeliest.

    Solves log(a) - digamma(a) = log(mean x) - mean(log x) for the concentration a by
    Newton's method in 1/a (Minka, "Estimating a Gamma distribution", 2002).

    Args:
        log_lengths: Samples x = log(L + 1), > 0, one or more.

    Returns:
        tuple[float, float]: Concentration and rate. The concentration is at most
        `MAX_CONCENTRATION`, which equal samples have.

    Raises:
        ValueError: If there are no samples, or not all are above 0 and finite.
    """
    x = np.asarray(log_lengths, np.float64)
    if not x.size or not np.all((x > 0) & (x < np.inf)):
        raise ValueError("A Gamma distribution can be fitted to numbers above 0 alone.")
    mean = x.mean()
    spread = math.log(mean) - np.log(x).mean()
    if spread <= math.log(MAX_CONCENTRATION) - _digamma(MAX_CONCENTRATION):
        return MAX_CONCENTRATION, float(MAX_CONCENTRATION / mean)
    a = (3 - spread + math.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread)
    for _ in range(100):
        excess = math.log(a) - _digamma(a) - spread
        new = 1 / (1 / a + excess / (a * a * (1 / a - _trigamma(a))))
        converged = abs(new - a) <= 1e-12 * a
        a = new
        if converged:
            break
    return float(a), float(a / mean)


def make_report(predictions: Predictions, max_points: int = MAX_POINTS) -> Report:
    """Measures predictions against the lengths that came.

    All lengths are in tokens, the closing marker counted, all losses in nats. A number
    that is infinite or undefined is None.

    Args:
        predictions: At the validation positions.
        max_points: How many positions, and how many first tokens, are kept for the
            picture: a sample, the same at every call.

    Returns:
        dict: Of what JSON can hold:

        - positions, replies: how many there are; a reply counts by its first token.
        - val_loss: mean negative log-likelihood of log(L + 1).
        - marginal_loss: that of the one Gamma, the same at every position, that fits
          the training lengths best; its parameters are in marginal.
        - deciles: of the positions by true length, shortest first, each with the
          shortest and longest, their number n, the mean length, the mean predicted
          median, and its mean absolute error and mean error relative to the length.
        - calibration: for each of `QUANTILES` the share of true lengths at or below the
          predicted quantile; ideally the two are equal.
        - rank_correlation: of the predicted median at the first token with the length
          of the reply's thinking, or None: see `rank_correlation`.
        - points: pairs of true length and predicted median, of any positions and of
          first tokens.
    """
    p = predictions
    lengths = np.asarray(p.lengths, np.float64)
    first = np.asarray(p.is_first, bool)
    quantiles = _quantile_lengths(p.concentration, p.rate)
    medians = quantiles[QUANTILES.index(0.5)]
    marginal = fit_gamma(np.log1p(np.asarray(p.train_lengths, np.float64)))
    return {
        "positions": len(lengths),
        "replies": int(first.sum()),
        "val_loss": _number(_loss(p.lengths, p.concentration, p.rate)),
        "marginal_loss": _number(_loss(p.lengths, *marginal)),
        "marginal": {"concentration": marginal[0], "rate": marginal[1]},
        "deciles": _deciles(lengths, medians),
        "calibration": [
            {"quantile": q, "share": _number(np.mean(lengths <= x))}
            for q, x in zip(QUANTILES, quantiles, strict=True)
        ],
        "rank_correlation": rank_correlation(medians[first], lengths[first]),
        "points": {
            "positions": _points(lengths, medians, max_points),
            "first_tokens": _points(lengths[first], medians[first], max_points),
        },
    }


def format_report(report: Report) -> str:
    """A few plain lines on what `make_report` found, for the terminal."""
    replies = "reply" if report["replies"] == 1 else "replies"
    quantiles = ", ".join(f"{100 * c['quantile']:g}" for c in report["calibration"])
    shares = ", ".join(_text(c["share"], ".0%") for c in report["calibration"])
    lines = [
        f"Validation: {report['positions']:,} positions of {report['replies']:,} "
        f"{replies}.",
        f"Loss: {_text(report['val_loss'], '.3f')} nats; one Gamma for all positions "
        f"has {_text(report['marginal_loss'], '.3f')}.",
        f"True lengths at or below the predicted {quantiles} % quantile: {shares}.",
        "Rank correlation at the first token: "
        f"{_text(report['rank_correlation'], '.2f')}.",
        "Predicted median by decile of the true length, in tokens:",
        f"{'true length':>17} {'mean':>9} {'predicted':>9} {'error':>9}",
    ]
    for d in report["deciles"]:
        span = f"{d['shortest']:,} to {d['longest']:,}"
        error = _text(d["mean_relative_error"], ".0%")
        lines.append(
            f"{span:>17} {_text(d['mean_length'], ',.0f'):>9} "
            f"{_text(d['mean_median'], ',.0f'):>9} {error:>9}"
        )
    return "\n".join(lines)


def write_report(
    report: Report, folder: str | Path, curves: list[Losses] | None = None
) -> str | None:
    """Writes `report.json` and, if matplotlib is installed, `report.png`.

    Each file appears whole or not at all.

    Args:
        report: From `make_report`, or read back from its file.
        folder: Made if it is not there.
        curves: Losses as training went on, in nats: dicts with a "step" and, each where
            it is known, a "loss" and a "val_loss".

    Returns:
        str: None, or a note for the user on why there is no picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_text(folder / REPORT_FILE, text)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return NO_PICTURE
    # A figure of its own, without pyplot, draws with Agg and needs no display.
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    _draw_curves(panels[0, 0], report, curves or [])
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


def _digamma(a: float) -> float:
    """Derivative of log Gamma at a > 0 (DLMF 5.11.2, carried down by 5.5.2)."""
    x = a + _SHIFT
    r = 1 / (x * x)
    series = r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r / 132))))
    return math.log(x) - 0.5 / x - series - sum(1 / (a + k) for k in range(_SHIFT))


def _trigamma(a: float) -> float:
    """Derivative of `_digamma`."""
    x = a + _SHIFT
    r = 1 / (x * x)
    series = r / x * (1 / 6 - r * (1 / 30 - r * (1 / 42 - r * (1 / 30 - r * 5 / 66))))
    return 1 / x + 0.5 * r + series + sum((a + k) ** -2 for k in range(_SHIFT))


def _quantile_lengths(concentration: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Predicted quantiles of L in tokens, float64, shape (quantiles, n)."""
    q = mx.array(QUANTILES)[:, None]
    blocks = []
    for i in range(0, len(rate), _BLOCK):
        a, r = (mx.array(v[i : i + _BLOCK]) for v in (concentration, rate))
        blocks.append(np.array(log_to_length(gamma.quantile(q, a, r))))
    return np.concatenate(blocks, axis=1).astype(np.float64)


def _loss(
    lengths: np.ndarray, concentration: np.ndarray | float, rate: np.ndarray | float
) -> float:
    """Mean negative log-likelihood of log(L + 1), in nats."""
    x = length_to_log(mx.array(lengths))
    logs = gamma.log_pdf(x, mx.array(concentration), mx.array(rate))
    return -np.array(logs).astype(np.float64).mean()


def _deciles(lengths: np.ndarray, medians: np.ndarray) -> list[dict[str, Any]]:
    order = np.argsort(lengths, kind="stable")
    deciles = []
    for part in np.array_split(order, min(10, len(order))):
        true, median = lengths[part], medians[part]
        error = np.abs(median - true)
        deciles.append(
            {
                "shortest": int(true[0]),
                "longest": int(true[-1]),
                "n": len(part),
                "mean_length": _number(true.mean()),
                "mean_median": _number(median.mean()),
                "mean_absolute_error": _number(error.mean()),
                "mean_relative_error": _number((error / true).mean()),
            }
        )
    return deciles


def _points(lengths: np.ndarray, medians: np.ndarray, count: int) -> list[list]:
    rng = np.random.default_rng(0)
    some = rng.choice(len(lengths), min(count, len(lengths)), replace=False)
    # Four digits are more than a picture shows.
    return [[int(lengths[i]), _number(f"{medians[i]:.4g}")] for i in np.sort(some)]


def _number(value: float | str) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _text(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _draw_curves(axes: "Axes", report: Report, curves: list[Losses]) -> None:
    styles: dict[str, dict[str, Any]] = {
        "loss": {"label": "training", "color": "C0", "alpha": 0.6},
        "val_loss": {"label": "validation", "color": "C1", "marker": "o", "ms": 4},
    }
    for key, style in styles.items():
        known = [c for c in curves if c.get(key) is not None]
        if known:
            steps, losses = zip(*((c["step"], c[key]) for c in known), strict=True)
            axes.plot(steps, losses, **style)
    if report["marginal_loss"] is not None:
        axes.axhline(
            report["marginal_loss"], color="0.4", ls="--", label="one Gamma for all"
        )
    axes.set(title="Learning curves", xlabel="step", ylabel="loss (nats)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _draw_medians(axes: "Axes", report: Report) -> None:
    _scatter(axes, report, report["points"]["positions"])
    means = [(d["mean_length"], d["mean_median"]) for d in report["deciles"]]
    axes.plot(*_within_chart(report, means), "o-", color="C3", label="means of deciles")
    axes.set(title="All positions")
    axes.legend(loc="upper left")


def _draw_first_tokens(axes: "Axes", report: Report) -> None:
    _scatter(axes, report, report["points"]["first_tokens"])
    correlation = _text(report["rank_correlation"], ".2f")
    axes.set(title=f"At the first thinking token (rank correlation {correlation})")
    axes.legend(loc="upper left")


def _draw_calibration(axes: "Axes", report: Report) -> None:
    quantiles = [c["quantile"] for c in report["calibration"]]
    shares = [c["share"] for c in report["calibration"]]
    axes.plot([0, 1], [0, 1], color="0.4", ls="--", label="perfect")
    axes.plot(quantiles, shares, "o-", color="C0", label="predictor")
    axes.set(
        title="Calibration",
        xlabel="predicted quantile",
        ylabel="share of true lengths at or below it",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(loc="upper left")


def _scatter(axes: "Axes", report: Report, points: list[list]) -> None:
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


def _limits(report: Report) -> tuple[float, float]:
    """Ends of both axes in tokens: true lengths, and room for errors of 2 to 1."""
    deciles = report["deciles"]
    return deciles[0]["shortest"] / 2, deciles[-1]["longest"] * 2


def _within_chart(report: Report, points: list) -> np.ndarray:
    """Coordinates of points, shape (2, m); what is off the chart is on its edge."""
    pairs = np.array([p for p in points if None not in p], np.float64).reshape(-1, 2)
    return np.clip(pairs, *_limits(report)).T
