"""Learning-rate schedules: numbers by hand, and what an optimizer makes of them."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from mlx_budget.train.options import TrainOptions
from mlx_budget.train.schedules import SCHEDULES, make_schedule

FALLING = [name for name in SCHEDULES if name != "constant"]


def rates(name: str, *arguments: float, **options: float) -> np.ndarray:
    """The learning rate at each step of a run with learning rate 0.8."""
    schedule = make_schedule(name, 0.8, *arguments, **options)
    return np.array([schedule(step).item() for step in range(arguments[0])])


@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        ("constant", {}, [0.8, 0.8, 0.8, 0.8]),
        ("linear", {}, [0.8, 0.6, 0.4, 0.2]),
        # (1 + cos(pi / 4)) / 2 = 0.85355
        ("cosine", {}, [0.8, 0.8 * 0.853553, 0.4, 0.8 * 0.146447]),
        # 3/4 : 7/8, 1/2 : 3/4, 1/4 : 5/8
        ("rex", {}, [0.8, 0.8 * 6 / 7, 0.8 * 2 / 3, 0.8 * 2 / 5]),
        # At half time c = 1: 2 / (2 phi + 2 - phi).
        ("uba", {"phi": 1}, [0.8, 0.8 * 0.920991, 0.8 * 2 / 3, 0.8 * 0.255479]),
        ("uba", {"phi": 0.5}, [0.8, 0.8 * 0.958871, 0.8 * 0.8, 0.8 * 0.406983]),
        ("uba", {"phi": 4}, [0.8, 0.8 * 0.744521, 0.8 / 3, 0.8 * 0.0790086]),
    ],
)
def test_schedules_of_four_steps_by_hand(
    name: str, options: dict[str, float], want: list[float]
) -> None:
    assert rates(name, 4, **options) == pytest.approx(np.array(want), rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("phi", [0.1, 0.5, 2, 5])
def test_formulas_of_the_papers(name: str, phi: float) -> None:
    z = np.arange(100) / 100
    c = 1 + np.cos(np.pi * z)
    want = {
        "constant": np.ones(100),
        "linear": 1 - z,
        "cosine": c / 2,
        "rex": (1 - z) / (1 / 2 + (1 - z) / 2),
        "uba": 2 * c / (2 * phi + (2 - phi) * c),
    }[name]
    assert rates(name, 100, phi=phi) == pytest.approx(0.8 * want, rel=1e-5)


def test_uba_at_phi_2_is_the_cosine() -> None:
    got = rates("uba", 50, 7, phi=2)
    assert got == pytest.approx(rates("cosine", 50, 7), rel=1e-6)


def test_a_small_phi_keeps_the_learning_rate_high_for_longer() -> None:
    early, cosine, late = (rates("uba", 50, phi=phi) for phi in (5, 2, 0.5))
    assert np.all(early[1:] < cosine[1:]) and np.all(cosine[1:] < late[1:])


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_is_a_straight_line_to_the_peak(name: str) -> None:
    got = rates(name, 12, 4)
    # 4 steps of warm-up, then the peak.
    want = np.array([0.16, 0.32, 0.48, 0.64, 0.8])
    assert got[:5] == pytest.approx(want, rel=1e-6)
    assert got[4:] == pytest.approx(rates(name, 8), rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_every_step_of_a_run_learns(name: str, warmup: int) -> None:
    for steps in (31, 32, 1000):
        got = rates(name, steps, warmup)
        assert np.all(got > 0) and np.all(got <= np.float32(0.8))
        assert got[warmup] == np.float32(0.8)


@pytest.mark.parametrize("name", FALLING)
@pytest.mark.parametrize("phi", [0.5, 1, 5])
def test_schedules_fall_to_near_0(name: str, phi: float) -> None:
    got = rates(name, 1000, 100, phi=phi)
    assert np.all(np.diff(got[:101]) > 0)
    assert np.all(np.diff(got[100:]) <= 0)
    assert got[-1] < 0.003 * 0.8


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_is_learnt_past_the_last_step(name: str) -> None:
    schedule = make_schedule(name, 0.8, 10, 3)
    want = np.float32(0.8) if name == "constant" else 0
    assert [schedule(step).item() for step in (10, 11, 10_000)] == [want] * 3


@pytest.mark.parametrize("dtype", [mx.uint64, mx.int32, mx.float32])
def test_steps_may_be_arrays_of_any_number_type(dtype: mx.Dtype) -> None:
    schedule = make_schedule("linear", 0.8, 4, 2)
    got = [schedule(mx.array(step, dtype)) for step in range(5)]
    assert {rate.dtype for rate in got} == {mx.float32}
    want = [0.8 / 3, 1.6 / 3, 0.8, 0.4, 0]
    assert [rate.item() for rate in got] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("compiled", [False, True])
def test_an_optimizer_follows_the_schedule(name: str, compiled: bool) -> None:
    optimizer = optim.AdamW(make_schedule(name, 0.1, 6, 2), weight_decay=0)
    model = nn.Linear(1, 1, bias=False)
    model.weight = mx.array([[10.0]])
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def update() -> None:
        optimizer.update(model, {"weight": mx.array([[1.0]])})

    if compiled:
        update = mx.compile(update, inputs=state, outputs=state)
    seen, moved = [], []
    for _ in range(6):
        before = model.weight.item()
        update()
        mx.eval(state)
        seen.append(optimizer.learning_rate.item())
        moved.append(before - model.weight.item())
    want = rates(name, 6, 2) / 8
    assert seen == pytest.approx(want, rel=1e-6)
    # Without its bias correction, Adam moves by (1 - 0.9^t) / sqrt(1 - 0.999^t) times
    # the learning rate where the gradient is always 1. Weights of 10 have a last place
    # of 1e-6.
    t = np.arange(1, 7)
    share = (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
    assert moved == pytest.approx(want * share, rel=1e-4, abs=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("cosin", 0.1, 10),
            "The schedule must be one of constant, linear, cosine, rex, uba, not "
            "'cosin'.",
        ),
        (("rex", 0, 10), "The learning rate must be a number above 0, not 0."),
        (("rex", -0.1, 10), "The learning rate must be a number above 0, not -0.1."),
        (("rex", math.nan, 9), "The learning rate must be a number above 0, not nan."),
        (("rex", math.inf, 9), "The learning rate must be a number above 0, not inf."),
        (("rex", "1", 10), "The learning rate must be a number above 0, not '1'."),
        (("rex", True, 10), "The learning rate must be a number above 0, not True."),
        (("rex", 0.1, 0), "The steps must be an integer >= 1, not 0."),
        (("rex", 0.1, 9.5), "The steps must be an integer >= 1, not 9.5."),
        (
            ("rex", 0.1, 10, 10),
            "The warm-up must be an integer >= 0 and below the 10 steps of the run, "
            "not 10.",
        ),
        (
            ("rex", 0.1, 10, -1),
            "The warm-up must be an integer >= 0 and below the 10 steps of the run, "
            "not -1.",
        ),
        (("uba", 0.1, 10, 0, 0), "The phi of uba must be a number above 0, not 0."),
        (("uba", 0.1, 10, 0, -2), "The phi of uba must be a number above 0, not -2."),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError) as e:
        make_schedule(*arguments)
    assert str(e.value) == message


@pytest.mark.parametrize(
    "sizes, rate",
    [
        ({"size": "tiny"}, 2e-4),
        ({"size": "mini"}, 2e-4),
        ({"size": "small"}, 1e-4),
        ({"size": "base"}, 2e-4 / 9),
        ({"size": "tiny", "width": 1024, "layers": 4}, 5e-5),
        ({"size": "base", "learning_rate": 1e-3}, 1e-3),
    ],
)
def test_a_larger_encoder_has_a_smaller_rate_by_default(sizes, rate) -> None:
    options = TrainOptions("demo", "traces.jsonl", "out", **sizes)
    assert options.learning_rate == pytest.approx(rate)


def test_what_has_no_updates_has_no_rate() -> None:
    assert (
        TrainOptions("demo", "traces.jsonl", "out", size="table").learning_rate is None
    )
