"""The lengths that a predictor expects of prompts, kept in a file as they come.

A predictor reads each question by itself, which takes a large model minutes for a task.
Knows the file; nothing of models, or of replies.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..files.records import RecordFile, open_records
from .folder import digest

LENGTHS_FILE = "lengths.jsonl"


@contextmanager
def open_lengths(file: Path, whose: Sequence[str | None]) -> Iterator["Lengths"]:
    """Opens or makes a file of lengths, for this program alone.

    Args:
        file (Path): Lengths that are of others stay in it, and count as nothing.
        whose (sequence): What tells a model, its predictor and markers from others.

    Raises:
        ValueError: If another program has the file, or it holds something else.
    """
    with open_records(file) as records:
        yield Lengths(records, whose)


class Lengths:
    """Lengths in tokens, by the token ids of their prompts."""

    def __init__(self, records: RecordFile, whose: Sequence[str | None]):
        self._records = records
        self._whose = whose
        self._there = {r["id"]: r["predicted_tokens"] for r in records.read(_check)}

    def get(self, prompt: Sequence[int]) -> float | None:
        """The length of a prompt, or None if it is not known."""
        return self._there.get(self._name(prompt))

    def add(self, prompt: Sequence[int], length: float) -> None:
        """Keeps the length of a prompt; it is on the disk when this returns."""
        name = self._name(prompt)
        self._records.append({"id": name, "predicted_tokens": length})
        self._there[name] = length

    def _name(self, prompt: Sequence[int]) -> str:
        return digest([*self._whose, *prompt])


def _check(record: object, where: str) -> None:
    """Raises a ValueError unless a line holds the length of a prompt."""
    known = record if isinstance(record, dict) else {}
    is_named = isinstance(known.get("id"), str)
    if not is_named or not isinstance(known.get("predicted_tokens"), int | float):
        raise ValueError(
            f"{where} is no predicted length of a question: remove the file, or choose "
            "another --output."
        )
