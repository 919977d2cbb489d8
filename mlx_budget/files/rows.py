"""The rows of JSON and Parquet files, local or of a dataset on the Hugging Face Hub.

Knows files and names; nothing of what the rows mean.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import hub

_LINES, _JSON, _PARQUET = ".jsonl", ".json", ".parquet"
# A repository's .json files are as a rule about its data, not data.
_OF_A_FOLDER = (_LINES, _PARQUET)
_ROWS_AT_ONCE = 64


class Row(NamedTuple):
    """One row of the data.

    Attributes:
        name: Where it is, such as "traces.jsonl, line 12".
        value: What it holds, as JSON has it.
        is_json: Whether it could be read at all; ``value`` is None if not.
    """

    name: str
    value: object
    is_json: bool = True


def read_rows(
    data: str | Path | Sequence[str | Path | dict[str, Any]], columns: Sequence[str]
) -> Iterator[Row]:
    """The rows of data files, read and downloaded as they are asked for.

    Args:
        data (str, Path or Sequence): A .jsonl, .json or .parquet file, a folder of
            .jsonl and .parquet files, a dataset on the Hub (owner/name), or a file or
            folder in one (owner/name/path); or several of these; or the rows
            themselves. What exists here is never looked up on the Hub.
        columns (Sequence[str]): The columns to read of a Parquet file, which must have
            the first.

    Raises:
        ValueError: In one line, naming what cannot be found or read.
    """
    for number, item in enumerate([data] if isinstance(data, str | Path) else data, 1):
        if isinstance(item, dict):
            yield Row(f"record {number}", item)
            continue
        for file, title in _files(str(item)):
            yield from _read_file(file, title, columns)


def _files(name: str) -> Iterator[tuple[Path, str]]:
    """The data files of a name, each with its title."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        folder = Path(path)
        files = sorted(f for f in folder.rglob("*") if f.suffix in _OF_A_FOLDER)
        if not files:
            raise ValueError(f"The folder {name} holds no .jsonl or .parquet files.")
        for file in files:
            yield file, file.relative_to(folder).as_posix()
    elif os.path.exists(path):
        yield Path(path), os.path.basename(path)
    elif _may_be_on_hub(name):
        yield from _hub_files(name)
    else:
        raise ValueError(
            f"There is no file {name}. Check the path (a dataset on the Hub is named "
            "owner/name)."
        )


def _may_be_on_hub(name: str) -> bool:
    parts = name.rstrip("/").split("/")
    is_data_file = Path(name).suffix in (_LINES, _JSON, _PARQUET)
    return not name.startswith((".", "/", "~")) and len(parts) > 1 + is_data_file


def _hub_files(name: str) -> Iterator[tuple[Path, str]]:
    owner, repository, *parts = name.rstrip("/").split("/")
    dataset, inside = f"{owner}/{repository}", "/".join(parts)
    if Path(inside).suffix in (_LINES, _JSON, _PARQUET):
        files = [inside]
    else:
        files = [
            file
            for file in sorted(hub.list_dataset_files(dataset))
            if file.endswith(_OF_A_FOLDER) and file.startswith(inside and f"{inside}/")
        ]
        if not files:
            raise ValueError(
                f"{name} on the Hub holds no .jsonl or .parquet files. Name the file "
                "or the folder in the dataset, as owner/name/path."
            )
    for file in files:
        yield hub.fetch_dataset_file(dataset, file), f"{dataset}/{file}"


def _read_file(file: Path, title: str, columns: Sequence[str]) -> Iterator[Row]:
    try:
        if file.suffix == _PARQUET:
            yield from _read_parquet(file, title, columns)
        elif file.suffix == _JSON and _is_array(file):
            yield from _read_array(file, title)
        elif file.suffix in (_LINES, _JSON):
            yield from _read_lines(file, title)
        else:
            raise ValueError(f"{title} is not a .jsonl, .json or .parquet file.")
    except OSError as e:
        raise ValueError(f"{title} cannot be read ({e.strerror}).") from None


def _read_lines(file: Path, title: str) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name = f"{title}, line {number}"
            try:
                row = Row(name, json.loads(line.decode("utf-8-sig")))
            except (ValueError, RecursionError):
                row = Row(name, None, is_json=False)
            yield row


def _is_array(file: Path) -> bool:
    with file.open("rb") as f:
        return f.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _read_array(file: Path, title: str) -> Iterator[Row]:
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{title} is not valid JSON: {e}.") from None
    for number, value in enumerate(values, 1):
        yield Row(f"{title}, record {number}", value)


def _read_parquet(file: Path, title: str, columns: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(
            f"{title} is a Parquet file, and reading it needs pyarrow: "
            '`pip install "mlx-budget[train]"`.'
        ) from None
    try:
        with pq.ParquetFile(file) as parquet:
            found = parquet.schema_arrow.names
            wanted = [name for name in columns if name in found]
            if columns[0] not in wanted:
                raise ValueError(
                    f"{title} has no column {columns[0]}; it has {', '.join(found)}."
                )
            batches = parquet.iter_batches(_ROWS_AT_ONCE, columns=wanted)
            values = (value for batch in batches for value in batch.to_pylist())
            for number, value in enumerate(values, 1):
                yield Row(f"{title}, row {number}", value)
    except (pa.ArrowException, OSError) as e:
        reason = str(e).strip().partition("\n")[0].rstrip(". ")
        raise ValueError(f"{title} cannot be read as Parquet ({reason}).") from None
