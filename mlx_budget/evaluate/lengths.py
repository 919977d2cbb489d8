"""The lengths that a predictor expects of questions, kept as soon as they are known.

To predict one the model reads the question, which of many questions takes minutes: a
run that is stopped meanwhile goes on where it ended. Knows files of records; nothing of
how a length is predicted.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

from ..files.records import RecordFile

LENGTHS_FILE = "lengths.jsonl"


class KnownLengths:
    """Predicted lengths, each by what it was predicted of."""

    def __init__(self, file: RecordFile, *of: str | None):
        """Takes up what is in a file; what is predicted from here on is added to it.

        Args:
            file (RecordFile): Open, of this or of other runs.
            of (str): What a prediction depends on besides the prompt: what tells the
                model, the predictor and the markers from others.
        """
        self._file = file
        self._of = of
        self._known = {r["id"]: r["predicted_tokens"] for r in file.read(_check)}

    def length(self, prompt: Sequence[int], predict: Callable[[], float]) -> float:
        """The length that is expected of a prompt, in tokens; predicts a new one."""
        named = json.dumps([*self._of, *prompt]).encode()
        name = hashlib.sha256(named).hexdigest()[:16]
        if name not in self._known:
            self._known[name] = predict()
            self._file.append({"id": name, "predicted_tokens": self._known[name]})
        return self._known[name]


def _check(record: object, where: str) -> None:
    fields = record if isinstance(record, dict) else {}
    is_length = isinstance(fields.get("predicted_tokens"), int | float)
    if not (is_length and isinstance(fields.get("id"), str)):
        raise ValueError(f"{where} is not a predicted length: delete the file.")
