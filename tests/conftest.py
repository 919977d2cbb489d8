"""Fixtures that several test files share: the golden checkpoint and its numbers."""

import json
from pathlib import Path
from typing import NamedTuple

import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from conversions import REFERENCE, fixture_config, fixture_weights, write_folder
from mlx_budget import Predictor, convert, load


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
