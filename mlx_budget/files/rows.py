"""The rows of data files, local or of a dataset on the Hugging Face Hub.

Knows names of files, folders and datasets; nothing of what is in the files.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import hub
from .formats import Row, Wanted, ending_of, has_rows, read_file

__all__ = ["Row", "read_rows"]

# Of the files of a folder those of the first kind that there is are its data. Its .json
# files are as a rule about the data.
_OF_A_FOLDER = ((".jsonl", ".ndjson", ".parquet"), (".csv", ".tsv"))
_KINDS = ".jsonl, .parquet, .csv or .tsv"


def read_rows(
    data: str | Path | Sequence[str | Path | dict[str, Any]],
    columns: Sequence[str],
    needed: Sequence[str] = (),
    *,
    takes_text: bool = False,
) -> Iterator[Row]:
    """The rows of data files, read and downloaded as they are asked for.

    Args:
        data (str, Path or Sequence): A .jsonl, .json, .csv, .tsv or .parquet file, or
            one of these as .gz; a folder of them; a dataset on the Hub (owner/name), or
            a file or folder in one (owner/name/path); or several of these; or the rows
            themselves. What exists here is never looked up on the Hub.
        columns (Sequence[str]): The columns to read of a Parquet file.
        needed (Sequence[str]): Those of which a table must have one; the first by
            default.
        takes_text (bool): Whether a file *.txt, or one without a suffix, will do, each
            line a row.

    Raises:
        ValueError: In one line, naming what cannot be found or read.
    """
    wanted = Wanted(columns, needed or columns[:1], takes_text)
    for number, item in enumerate([data] if isinstance(data, str | Path) else data, 1):
        if isinstance(item, dict):
            yield Row(f"record {number}", item)
            continue
        for file, title in _files(str(item)):
            yield from read_file(file, title, wanted)


def is_on_hub(data: str | Path) -> bool:
    """Whether data would be downloaded."""
    name = str(data)
    there = os.path.exists(os.path.expanduser(name))
    return bool(name) and not there and _may_be_on_hub(name)


def _files(name: str) -> Iterator[tuple[Path, str]]:
    """The data files of a name, each with its title."""
    if not name:
        raise ValueError("The name of the data is empty; is a variable not set?")
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        folder = Path(path)
        inside = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*")}
        names = _data_of(name for name, file in inside.items() if file.is_file())
        if not names:
            raise ValueError(f"The folder {name} holds no {_KINDS} files.")
        for title in names:
            yield inside[title], title
    elif os.path.exists(path):
        yield Path(path), os.path.basename(path)
    elif _may_be_on_hub(name):
        yield from _hub_files(name)
    else:
        raise ValueError(
            f"There is no file {name}. Check the path (a dataset on the Hub is named "
            "owner/name)."
        )


def _data_of(names: Iterable[str]) -> list[str]:
    """Those of the names of a folder's files that are its data, in order."""
    names = sorted(names)
    for kinds in _OF_A_FOLDER:
        if found := [name for name in names if ending_of(name) in kinds]:
            return found
    return []


def _may_be_on_hub(name: str) -> bool:
    parts = name.rstrip("/").split("/")
    return not name.startswith((".", "/", "~")) and len(parts) > 1 + has_rows(name)


def _hub_files(name: str) -> Iterator[tuple[Path, str]]:
    owner, repository, *parts = name.rstrip("/").split("/")
    dataset, inside = f"{owner}/{repository}", "/".join(parts)
    if has_rows(inside):
        files = [inside]
    else:
        within = inside and f"{inside}/"
        there = hub.list_dataset_files(dataset)
        files = _data_of(file for file in there if file.startswith(within))
        if not files:
            raise ValueError(
                f"{name} on the Hub holds no {_KINDS} files. Name the file or the "
                "folder in the dataset, as owner/name/path."
            )
    for file in files:
        yield hub.fetch_dataset_file(dataset, file), f"{dataset}/{file}"
