"""Predictor evaluations that the guided rows of a forward pass share.

mlx-lm samples a batch row by row. The first guided row of a pass finds the others that
will be guided by the same predictor, and encodes their hidden states with its own.
Knows forward passes and predictors; nothing of budgets.

B is the batch, N decoder layers, D model width, P predictor width, V vocabulary.
"""

import weakref
from collections.abc import Callable, Sequence

import mlx.core as mx

from ..method.encoder_predictor import EncoderPredictor
from ..method.predictor import Outputs, Predictor, ReplyProgress
from .draws import read_token
from .recorder import ForwardPass


class SharedPrediction:
    """The encodings of some rows of a forward pass, and their head outputs."""

    def __init__(self, predictor: Predictor, forward: ForwardPass, rows: Sequence[int]):
        self.predictor = predictor
        self._rows = list(rows)
        self._encodings = _encode(predictor, forward, rows)  # (rows, P)
        self._full: Outputs | None = None

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def outputs(
        self, row: int, progress: ReplyProgress, tokens: mx.array | None
    ) -> Outputs:
        """`Predictor.outputs` of one row, shape (1, K) or (1, R) each.

        Where they follow from the hidden states alone, those of all tokens are
        evaluated for the whole batch at once, the first time that one of it needs them.
        """
        i = self._rows.index(row)
        if tokens is not None or self.predictor.follows_progress:
            encoding = self._encodings[i : i + 1]
            return self.predictor.outputs(encoding, progress, tokens)
        if self._full is None:
            self._full = self.predictor.outputs(self._encodings, progress)
        return self._full[0][i : i + 1], self._full[1][i : i + 1]


def _encode(
    predictor: Predictor, forward: ForwardPass, rows: Sequence[int]
) -> mx.array:
    if forward.gathers_much and isinstance(predictor, EncoderPredictor):
        projected = forward.projected(rows, predictor.project)
        return predictor.encode_projected(projected)
    return predictor.encode(forward.states(rows))


_predictions: weakref.WeakKeyDictionary[ForwardPass, list[SharedPrediction]] = (
    weakref.WeakKeyDictionary()
)


def predict(
    predictor: Predictor,
    forward: ForwardPass,
    row: int,
    others: Callable[[], Sequence[int]],
) -> SharedPrediction:
    """The prediction that covers a row of a forward pass.

    Args:
        predictor (Predictor): The one that guides the row.
        forward (ForwardPass): The pass; its predictions are kept as long as it is.
        row (int): The row that is guided now.
        others (Callable): Gives the rows after it that this predictor will guide too;
            called only if the row is not covered yet. One too many costs time alone,
            for an encoding belongs to a row, whoever asks for it.
    """
    predictions = _predictions.setdefault(forward, [])
    for prediction in predictions:
        if prediction.predictor is predictor and row in prediction:
            return prediction
    prediction = SharedPrediction(predictor, forward, [row, *others()])
    predictions.append(prediction)
    return prediction


def first_token(predictor: Predictor, logprobs: mx.array) -> int:
    """The model's own choice at temperature 0, of the tokens that a predictor knows.

    Args:
        predictor (Predictor): Whose prediction for that token is wanted.
        logprobs (mx.array): Shape (1, V).
    """
    rows = predictor.known_tokens or logprobs.shape[-1]
    known = predictor.over_vocabulary(mx.zeros((1, rows)), -mx.inf)
    return read_token(mx.argmax(logprobs + known, axis=-1))
