"""Chat records to train on, runs that are stopped, and what they made compared."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_budget import Predictor
from mlx_budget.train import Progress
from mlx_budget.train.options import OF_UPDATES, TrainOptions

COUNT, STEPS = 24, 12
# Options of a run that makes a predictor at once, if not a good one.
ONE = {"steps": 1, "learning_rate": 2e-3, "keep": "last"}


# What turns the options of an encoder into those of a table or a linear predictor.
WITHOUT_UPDATES = {
    field.name: field.default
    for field in fields(TrainOptions)
    if field.name in ("width", "layers", "heads", "intermediate", *OF_UPDATES)
}


def sum_chat(a: int, b: int) -> dict:
    """A sum, with as many lines of thinking as its first number says."""
    thinking = f"{a} + {b} = {a + b}.\n" * a
    reply = f"<think>\n{thinking}</think>\nThe answer is {a + b}."
    return {
        "messages": [
            {"role": "user", "content": f"What is {a} + {b}?"},
            {"role": "assistant", "content": reply},
        ]
    }


def sum_chats(count: int = COUNT) -> list[dict]:
    return [sum_chat(1 + i % 5, 2 + i) for i in range(count)]


def write_chats(file: Path, chats: list[dict]) -> Path:
    file.write_text("".join(json.dumps(c) + "\n" for c in chats), encoding="utf-8")
    return file


class Stopped(Exception):
    pass


def stop_at(stage: str, done: int, error: type[BaseException] = Stopped):
    """A progress callback at which a run ends."""

    def progress(now: Progress) -> None:
        if (now.stage, now.done) == (stage, done):
            raise error

    return progress


def weights(folder: Path) -> dict[str, np.ndarray]:
    parameters = tree_flatten(Predictor.load(folder).parameters())
    return {name: np.array(value) for name, value in parameters}


def curves(folder: Path) -> list[dict]:
    lines = (folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Of a report: what is nested or may be unknown, and the sentence on it.
_NOT_COMPARED = {
    "points",
    "deciles",
    "calibration",
    "marginal",
    "rank_correlations",
    "gain",
    "is_worth_using",
    "verdict",
}


def assert_same_run(ours: Path, theirs: Path) -> None:
    """The same weights, losses and report, to the rounding of float32 sums."""
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5, err_msg=name)
    for one, other in zip(curves(ours), curves(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    one, other = (
        json.loads((folder / "report.json").read_text()) for folder in (ours, theirs)
    )
    assert one.keys() == other.keys()
    for name in one.keys() - _NOT_COMPARED:
        assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    assert not list(ours.rglob("*.incomplete"))
