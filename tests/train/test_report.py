"""The report of a training run: its numbers by hand and by SciPy, and its files."""

import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mlx_budget.installing import install_command
from mlx_budget.train import report as module
from mlx_budget.train.baselines import fit_gamma
from mlx_budget.train.report import (
    Predictions,
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
    **others: np.ndarray | list[int],
) -> Predictions:
    """Of one token and a reply for each position, unless said otherwise."""
    if is_first is None:
        is_first = np.zeros(len(lengths), bool)
    prompts = {k: np.array(v) for k, v in others.pop("prompts", {}).items()}
    values = {
        "concentration": np.array(concentration, np.float32),
        "rate": np.array(rate, np.float32),
        "tokens": np.zeros(len(lengths), int),
        "lengths": np.array(lengths),
        "is_first": np.array(is_first),
        "replies": np.arange(len(lengths)),
        "train_tokens": np.zeros(len(train_lengths), int),
        "train_lengths": np.array(train_lengths),
    }
    others = {name: np.array(value) for name, value in others.items()}
    return Predictions(**{**values, **others}, prompts=prompts)


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
    assert report["rank_correlations"]["predictor"]["value"] > 0.8


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


def test_deciles_of_the_predictions_by_hand() -> None:
    # Twelve positions in ten parts: two of two, then eight of one.
    medians = [50, 12, 18, 30, 50, 60, 70, 80, 90, 100, 110, 62]
    lengths = [40, 10, 30, 20, 50, 60, 70, 80, 90, 100, 110, 124]
    deciles = make_report(certain(medians, lengths))["deciles"]
    assert [d["n"] for d in deciles] == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    want = {
        "shortest": 12,
        "longest": 18,
        "n": 2,
        "mean_median": 15,
        "mean_length": 20,
        "median_length": 20,
        "mean_absolute_error": 7,
        "mean_relative_error": (2 / 10 + 12 / 30) / 2,
    }
    assert deciles[0] == pytest.approx(want, rel=1e-2)
    assert deciles[4]["mean_median"] == pytest.approx(62, rel=1e-2)
    assert deciles[4]["mean_absolute_error"] == pytest.approx(62, rel=1e-2)
    assert deciles[4]["mean_relative_error"] == pytest.approx(0.5, rel=1e-2)


def test_fewer_positions_than_deciles_are_a_part_each() -> None:
    deciles = make_report(certain([5, 3, 9], [4, 2, 8]))["deciles"]
    assert [d["mean_length"] for d in deciles] == [2, 4, 8]


# What comes after token 1 is settled, what comes after 2 is not.
TRAINED = {
    "train_tokens": [1] * 10 + [2] * 12,
    "train_lengths": [5] * 10 + [20, 40, 80] * 4,
}


def test_settled_positions_count_for_the_loss_of_all_and_for_nothing_else() -> None:
    # Right at the settled positions, and far too long at the others.
    tokens, lengths = [1, 1, 1, 2, 2], [5, 5, 5, 20, 40]
    medians = [5, 5, 5, 200, 400]
    report = make_report(certain(medians, lengths, tokens=tokens, **TRAINED))
    assert (report["positions"], report["open_positions"]) == (5, 2)
    assert {c["share"] for c in report["calibration"]} == {1}
    assert sum(d["n"] for d in report["deciles"]) == 2
    assert [p[0] for p in report["points"]["positions"]] == [20, 40]
    losses = report["open_losses"]
    assert losses["predictor"] > 100 > report["gain"]["groups"] == 2


def test_losses_of_the_baselines_at_open_positions_are_those_of_scipy() -> None:
    tokens, lengths = [1, 2, 2, 9], [5, 20, 60, 30]
    report = make_report(
        predictions([9] * 4, [3] * 4, lengths, tokens=tokens, **TRAINED)
    )
    x = np.log1p(TRAINED["train_lengths"])
    own, overall = fit_gamma(x[10:]), fit_gamma(x)
    # Token 9 was never trained on.
    gammas = {"tokens": [own, own, overall], "marginal": [overall] * 3}
    for name, parameters in gammas.items():
        want = [
            -stats.gamma.logpdf(math.log1p(length), a, scale=1 / rate)
            for length, (a, rate) in zip(lengths[1:], parameters, strict=True)
        ]
        assert report["open_losses"][name] == pytest.approx(np.mean(want), rel=1e-5)
    gain = report["open_losses"]["tokens"] - report["open_losses"]["predictor"]
    assert report["gain"]["value"] == pytest.approx(gain, rel=1e-4)


def of_replies(count: int, shift: float, noise: float = 0.3) -> Predictions:
    """Replies with three positions each, whose lengths a predictor tells.

    Its distributions are right but for ``shift``, of their means of log(L + 1).
    """
    rng = np.random.default_rng(5)
    mean = np.repeat(rng.uniform(3, 6, count), 3)
    a = (mean / noise) ** 2
    lengths = np.round(np.expm1(rng.gamma(a, mean / a))).astype(int).clip(1)
    return predictions(
        a,
        a / (mean + shift),
        lengths,
        is_first=np.arange(3 * count) % 3 == 0,
        replies=np.repeat(np.arange(count), 3),
        train_lengths=np.expm1(rng.uniform(3, 6, 200)).astype(int),
    )


def test_a_predictor_that_sees_more_than_tokens_is_worth_using() -> None:
    report = make_report(of_replies(40, shift=0.0))
    assert report["is_worth_using"] is True
    gain = report["gain"]
    assert 0 < gain["low"] < gain["value"] < gain["high"] and gain["groups"] == 40
    assert report["verdict"] == (
        "Worth using: it foretells held-out lengths better than one Gamma for each "
        f"token, by {gain['value']:.2f} nats (95 % interval {gain['low']:.2f} to "
        f"{gain['high']:.2f} nats, 40 replies)."
    )
    assert format_report(report).endswith("\n" + report["verdict"])


def test_a_predictor_that_says_what_tokens_say_is_not_worth_using() -> None:
    good = of_replies(40, shift=0.0)
    a, rate = fit_gamma(np.log1p(good.train_lengths))
    same = replace(
        good,
        concentration=np.full(120, a, np.float32),
        rate=np.full(120, rate, np.float32),
    )
    report = make_report(same)
    assert report["gain"]["value"] == pytest.approx(0, abs=1e-5)
    assert report["response"] < 1e-6
    assert report["is_worth_using"] is False
    assert "no better, as far as can be told, than" in report["verdict"]
    assert report["verdict"].endswith("give more records, or a smaller --size.")


def test_a_predictor_that_misleads_is_worse_than_tokens() -> None:
    report = make_report(of_replies(40, shift=3.0))
    assert report["gain"]["high"] < 0
    assert report["is_worth_using"] is False
    assert "worse than one Gamma for each token" in report["verdict"]


def test_few_replies_tell_nothing() -> None:
    report = make_report(of_replies(9, shift=0.0))
    assert report["gain"]["low"] is report["is_worth_using"] is None
    assert report["verdict"] == (
        "Not known to be worth using: 9 replies held out for validation cannot tell "
        "whether it is better than one Gamma for each token (10 can): give more "
        "records."
    )


def test_impossible_and_settled_lengths_have_a_verdict_too() -> None:
    impossible = make_report(predictions([4e6] * 2, [1e3] * 2, [3, 4]))
    assert impossible["gain"]["value"] is None or impossible["gain"]["value"] < -1e3
    settled = make_report(certain([5, 5], [5, 5], tokens=[1, 1], **TRAINED))
    assert settled["open_losses"]["predictor"] is None
    assert settled["is_worth_using"] is None
    assert "leave the length open" in settled["verdict"]
    assert "unknown" in format_report(settled)


def test_what_the_prompt_tells_as_well_is_told() -> None:
    good = of_replies(40, shift=0.0)
    noise = np.random.default_rng(0).normal(0, 30, 120)
    prompts = {
        "prompt_tokens": good.lengths + noise,
        "prompt_digits": -good.lengths.astype(float),
    }
    report = make_report(replace(good, prompts=prompts))
    found = {k: c["value"] for k, c in report["rank_correlations"].items()}
    assert found["prompt_digits"] == -1
    assert 0.3 < found["prompt_tokens"] < 1 and 0.5 < found["predictor"] < 1
    assert report["verdict"].endswith(
        "; the digits in the prompt foretell as well how long a whole reply thinks "
        f"(rank correlation -1.00, the predictor's is {found['predictor']:.2f})."
    )
    del prompts["prompt_digits"]
    prompts["prompt_tokens"] = noise
    assert "as well" not in make_report(replace(good, prompts=prompts))["verdict"]


def test_only_first_tokens_make_the_rank_correlation() -> None:
    medians, lengths = [10, 20, 30, 90, 1], [11, 12, 13, 1, 90]
    is_first = [True, True, True, False, False]
    report = make_report(certain(medians, lengths, is_first=is_first))
    assert report["replies"] == 3
    assert report["rank_correlations"]["predictor"]["value"] == 1
    assert [p[0] for p in report["points"]["first_tokens"]] == [11, 12, 13]
    two = make_report(certain(medians, lengths, is_first=[True] * 2 + [False] * 3))
    assert two["rank_correlations"]["predictor"]["value"] is None


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
    assert report["rank_correlations"]["predictor"]["value"] is None
    assert None in [d["mean_median"] for d in report["deciles"]]
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
    {"step": 3, "loss": 1.1, "val_loss": 1.3, "open_loss": 1.4},
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
    assert lines["validation, length open"] == [[3, 1.4]]
    for name, key in (("each token", "tokens"), ("all", "marginal")):
        line = lines[f"one Gamma for {name}, length open"]
        assert line[0][1] == report["open_losses"][key]
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
    c = report["rank_correlations"]["predictor"]
    title = f"(rank correlation {c['value']:.2f}, {c['low']:.2f} to {c['high']:.2f})"
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
        f"`{install_command('train')}`."
    )
    assert [f.name for f in tmp_path.iterdir()] == ["report.json"]


def test_lines_for_the_terminal() -> None:
    medians, lengths = [9, 1500, 30, 5], [10, 1200, 20, 5]
    report = make_report(
        certain(
            medians,
            lengths,
            is_first=[True, False, False, False],
            tokens=[2, 2, 2, 1],
            prompts={"prompt_digits": [3, 4, 5, 5]},
            **TRAINED,
        )
    )
    losses = {"predictor": 0.71236, "tokens": 1.5, "marginal": 2.25}
    report |= {"val_loss": 0.5, "open_losses": losses, "verdict": "Good."}
    assert format_report(report).splitlines() == [
        "Validation: 4 positions of 1 reply, loss 0.500 nats.",
        "At 3 of them the next token leaves the length open. Loss there: 0.712 nats; "
        "one Gamma for each token has 1.500, one for all 2.250.",
        "True lengths at or below the predicted 10, 25, 50, 75, 90 % quantile: 67%, "
        "67%, 67%, 67%, 67%.",
        "Rank correlation with the length of a reply's thinking, at its first token:",
        "             predictor unknown (1 reply, interval unknown)",
        "  digits in the prompt unknown (1 reply, interval unknown)",
        "Lengths by decile of the predicted median, in tokens:",
        "        predicted     mean  true mean   median    error",
        "           9 to 9        9         10       10      10%",
        "         30 to 30       30         20       20      50%",
        "   1,500 to 1,500    1,500      1,200    1,200      25%",
        "Good.",
    ]
    known = {"value": 0.6, "low": 0.33, "high": 0.78, "n": 34}
    report["rank_correlations"] = {"predictor": known}
    line = "             predictor 0.60 (95 % interval 0.33 to 0.78, 34 replies)"
    assert line in format_report(report).splitlines()


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
        (
            {"prompts": {"prompt_digits": [1]}},
            "prompt_digits must have a value for each of the lengths, shape (2,), not "
            "(1,).",
        ),
        (
            {"train_tokens": [1]},
            "train_tokens must have a value for each of the train_lengths, shape (3,), "
            "not (1,).",
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
