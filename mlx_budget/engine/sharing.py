"""Predictor evaluations that the guided rows of a forward pass share.

mlx-lm samples a batch row by row, and a row cannot know which others will be guided in
the same step. Rows keep the order in which they joined, so the first guided row of a
pass foresees the others and encodes their hidden states with its own. A wrong guess
costs time, never correctness: an encoding belongs to a row, whoever asks for it.

B is the batch, N decoder layers, D model width, P predictor width, V vocabulary.
"""

from typing import Protocol

import mlx.core as mx
import numpy as np

from ..method.predictor import Predictor
from .recorder import HiddenStateRecorder


class Member(Protocol):
    """What a row's sampler lets the others of its batch know.

    Attributes:
        predictor: The predictor that guides it.
        has_started: Whether it has chosen a token yet.
    """

    predictor: Predictor | None
    has_started: bool

    def next_input(self) -> int | None:
        """The token that its row feeds to the model, or None when it is closed."""

    def is_guided(self) -> bool:
        """Whether the token that follows `next_input` will be guided."""


class SharedPrediction:
    """The encodings of some rows of the last forward pass, and their head outputs."""

    def __init__(
        self, predictor: Predictor, recorder: HiddenStateRecorder, rows: list[int]
    ):
        self.predictor = predictor
        self._rows = rows
        self._encodings = predictor.encode(recorder.states(rows))  # (rows, P)
        self._full: tuple[mx.array, mx.array] | None = None

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def head_outputs(
        self, row: int, tokens: mx.array | None
    ) -> tuple[mx.array, mx.array]:
        """`Predictor.head_outputs` of one row, shape (1, K) or (1, R) each.

        All rows of the heads are evaluated for the whole batch at once, the first time
        that one of it needs them.
        """
        i = self._rows.index(row)
        if tokens is not None:
            return self.predictor.head_outputs(self._encodings[i : i + 1], tokens)
        if self._full is None:
            self._full = self.predictor.head_outputs(self._encodings)
        return self._full[0][i : i + 1], self._full[1][i : i + 1]


def first_token(predictor: Predictor, logprobs: mx.array) -> int:
    """The model's own choice at temperature 0, of the tokens that a predictor knows.

    Args:
        predictor (Predictor): Whose prediction for that token is wanted.
        logprobs (mx.array): Shape (1, V).
    """
    rows = predictor.config.known_tokens or logprobs.shape[-1]
    known = predictor.over_vocabulary(mx.zeros((1, rows)), -mx.inf)
    return mx.argmax(logprobs + known, axis=-1).item()


def predict(
    member: Member, recorder: HiddenStateRecorder, row: int
) -> SharedPrediction:
    """The prediction that covers a row of the last forward pass.

    Args:
        member (Member): The row's sampler.
        recorder (HiddenStateRecorder): Of the model; it keeps the predictions of a
            forward pass until the next.
        row (int): The row that is guided now.
    """
    for prediction in recorder.notes:
        if prediction.predictor is member.predictor and row in prediction:
            return prediction
    rows = [row, *_guided_later(member, recorder, row)]
    prediction = SharedPrediction(member.predictor, recorder, rows)
    recorder.notes.append(prediction)
    return prediction


def _guided_later(member: Member, recorder: HiddenStateRecorder, row: int) -> list[int]:
    """Rows after ``row`` that are likely to be guided, by the same predictor."""
    inputs = np.array(recorder.inputs)[row + 1 :, 0]
    if not inputs.size:
        return []
    members = recorder.members()
    later = members[members.index(member) + 1 :]
    # Rows that join are run once by themselves before they are added to the others.
    later = [m for m in later if m.has_started == member.has_started]
    rows, start = [], 0
    for i, token in enumerate(inputs.tolist(), row + 1):
        owner = next(
            (k for k in range(start, len(later)) if later[k].next_input() == token),
            None,
        )
        if owner is None:
            continue
        start = owner + 1
        if later[owner].predictor is member.predictor and later[owner].is_guided():
            rows.append(i)
    return rows
