"""Checkpoints of a training run: everything that the next update depends on.

Knows files and trees of arrays; nothing of what is trained.
"""

import json
from pathlib import Path
from typing import Any

from mlx.utils import tree_unflatten

from ..files.tensors import named_tensors, read_header, read_tensors, write_tensors
from ..files.texts import write_text

# Of arrays, under names of any depth.
Tree = dict[str, Any]

_PREFIX, _SUFFIX = "checkpoint-", ".safetensors"
_KEPT = 2


def save(folder: Path, step: int, state: Tree) -> None:
    """Writes the state after an update, and removes all but the two newest.

    Args:
        folder (Path): Of the run's checkpoints.
        step (int): Updates made.
        state (dict): A tree of arrays.
    """
    write_tree(folder / f"{_PREFIX}{step:08d}{_SUFFIX}", state)
    for file in _files(folder)[:-_KEPT]:
        file.unlink()


def has_any(folder: Path) -> bool:
    """Whether there is a checkpoint."""
    return bool(_files(folder))


def load_newest(folder: Path) -> tuple[int, Tree] | None:
    """Step and state of the newest checkpoint that is whole, or None."""
    for file in reversed(_files(folder)):
        try:
            read_header(file)
        except ValueError:
            continue  # a disk that lost power may have lost the end of a file
        return int(file.stem.removeprefix(_PREFIX)), read_tree(file)
    return None


def write_tree(file: Path, tree: Tree) -> None:
    """Writes a tree of arrays, which appears whole or not at all."""
    write_tensors(file, named_tensors(tree))


def read_tree(file: Path) -> Tree:
    """Reads what `write_tree` wrote."""
    return tree_unflatten(list(read_tensors(file).items()))


class LearningCurves:
    """A JSONL file with a line for each thing measured during a run.

    Args:
        file (Path): Lines after ``step``, and one that is not whole, are dropped: the
            run makes them again.
        step (int): Updates made so far; at 0 the run begins anew, without any lines.
    """

    def __init__(self, file: Path, step: int):
        self._file = file
        self.rows: list[dict[str, float]] = []
        if step and file.exists():
            for line in file.read_text(encoding="utf-8").split("\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if row["step"] <= step:
                    self.rows.append(row)
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(file, text)

    def add(self, **row: float) -> None:
        """Appends a line."""
        self.rows.append(row)
        with self._file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
