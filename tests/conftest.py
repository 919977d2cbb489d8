"""Fixtures that several test files share: the golden checkpoint and its numbers."""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from conversions import REFERENCE, fixture_config, fixture_weights, write_folder
from mlx_budget import Predictor, convert, load
from mlx_budget.train import TrainOptions, train
from trainings import STEPS, sum_chats, write_chats

# The defaults that a developer has set are not those of the tests, nor of the commands
# that these start.
os.environ["MLX_BUDGET_CONFIG"] = os.devnull
# Where a device has TF32, with 10 bits of mantissa, MLX multiplies float32 in it unless
# it is told not to before its first product. The golden numbers are those of float32.
os.environ.setdefault("MLX_ENABLE_TF32", "0")


def pytest_collection_finish() -> None:
    """Leaves what is imported by now out of every garbage collection to come.

    It is never garbage, and to go through it takes a third of a second: each server of
    the tests would do so several times.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file in one process: what they share is made once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


class Golden(NamedTuple):
    """What an independent PyTorch implementation made of the golden checkpoint.

    Attributes:
        cases: Prompts, budgets, greedy guided tokens, guided steps, budgets left.
        arrays: alpha, lam, probs, logits and hidden of the first six guided steps of
            each case, under "<id of the case>.<name>".
    """

    cases: list[dict]
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, converted; do not write into it."""
    out = tmp_path_factory.mktemp("converted") / "bg-qwen2-tiny"
    return convert(str(REFERENCE), out, predictor_heads=4, dtype="float32")


@pytest.fixture(scope="session")
def loaded(converted: Path) -> tuple[nn.Module, TokenizerWrapper, Predictor]:
    """Model, tokenizer and predictor of ``converted``; leave them as they are."""
    return load(str(converted))


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The golden numbers."""
    cases = json.loads((REFERENCE / "golden.json").read_text(encoding="utf-8"))
    with np.load(REFERENCE / "golden.npz") as arrays:
        return Golden(cases, dict(arrays))


@pytest.fixture(scope="session")
def cases(golden: Golden) -> dict[str, dict]:
    """The golden cases by their ids."""
    return {case["id"]: case for case in golden.cases}


@pytest.fixture(scope="session")
def golden_steps(golden: Golden) -> dict[str, np.ndarray]:
    """The 72 golden steps as rows: the arrays of every case, and "remaining"."""
    steps = {
        name: np.concatenate([golden.arrays[f"{c['id']}.{name}"] for c in golden.cases])
        for name in ("alpha", "lam", "probs", "logits", "hidden")
    }
    left = [b for c in golden.cases for b in c["remaining"][:6]]
    return {**steps, "remaining": np.array(left, np.float32)[:, None]}


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the fixture, to be spoilt."""
    return write_folder(tmp_path / "copy", fixture_config(), fixture_weights())


@pytest.fixture
def out(tmp_path) -> Path:
    """Where the output shall appear: two folders that are not there yet."""
    return tmp_path / "new" / "out"


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chat records of some sums; do not write into it."""
    return write_chats(tmp_path_factory.mktemp("chats") / "chats.jsonl", sum_chats())


@pytest.fixture(scope="session")
def training(converted: Path, sums: Path) -> dict:
    """Options of a short run on them, all but the output."""
    return {
        "model": str(converted),
        "data": str(sums),
        "size": "tiny",
        "width": 32,
        "layers": 1,
        "intermediate": 64,
        "steps": STEPS,
        "val_fraction": 0.3,
        "eval_every": 4,
        "save_every": 4,
    }


@pytest.fixture
def make_options(training: dict, tmp_path: Path) -> Callable[..., TrainOptions]:
    """Options of a short run, changed as the arguments say."""

    def make(**changes) -> TrainOptions:
        return TrainOptions(**{**training, "output": tmp_path / "out", **changes})

    return make


@pytest.fixture(scope="session")
def whole(training: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run, which was never stopped; do not write into it."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    train(TrainOptions(**training, output=folder))
    return folder


@pytest.fixture(scope="session")
def states(whole: Path) -> Path:
    """The hidden states of that run, for others on the same records."""
    return whole / "training" / "states"


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without their picture, which takes longer than the runs here."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
