"""Hidden states of the training positions, computed once and kept on disk.

Two files grow record by record: `states.bin` with the states of each position, one
after another, and `records.jsonl` with what is known of them. A line is written after
its states, so that a run killed at any moment goes on behind the last whole record.
Knows files and arrays; nothing of models or of training.

N is the number of decoder layers, D the model width.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..files.texts import write_json

_STATES, _RECORDS, _SETTINGS = "states.bin", "records.jsonl", "settings.json"


def has_states(folder: Path) -> bool:
    """Whether a folder holds the states of a record."""
    file = folder / _RECORDS
    return file.exists() and file.stat().st_size > 0


# Positions that moments are computed of, and how many are read at a time.
_MOST_ROWS, _ROWS_AT_A_TIME = 4096, 64


@dataclass(frozen=True)
class CachedRecord:
    """What is known of the cached positions of one record.

    Attributes:
        name: Where the record came from.
        is_validation: Whether it is held out.
        tokens: The token that came next, at each position.
        lengths: L of each position.
        is_guided: Whether guidance acts at each position.
        is_first: Whether each is the first of the thinking.
        mass: At guided positions of held-out records, the model's probability of the
            tokens that guidance may favour; else None.
        prompt_tokens: Tokens before the first of the thinking; None in caches of
            earlier releases.
        prompt_digits: Digits in the last message before the reply, likewise.
    """

    name: str
    is_validation: bool
    tokens: list[int]
    lengths: list[int]
    is_guided: list[bool]
    is_first: list[bool]
    mass: list[float | None] = field(default_factory=list)
    prompt_tokens: int | None = None
    prompt_digits: int | None = None


class StateCache:
    """The cache in one folder.

    Attributes:
        records: Of the records that are in it, in their order.
        shape: ``(N + 1, D)``.

    Args:
        folder (Path): Made if it is not there.
        shape (tuple): ``(N + 1, D)``.
        dtype (str): "float16" or "bfloat16".
        settings (dict): All that decides the contents, as JSON has it.

    Raises:
        ValueError: If the folder holds states of other settings.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int], dtype: str, settings: dict[str, Any]
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.shape = shape
        self._dtype = getattr(mx, dtype)
        self._row_bytes = 2 * shape[0] * shape[1]
        settings = {**settings, "shape": list(shape), "dtype": dtype}
        file = folder / _SETTINGS
        if not file.exists() or not has_states(folder):
            write_json(file, settings)
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            if settings.get(name) != value:
                raise ValueError(
                    f"{folder} holds hidden states of other settings ({name}): name "
                    "another --cache-dir, or remove it."
                )
        self.records = self._read_records()
        self._map: np.ndarray | None = None

    def _read_records(self) -> list[CachedRecord]:
        """The whole records; what a killed run left behind them is cut off."""
        records, used_bytes, used_states = [], 0, 0
        for name in (_STATES, _RECORDS):
            (self._folder / name).touch()
        available = (self._folder / _STATES).stat().st_size
        with (self._folder / _RECORDS).open("rb") as f:
            for line in f:
                if not line.endswith(b"\n"):
                    break
                record = CachedRecord(**json.loads(line))
                states = used_states + len(record.tokens) * self._row_bytes
                if states > available:
                    break
                used_states, used_bytes = states, used_bytes + len(line)
                records.append(record)
        os.truncate(self._folder / _STATES, used_states)
        os.truncate(self._folder / _RECORDS, used_bytes)
        return records

    def append(self, record: CachedRecord, states: mx.array) -> None:
        """Adds a record.

        Args:
            record (CachedRecord): Of n positions.
            states (mx.array): Their hidden states, shape (n, N + 1, D).

        Raises:
            ValueError: If a state is not finite in the cache's type.
        """
        states = states.astype(self._dtype)
        if not mx.all(mx.isfinite(states)).item():
            raise ValueError(
                f"{record.name}: a hidden state does not fit into the cache's type: "
                "try --cache-dtype bfloat16."
            )
        with (self._folder / _STATES).open("ab") as f:
            f.write(np.asarray(mx.contiguous(states).view(mx.uint8)).data)
            f.flush()
            os.fsync(f.fileno())  # should power fail, the line must not be alone
        line = json.dumps(asdict(record), separators=(",", ":")) + "\n"
        with (self._folder / _RECORDS).open("ab") as f:
            f.write(line.encode())
        self.records.append(record)
        self._map = None

    def read(self, rows: np.ndarray) -> mx.array:
        """The hidden states of some positions.

        Args:
            rows (np.ndarray): Their places in the order in which they were appended.

        Returns:
            mx.array: Shape (len(rows), N + 1, D), of the cache's type.
        """
        if self._map is None:
            file = self._folder / _STATES
            self._map = np.memmap(file, np.uint16, "r").reshape(-1, *self.shape)
        return mx.array(self._map[rows]).view(self._dtype)

    def read_layer(self, rows: np.ndarray, layer: int) -> np.ndarray:
        """One of the hidden states of some positions.

        Args:
            rows (np.ndarray): As in `read`.
            layer (int): 0 to N.

        Returns:
            np.ndarray: float32, shape (len(rows), D).
        """
        self.read(rows[:1])
        states = mx.array(cast(np.ndarray, self._map)[rows, layer])
        return np.array(states.view(self._dtype).astype(mx.float32))

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the hidden states of some positions.

        They are those of at most `_MOST_ROWS`, evenly spaced, to bound the reading.

        Args:
            rows (np.ndarray): As of `read`.

        Returns:
            tuple[np.ndarray, np.ndarray]: float64, shape (N + 1, D) each.
        """
        rows = rows[:: -(-len(rows) // _MOST_ROWS)]
        total = np.zeros((2, *self.shape))
        first = None
        for i in range(0, len(rows), _ROWS_AT_A_TIME):
            read = self.read(rows[i : i + _ROWS_AT_A_TIME]).astype(mx.float32)
            states = np.array(read, np.float64)
            # Squares of what is far from 0 would cancel.
            first = states[0] if first is None else first
            total += (states - first).sum(axis=0), ((states - first) ** 2).sum(axis=0)
        mean, square = total / len(rows)
        return first + mean, np.sqrt(np.maximum(square - mean**2, 0))

    def positions(self) -> "Positions":
        """All positions, as arrays."""
        records = self.records

        def joined(name: str, dtype: type) -> np.ndarray:
            parts = [getattr(r, name) for r in records]
            return np.array([v for part in parts for v in part], dtype)

        sizes = [len(r.tokens) for r in records]
        return Positions(
            record=np.repeat(np.arange(len(records)), sizes),
            is_validation=np.repeat([r.is_validation for r in records], sizes),
            tokens=joined("tokens", np.int32),
            lengths=joined("lengths", np.int32),
            is_guided=joined("is_guided", bool),
            is_first=joined("is_first", bool),
            mass=joined("mass", np.float32),
        )


@dataclass(frozen=True)
class Positions:
    """What is known of all positions of a cache; arrays of one length.

    Attributes:
        record: Place of each position's record.
        is_validation, tokens, lengths, is_guided, is_first, mass: As in `CachedRecord`;
            ``mass`` is NaN where it was not computed.
    """

    record: np.ndarray
    is_validation: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    is_guided: np.ndarray
    is_first: np.ndarray
    mass: np.ndarray


def batches(
    rows: np.ndarray, batch_size: int, seed: int, first: int = 0
) -> Iterator[np.ndarray]:
    """Batches of rows without end, each epoch in an order of its own.

    A batch depends on its number alone, so that a run can go on where it was.

    Args:
        rows (np.ndarray): What to draw from.
        batch_size (int): Rows of a batch; the rest of an epoch is a smaller one.
        seed (int): Of the orders.
        first (int): Number of the first batch wanted.
    """
    each = -(-len(rows) // batch_size)
    number = first
    while True:
        epoch, place = divmod(number, each)
        order = np.random.default_rng((seed, epoch)).permutation(rows)
        for start in range(place * batch_size, len(rows), batch_size):
            yield order[start : start + batch_size]
            number += 1
