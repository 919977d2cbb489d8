"""Predicted lengths of an evaluation: each predicted once, whoever is killed when."""

import pytest

from mlx_budget.evaluate.lengths import KnownLengths
from mlx_budget.files.records import open_records

PROMPT = [5, 6, 7]


def length(path, prompt, of, predicted: float | None) -> float:
    """The length of a prompt; None where it must be known."""

    def predict() -> float:
        assert predicted is not None
        return predicted

    with open_records(path) as file:
        return KnownLengths(file, *of).length(prompt, predict)


def test_a_length_is_predicted_once(tmp_path):
    path, of = tmp_path / "lengths.jsonl", ("model", "predictor", "", "</think>")
    assert length(path, PROMPT, of, 30.5) == 30.5
    assert length(path, PROMPT, of, None) == 30.5


@pytest.mark.parametrize(
    "prompt, of",
    [
        ([5, 6], ("model", "predictor")),
        (PROMPT, ("other", "predictor")),
        (PROMPT, ("model", "other")),
    ],
)
def test_a_length_of_something_else_is_not_taken(tmp_path, prompt, of):
    path = tmp_path / "lengths.jsonl"
    length(path, PROMPT, ("model", "predictor"), 30.5)
    assert length(path, prompt, of, 40.0) == 40.0


def test_a_line_that_a_kill_left_incomplete_is_predicted_again(tmp_path):
    path, of = tmp_path / "lengths.jsonl", ("model", "predictor")
    length(path, PROMPT, of, 30.5)
    path.write_bytes(path.read_bytes()[:-9])
    assert length(path, PROMPT, of, 40.0) == 40.0
    assert length(path, PROMPT, of, None) == 40.0


def test_a_line_of_something_else_is_refused(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text('{"id": "a", "text": "b"}\n')
    with pytest.raises(ValueError, match="line 1, is not a predicted length"):
        length(path, PROMPT, (), None)
