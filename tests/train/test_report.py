"""The report of a training run: its numbers by hand and by SciPy, and its files."""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from mlx_budget.train import report as module
from mlx_budget.train.report import (
    MAX_CONCENTRATION,
    Predictions,
    fit_gamma,
    format_report,
    make_report,
    write_report,
)


def predictions(
    concentration: np.ndarray | list[float],
    rate: np.ndarray | list[float],
    lengths: np.ndarray | list[int],
    is_first: np.ndarray | list[bool] | None = None,
    train_lengths: np.ndarray | list[int] = (5, 50, 500),
) -> Predictions:
    if is_first is None:
        is_first = np.zeros(len(lengths), bool)
    return Predictions(
        np.array(concentration, np.float32),
        np.array(rate, np.float32),
        np.array(lengths),
        np.array(is_first),
        np.array(train_lengths),
    )


def certain(medians: list[float], lengths: list[int], **others) -> Predictions:
    """Predictions whose distributions are narrow, within 1 % of ``medians``."""
    a = np.full(len(medians), 4e6)
    return predictions(a, a / np.log1p(medians), lengths, **others)


@pytest.fixture
def truth() -> Predictions:
    """3,000 lengths drawn from the very distributions that were predicted."""
    rng = np.random.default_rng(7)
    a = rng.uniform(100, 400, 3000)
    mean = rng.uniform(5, 8, 3000)
    x = rng.gamma(a, mean / a)
    lengths = np.round(np.expm1(x)).astype(int)
    is_first = np.arange(3000) % 30 == 0
    return predictions(a, a / mean, lengths, is_first, lengths[::2])


@pytest.mark.parametrize("concentration", [0.05, 0.7, 1, 4, 60, 3000])
def test_fit_gamma_is_the_maximum_likelihood_of_scipy(concentration: float) -> None:
    x = np.random.default_rng(1).gamma(concentration, 0.2, 2000)
    a, _, scale = stats.gamma.fit(x, floc=0)
    assert fit_gamma(x) == pytest.approx((a, 1 / scale), rel=1e-6)


def test_the_fit_of_two_samples_solves_the_equations_of_the_maximum() -> None:
    a, rate = fit_gamma(np.array([1.0, 3.0]))
    # The mean is 2, and the mean of the logs log(3) / 2.
    assert a / rate == pytest.approx(2, rel=1e-12)
    want = math.log(2) - math.log(3) / 2
    assert math.log(a) - special.digamma(a) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("x", [[3.0], [3.0] * 7, [3.0, 3.0 + 1e-12], [3.0, 3.01]])
def test_the_fit_of_equal_samples_is_narrow_but_finite(x: list[float]) -> None:
    a, rate = fit_gamma(np.array(x))
    assert a == MAX_CONCENTRATION
    assert a / rate == pytest.approx(3, rel=2e-3)


@pytest.mark.parametrize("x", [[], [1.0, 0.0], [1.0, -1.0], [math.nan], [math.inf]])
def test_what_no_gamma_gives_is_refused(x: list[float]) -> None:
    with pytest.raises(ValueError) as e:
        fit_gamma(np.array(x))
    assert str(e.value) == (
        "A Gamma distribution can be fitted to numbers above 0 alone."
    )


def test_digamma_and_trigamma_are_those_of_scipy() -> None:
    for a in np.geomspace(1e-6, 1e6, 97):
        assert module._digamma(a) == pytest.approx(special.digamma(a), rel=1e-12)
        assert module._trigamma(a) == pytest.approx(special.polygamma(1, a), rel=1e-12)


def test_true_distributions_are_calibrated(truth: Predictions) -> None:
    for c in make_report(truth)["calibration"]:
        q = c["quantile"]
        # Four standard deviations of a binomial share, and 0.002 for the rounding of
        # lengths of 100 and more to whole tokens.
        assert abs(c["share"] - q) < 4 * math.sqrt(q * (1 - q) / 3000) + 0.002


def test_true_distributions_beat_the_marginal_one(truth: Predictions) -> None:
    report = make_report(truth)
    assert report["positions"] == 3000 and report["replies"] == 100
    x = np.log1p(truth.lengths)
    a, rate = truth.concentration.astype(float), truth.rate.astype(float)
    want = -stats.gamma.logpdf(x, a, scale=1 / rate).mean()
    assert report["val_loss"] == pytest.approx(want, rel=1e-5)
    a, _, scale = stats.gamma.fit(np.log1p(truth.train_lengths), floc=0)
    want = -stats.gamma.logpdf(x, a, scale=scale).mean()
    assert report["marginal_loss"] == pytest.approx(want, rel=1e-5)
    assert report["marginal"] == pytest.approx(
        {"concentration": a, "rate": 1 / scale}, rel=1e-5
    )
    assert report["val_loss"] < report["marginal_loss"] - 0.3
    assert report["rank_correlation"] > 0.8


def test_wrong_distributions_are_not_calibrated(truth: Predictions) -> None:
    wrong = predictions(
        truth.concentration, truth.rate * 0.9, truth.lengths, truth.is_first
    )
    shares = [c["share"] for c in make_report(wrong)["calibration"]]
    # Predicted to be 11 % longer in log(L + 1), one to two standard deviations.
    assert shares[2] > 0.85


def test_loss_and_calibration_by_hand() -> None:
    # Gamma(1, rate) at x has density rate exp(-rate x); its quantiles are
    # -log(1 - q) / rate.
    report = make_report(predictions([1, 1], [0.5, 0.25], [1, 30]))
    x = [math.log(2), math.log(31)]
    want = (math.log(2) + 0.5 * x[0] + math.log(4) + 0.25 * x[1]) / 2
    assert report["val_loss"] == pytest.approx(want, rel=1e-6)
    # In log(L + 1): 0.21, 0.58, 1.4, ... against 0.69, and 0.42, 1.2, 2.8, 5.5, ...
    # against 3.4.
    shares = [c["share"] for c in report["calibration"]]
    assert shares == [0, 0, 0.5, 1, 1]


def test_deciles_by_hand() -> None:
    # Twelve positions in ten parts: two of two, then eight of one.
    lengths = [40, 10, 20, 30, 50, 60, 70, 80, 90, 100, 110, 120]
    medians = [50, 12, 18, 30, 50, 60, 70, 80, 90, 100, 110, 60]
    deciles = make_report(certain(medians, lengths))["deciles"]
    assert [d["n"] for d in deciles] == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    want = {
        "shortest": 10,
        "longest": 20,
        "n": 2,
        "mean_length": 15,
        "mean_median": 15,
        "mean_absolute_error": 2,
        "mean_relative_error": 0.15,
    }
    assert deciles[0] == pytest.approx(want, rel=1e-2)
    want = {
        "shortest": 30,
        "longest": 40,
        "n": 2,
        "mean_length": 35,
        "mean_median": 40,
        "mean_absolute_error": 5,
        "mean_relative_error": 0.125,
    }
    assert deciles[1] == pytest.approx(want, rel=1e-2)
    assert deciles[9]["mean_absolute_error"] == pytest.approx(60, rel=1e-2)
    assert deciles[9]["mean_relative_error"] == pytest.approx(0.5, rel=1e-2)


def test_fewer_positions_than_deciles_are_a_part_each() -> None:
    deciles = make_report(certain([5, 3, 9], [4, 2, 8]))["deciles"]
    assert [(d["shortest"], d["longest"]) for d in deciles] == [(2, 2), (4, 4), (8, 8)]


def test_only_first_tokens_make_the_rank_correlation() -> None:
    medians, lengths = [10, 20, 30, 90, 1], [11, 12, 13, 1, 90]
    is_first = [True, True, True, False, False]
    report = make_report(certain(medians, lengths, is_first=is_first))
    assert report["replies"] == 3
    assert report["rank_correlation"] == 1
    assert [p[0] for p in report["points"]["first_tokens"]] == [11, 12, 13]
    two = make_report(certain(medians, lengths, is_first=[True] * 2 + [False] * 3))
    assert two["rank_correlation"] is None


def test_quantiles_do_not_depend_on_the_blocks_they_are_found_in(
    truth: Predictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_report(truth)
    monkeypatch.setattr(module, "_BLOCK", 700)
    assert make_report(truth) == whole


def test_points_are_a_sample_that_stays_the_same(truth: Predictions) -> None:
    points = make_report(truth, max_points=50)["points"]
    assert len(points["positions"]) == len(points["first_tokens"]) == 50
    assert points == make_report(truth, max_points=50)["points"]
    assert {p[0] for p in points["first_tokens"]} <= set(
        truth.lengths[truth.is_first].tolist()
    )
    everything = make_report(truth, max_points=10_000)["points"]
    assert [p[0] for p in everything["positions"]] == truth.lengths.tolist()


def test_infinite_numbers_are_none_in_the_json(tmp_path: Path) -> None:
    # The median of log(L + 1) is near 400 and 0.
    strange = predictions([400, 0, 30], [1, 1e30, 10], [7, 8, 9])
    report = make_report(strange)
    assert report["rank_correlation"] is None
    assert report["deciles"][0]["mean_median"] is None
    assert report["points"]["positions"][0] == [7, None]
    write_report(report, tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == report
    assert "unknown" in format_report(report)


def test_report_survives_json(truth: Predictions, tmp_path: Path) -> None:
    report = make_report(truth)
    write_report(report, tmp_path / "new" / "folder")
    file = tmp_path / "new" / "folder" / "report.json"
    assert json.loads(file.read_text(encoding="utf-8")) == report


CURVES = [
    {"step": 0, "loss": 2.0, "val_loss": 2.1},
    {"step": 1, "loss": 1.5},
    {"step": 2, "loss": 1.2, "val_loss": None},
    {"step": 3, "loss": 1.1, "val_loss": 1.3},
]


@pytest.mark.parametrize("curves", [None, [], CURVES, [{"step": 1, "val_loss": 3.0}]])
def test_picture_is_a_png_of_sensible_size(
    curves: list[dict] | None, truth: Predictions, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    assert write_report(make_report(truth), tmp_path, curves) is None
    data = (tmp_path / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert 800 <= width <= 3000 and 600 <= height <= 3000
    assert 20_000 < len(data) < 1_000_000
    assert sorted(f.name for f in tmp_path.iterdir()) == ["report.json", "report.png"]


@pytest.mark.parametrize("n", [1, 2])
def test_picture_of_few_or_strange_predictions(n: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    strange = predictions([400, 0][:n], [1, 1e30][:n], [1, 1][:n])
    assert write_report(make_report(strange), tmp_path) is None
    assert (tmp_path / "report.png").exists()


def test_panels_show_losses_lengths_and_calibration(
    truth: Predictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    kind = pytest.importorskip("matplotlib.figure").Figure
    save = kind.savefig

    def keep(figure, *arguments, **options) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(kind, "savefig", keep)
    report = make_report(truth)
    write_report(report, tmp_path, CURVES)
    (figure,) = drawn
    losses, everywhere, calibration, first = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert lines["training"] == [[0, 2.0], [1, 1.5], [2, 1.2], [3, 1.1]]
    assert lines["validation"] == [[0, 2.1], [3, 1.3]]
    assert lines["one Gamma for all"][0][1] == report["marginal_loss"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in calibration.lines}
    assert lines["predictor"] == [
        [c["quantile"], c["share"]] for c in report["calibration"]
    ]
    for axes, points in (
        (everywhere, report["points"]["positions"]),
        (first, report["points"]["first_tokens"]),
    ):
        (scatter,) = axes.collections
        found = scatter.get_offsets()
        assert found.tolist() == np.clip(points, *axes.get_xlim()).tolist()
    title = f"(rank correlation {report['rank_correlation']:.2f})"
    assert first.get_title().endswith(title)
    assert all(axes.get_legend() for axes in figure.axes)


def test_picture_can_be_drawn_from_the_file(truth: Predictions, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_report(make_report(truth), tmp_path, CURVES)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    first = (tmp_path / "report.png").read_bytes()
    write_report(report, tmp_path, CURVES)
    assert (tmp_path / "report.png").read_bytes() == first


def test_a_picture_that_fails_leaves_the_old_one(
    truth: Predictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = pytest.importorskip("matplotlib.figure")

    def fill_the_disk(self, file: Path, **_) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    (tmp_path / "report.png").write_bytes(b"old")
    monkeypatch.setattr(figure.Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(make_report(truth), tmp_path)
    assert (tmp_path / "report.png").read_bytes() == b"old"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["report.json", "report.png"]


def test_without_matplotlib_there_is_a_note_and_no_picture(
    truth: Predictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    note = write_report(make_report(truth), tmp_path, CURVES)
    assert note == (
        "report.png was not drawn, since matplotlib is not installed: "
        '`pip install "mlx-budget[train]"`.'
    )
    assert [f.name for f in tmp_path.iterdir()] == ["report.json"]


def test_lines_for_the_terminal() -> None:
    medians, lengths = [9, 1500, 30], [10, 1200, 20]
    report = make_report(certain(medians, lengths, is_first=[True, False, False]))
    report |= {"val_loss": 0.71236, "marginal_loss": 1.5, "rank_correlation": None}
    assert format_report(report).splitlines() == [
        "Validation: 3 positions of 1 reply.",
        "Loss: 0.712 nats; one Gamma for all positions has 1.500.",
        "True lengths at or below the predicted 10, 25, 50, 75, 90 % quantile: 67%, "
        "67%, 67%, 67%, 67%.",
        "Rank correlation at the first token: unknown.",
        "Predicted median by decile of the true length, in tokens:",
        "      true length      mean predicted     error",
        "         10 to 10        10         9       10%",
        "         20 to 20        20        30       50%",
        "   1,200 to 1,200     1,200     1,500       25%",
    ]


def test_predictions_that_do_not_fit_each_other_are_refused() -> None:
    for bad, message in (
        (
            {"rate": [1.0]},
            "rate must have a value for each of the lengths, shape (2,), not (1,).",
        ),
        (
            {"is_first": [True] * 3},
            "is_first must have a value for each of the lengths, shape (2,), not (3,).",
        ),
        ({"lengths": [3, 0]}, "lengths must be >= 1 token, not 0."),
        ({"train_lengths": [-4, 2]}, "train_lengths must be >= 1 token, not -4."),
        (
            {"train_lengths": []},
            "train_lengths must be an array of one length or more, not of shape (0,): "
            "record more replies.",
        ),
        (
            {"lengths": [[1, 2]]},
            "lengths must be an array of one length or more, not of shape (1, 2): "
            "record more replies.",
        ),
    ):
        good = {"concentration": [1.0, 2.0], "rate": [1.0, 2.0], "lengths": [3, 4]}
        with pytest.raises(ValueError) as e:
            predictions(**{**good, **bad})
        assert str(e.value) == message
