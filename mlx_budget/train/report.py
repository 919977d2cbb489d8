"""What to read after training: how well a predictor foretells thinking lengths.

Knows predicted Gamma distributions and the lengths that came; nothing of models,
training or where the predictions are from. n is the number of validation positions.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..files.texts import write_text
from ..method import gamma
from ..method.correlation import rank_correlation, rank_correlation_interval
from ..method.guidance import length_to_log, log_to_length
from .baselines import fit_tokens
from .collapse import response
from .intervals import LEAST_GROUPS, Mean, grouped_mean
from .picture import draw_report

# What JSON holds: what `make_report` finds, and the losses after one update.
Report = dict[str, Any]
Losses = dict[str, float]

REPORT_FILE = "report.json"
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MAX_POINTS = 500

# Positions at a time whose quantiles are searched for, to bound the memory.
_BLOCK = 1 << 16
# What the rank correlations at the first token are of, in words.
_FORETELLERS = {
    "predictor": "predictor",
    "prompt_tokens": "tokens of the prompt",
    "prompt_digits": "digits in the prompt",
}


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a predictor said at the validation positions, and the lengths that came.

    Attributes:
        concentration: Of the Gamma distribution of log(L + 1) for the token that came
            next, shape (n,).
        rate: Of the same distribution, shape (n,).
        tokens: The token that came next, shape (n,).
        lengths: The true L in tokens, integers >= 1, shape (n,).
        is_first: Whether that token is the first of its reply's thinking, booleans,
            shape (n,).
        replies: A number for the reply of each position, shape (n,).
        train_tokens, train_lengths: At the training positions, any number of them, for
            the baselines that know no hidden states.
        prompts: What else foretells how long a reply thinks: numbers of its prompt by
            their name, "prompt_tokens" or "prompt_digits", each of shape (n,).
    """

    concentration: np.ndarray
    rate: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    is_first: np.ndarray
    replies: np.ndarray
    train_tokens: np.ndarray
    train_lengths: np.ndarray
    prompts: Mapping[str, np.ndarray] = field(default_factory=dict)

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
        arrays = {
            name: getattr(self, name)
            for name in ("concentration", "rate", "tokens", "is_first", "replies")
        }
        for name, values in {**arrays, **self.prompts}.items():
            if values.shape != self.lengths.shape:
                raise ValueError(
                    f"{name} must have a value for each of the lengths, shape "
                    f"{self.lengths.shape}, not {values.shape}."
                )
        if self.train_tokens.shape != self.train_lengths.shape:
            raise ValueError(
                "train_tokens must have a value for each of the train_lengths, shape "
                f"{self.train_lengths.shape}, not {self.train_tokens.shape}."
            )


def make_report(predictions: Predictions, max_points: int = MAX_POINTS) -> Report:
    """Measures predictions against the lengths that came.

    All lengths are in tokens, the closing marker counted, all losses in nats, means of
    the negative log-likelihood of log(L + 1), all intervals of 95 %. A number that is
    infinite or undefined is None. A position is open if the length is not settled by
    the token that came next, as that of the closing marker is (`TokenGammas`).

    Args:
        predictions: At the validation positions.
        max_points: How many positions, and how many first tokens, are kept for the
            picture: a sample, the same at every call.

    Returns:
        dict: Of what JSON can hold:

        - positions, replies: how many there are; a reply counts by its first token.
        - val_loss: loss at all positions, and marginal_loss that of the one Gamma, the
          same at every position, that fits the training lengths best; its parameters
          are in marginal.
        - open_positions: how many are open.
        - open_losses: at those, of the predictor, of one Gamma for each token, and of
          one for all (predictor, tokens, marginal), fitted to the training lengths.
        - gain: by how much the predictor's loss is below that of one Gamma for each
          token there: value, low and high of its interval, and groups, the replies
          that they are of. Where the weights were chosen by the same positions, it is
          a little too good.
        - response: see `collapse.response`, of the open positions.
        - deciles: of the open positions by predicted median, shortest first, each with
          the shortest and longest of these, their number n, their mean, the mean and
          the median length that came, and the mean absolute error, in tokens and
          relative to the length.
        - calibration: for each of `QUANTILES` the share of true lengths at or below the
          predicted quantile at the open positions; ideally the two are equal.
        - rank_correlations: with the length of a reply's thinking at its first token,
          of the predicted median (predictor), and of the numbers of the prompt: value,
          low, high and n each.
        - points: pairs of true length and predicted median, of any open positions and
          of first tokens.
        - is_worth_using: whether the gain is above 0, by its interval; None if that is
          not known.
        - verdict: the same in a sentence, with the reason.
    """
    p = predictions
    lengths = np.asarray(p.lengths, np.float64)
    first = np.asarray(p.is_first, bool)
    tokens = fit_tokens(p.train_tokens, p.train_lengths)
    is_open = tokens.is_open(p.tokens)
    losses = {
        "predictor": _losses(p.lengths, p.concentration, p.rate),
        "tokens": _losses(p.lengths, *tokens.at(p.tokens)),
        "marginal": _losses(p.lengths, *tokens.overall),
    }
    gain = Mean(math.nan, None, None, 0)
    if is_open.any():
        gain = grouped_mean(
            (losses["tokens"] - losses["predictor"])[is_open], p.replies[is_open]
        )
    quantiles = _quantile_lengths(p.concentration, p.rate)
    medians = quantiles[QUANTILES.index(0.5)]
    foretold = {"predictor": medians, **p.prompts}
    correlations = {
        name: _correlation(values[first], lengths[first])
        for name, values in foretold.items()
    }
    return {
        "positions": len(lengths),
        "replies": int(first.sum()),
        "val_loss": _number(losses["predictor"].mean()),
        "marginal_loss": _number(losses["marginal"].mean()),
        "marginal": dict(
            zip(("concentration", "rate"), map(float, tokens.overall), strict=True)
        ),
        "open_positions": int(is_open.sum()),
        "open_losses": {name: _mean(loss[is_open]) for name, loss in losses.items()},
        "gain": asdict(gain) | {"value": _number(gain.value)},
        "response": response(
            *(v[is_open] for v in (p.concentration, p.rate, p.tokens, p.lengths))
        ),
        "deciles": _deciles(lengths[is_open], medians[is_open]),
        "calibration": [
            {"quantile": q, "share": _mean((lengths <= x)[is_open])}
            for q, x in zip(QUANTILES, quantiles, strict=True)
        ],
        "rank_correlations": correlations,
        "points": {
            "positions": _points(lengths[is_open], medians[is_open], max_points),
            "first_tokens": _points(lengths[first], medians[first], max_points),
        },
        **_verdict(gain, correlations),
    }


def format_report(report: Report) -> str:
    """A few plain lines on what `make_report` found, for the terminal."""
    replies = _replies(report["replies"])
    losses = {k: _text(v, ".3f") for k, v in report["open_losses"].items()}
    quantiles = ", ".join(f"{100 * c['quantile']:g}" for c in report["calibration"])
    shares = ", ".join(_text(c["share"], ".0%") for c in report["calibration"])
    correlations = report["rank_correlations"].items()
    lines = [
        f"Validation: {report['positions']:,} positions of {replies}, loss "
        f"{_text(report['val_loss'], '.3f')} nats.",
        f"At {report['open_positions']:,} of them the next token leaves the length "
        f"open. Loss there: {losses['predictor']} nats; one Gamma for each token has "
        f"{losses['tokens']}, one for all {losses['marginal']}.",
        f"True lengths at or below the predicted {quantiles} % quantile: {shares}.",
        "Rank correlation with the length of a reply's thinking, at its first token:",
        *(f"{_FORETELLERS[name]:>22} {_in_words(c)}" for name, c in correlations),
        "Lengths by decile of the predicted median, in tokens:",
        f"{'predicted':>17} {'mean':>8} {'true mean':>10} {'median':>8} {'error':>8}",
    ]
    for d in report["deciles"]:
        span = f"{_text(d['shortest'], ',.0f')} to {_text(d['longest'], ',.0f')}"
        columns = (
            ("mean_median", 8, ",.0f"),
            ("mean_length", 10, ",.0f"),
            ("median_length", 8, ",.0f"),
            ("mean_relative_error", 8, ".0%"),
        )
        cells = (f"{_text(d[name], form):>{size}}" for name, size, form in columns)
        lines.append(f"{span:>17} {' '.join(cells)}")
    return "\n".join([*lines, report["verdict"]])


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
    return draw_report(report, folder, curves or [])


def _verdict(gain: Mean, correlations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether the predictor is worth using, and that in a sentence."""
    than = "one Gamma for each token"
    worth: bool | None = None
    if math.isnan(gain.value):
        text = (
            "Not known to be worth using: at no held-out position does the next token "
            "leave the length open"
        )
    elif math.isinf(gain.value):
        worth = False
        text = "Not worth using: it holds lengths that came for impossible"
    elif gain.low is None or gain.high is None:
        text = (
            f"Not known to be worth using: {_replies(gain.groups)} held out for "
            f"validation cannot tell whether it is better than {than} ({LEAST_GROUPS} "
            "can): give more records"
        )
    else:
        worth = gain.low > 0
        interval = (
            f"(95 % interval {gain.low:.2f} to {gain.high:.2f} nats, "
            f"{_replies(gain.groups)})"
        )
        if worth:
            text = (
                f"Worth using: it foretells held-out lengths better than {than}, by "
                f"{gain.value:.2f} nats {interval}"
            )
        else:
            how = "worse" if gain.high < 0 else "no better, as far as can be told,"
            text = (
                f"Not worth using: it foretells held-out lengths {how} than {than}, by "
                f"{gain.value:.2f} nats {interval}: give more records, or a smaller "
                "--size"
            )
    return {"is_worth_using": worth, "verdict": f"{text}{_as_well(correlations)}."}


def _as_well(correlations: dict[str, dict[str, Any]]) -> str:
    """What of the prompt foretells the thinking of a reply as well, in words."""
    ours = correlations["predictor"]["value"]
    others = {
        name: c["value"]
        for name, c in correlations.items()
        if name != "predictor" and c["value"] is not None
    }
    if not others or ours is None:
        return ""
    best = max(others, key=lambda name: abs(others[name]))
    if abs(others[best]) < abs(ours):
        return ""
    return (
        f"; the {_FORETELLERS[best]} foretell as well how long a whole reply thinks "
        f"(rank correlation {others[best]:.2f}, the predictor's is {ours:.2f})"
    )


def _correlation(values: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    found = rank_correlation(values, lengths)
    low, high = rank_correlation_interval(found, len(lengths)) or (None, None)
    return {"value": found, "low": low, "high": high, "n": len(lengths)}


def _in_words(c: dict[str, Any]) -> str:
    if c["low"] is None:
        return f"{_text(c['value'], '.2f')} ({_replies(c['n'])}, interval unknown)"
    return (
        f"{c['value']:.2f} (95 % interval {c['low']:.2f} to {c['high']:.2f}, "
        f"{_replies(c['n'])})"
    )


def _quantile_lengths(concentration: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Predicted quantiles of L in tokens, float64, shape (quantiles, n)."""
    q = mx.array(QUANTILES)[:, None]
    blocks = []
    for i in range(0, len(rate), _BLOCK):
        a, r = (mx.array(v[i : i + _BLOCK]) for v in (concentration, rate))
        blocks.append(np.array(log_to_length(gamma.quantile(q, a, r))))
    return np.concatenate(blocks, axis=1).astype(np.float64)


def _losses(
    lengths: np.ndarray, concentration: np.ndarray | float, rate: np.ndarray | float
) -> np.ndarray:
    """Negative log-likelihood of log(L + 1), in nats, shape (n,)."""
    x = length_to_log(mx.array(lengths))
    a, r = (mx.array(np.float32(v)) for v in (concentration, rate))
    return -np.array(gamma.log_pdf(x, a, r)).astype(np.float64)


def _deciles(lengths: np.ndarray, medians: np.ndarray) -> list[dict[str, Any]]:
    order = np.argsort(medians, kind="stable")
    deciles = []
    for part in np.array_split(order, min(10, len(order))) if len(order) else []:
        true, median = lengths[part], medians[part]
        error = np.abs(median - true)
        deciles.append(
            {
                "shortest": _number(median[0]),
                "longest": _number(median[-1]),
                "n": len(part),
                "mean_median": _number(median.mean()),
                "mean_length": _number(true.mean()),
                "median_length": _number(np.median(true)),
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


def _mean(values: np.ndarray) -> float | None:
    return _number(values.mean()) if len(values) else None


def _number(value: float | str) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _text(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _replies(count: int) -> str:
    return f"{count:,} {'reply' if count == 1 else 'replies'}"
