"""One data file to its rows: JSON, JSON lines, CSV, TSV, Parquet and plain text.

Knows what endings mean and how files are damaged; nothing of what the rows mean.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from ..installing import install_command

_LINES, _JSON, _PARQUET = (".jsonl", ".ndjson"), ".json", ".parquet"
_TABLES, _TEXT = {".csv": ",", ".tsv": "\t"}, (".txt", "")
_SHOWN = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_ROWS_AT_ONCE = 64
# Cells hold whole chats; csv's own limit is 128 KiB.
_LARGEST_CELL = 1 << 30
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Row(NamedTuple):
    """One row of the data.

    Attributes:
        name: Where it is, such as "traces.jsonl, line 12".
        value: What it holds, as JSON has it; of a text file, a line.
        is_json: Whether it could be read at all; ``value`` is None if not.
        fault: Why it could not.
    """

    name: str
    value: object
    is_json: bool = True
    fault: str = ""


class Wanted(NamedTuple):
    """What is looked for in a file.

    Attributes:
        columns: The names of an object's fields, and of the columns to read of a
            Parquet file.
        needed: Those columns of which a table must have one.
        takes_text: Whether a text file will do, each line a row.
    """

    columns: Sequence[str]
    needed: Sequence[str]
    takes_text: bool = False


def ending_of(name: str) -> str:
    """What tells the kind of a file, in small letters: its suffix, that of *.gz aside.

    Parquet files are compressed within, and not read as *.gz.
    """
    name = name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    return ".gz" if ending == _PARQUET and name.endswith(".gz") else ending


def has_rows(name: str) -> bool:
    """Whether a name is that of a file with rows."""
    return ending_of(name) in (*_LINES, _JSON, *_TABLES, _PARQUET)


def read_file(file: Path, title: str, wanted: Wanted) -> Iterator[Row]:
    """The rows of a file, read as they are asked for.

    A file of one JSON value, an array of rows or an object of them, is read whole.

    Args:
        file (Path): Its name says what it is.
        title (str): What to call it.
        wanted (Wanted): What is looked for.

    Raises:
        ValueError: In one line, if it cannot be read or is of another kind.
    """
    ending = ending_of(file.name)
    is_text = wanted.takes_text and ending in _TEXT
    if not is_text and not has_rows(file.name):
        kinds = (*_SHOWN, ".txt") if wanted.takes_text else _SHOWN
        raise ValueError(
            f"{title} is of a kind that is not read here; give one of "
            f"{', '.join(kinds)} (or .jsonl.gz and the like)."
        )
    try:
        if ending == _PARQUET:
            yield from _read_parquet(file, title, wanted)
            return
        with _open(file) as data:
            if is_text:
                yield from _read_text(data, title)
            elif ending in _TABLES:
                yield from _read_table(data, title, _TABLES[ending], wanted)
            elif ending == _JSON or _is_indented(data):
                yield from _read_document(data, title, wanted, ending in _LINES)
            else:
                yield from _read_lines(data, title)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{title} is not a whole .gz file ({e}).") from None
    except OSError as e:
        raise ValueError(f"{title} cannot be read ({e.strerror or e}).") from None


def _open(file: Path) -> io.BufferedReader:
    if file.name.lower().endswith(".gz"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(file)))
    return file.open("rb")


def _encoding(data: io.BufferedReader) -> str:
    return "utf-16" if data.peek(2)[:2] in _UTF16 else "utf-8-sig"


def _lines(data: io.BufferedReader) -> Iterator[tuple[int, str | None]]:
    """The lines that are not blank, with their numbers; None if it is no text."""
    if _encoding(data) == "utf-16":  # as some programs of Windows write it
        text = data.read().decode("utf-16", "replace")
        yield from ((i, t) for i, t in enumerate(text.split("\n"), 1) if t.strip())
        return
    for number, line in enumerate(data, 1):
        if not line.strip():
            continue
        try:
            yield number, line.decode("utf-8-sig")
        except UnicodeDecodeError:
            yield number, None


def _read_lines(data: io.BufferedReader, title: str) -> Iterator[Row]:
    return (_row_of(line, f"{title}, line {i}") for i, line in _lines(data))


def _row_of(line: str | None, name: str) -> Row:
    if line is None:
        return Row(name, None, False, "not UTF-8 text")
    try:
        return Row(name, json.loads(line))
    except (ValueError, RecursionError) as e:
        return Row(name, None, False, _reason(e))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at character {error.pos + 1:,}"
    return str(error)


def _read_text(data: io.BufferedReader, title: str) -> Iterator[Row]:
    for number, line in _lines(data):
        name = f"{title}, line {number}"
        if line is None:
            raise ValueError(f"{name} is not UTF-8 text.")
        text = line.rstrip("\r\n")
        if text.lstrip().startswith("{") and _row_of(text, name).is_json:
            raise ValueError(
                f"{name} is JSON, and would be taken for text: name the file *.jsonl."
            )
        yield Row(name, text)


def _is_indented(data: io.BufferedReader) -> bool:
    """Whether JSON lines are none, but one value over many lines."""
    head = data.peek(1000)[:1000]
    begins = head.decode(_encoding(data), "replace").strip().partition("\n")[0]
    return begins.strip() in ("[", "{", "[{")


def _read_document(
    data: io.BufferedReader, title: str, wanted: Wanted, may_be_lines: bool
) -> Iterator[Row]:
    encoding = _encoding(data)
    try:
        text = data.read().decode(encoding)
    except UnicodeDecodeError as e:
        raise ValueError(f"{title} is not UTF-8 text ({e.reason}).") from None
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        lines = [(i, t) for i, t in enumerate(text.split("\n"), 1) if t.strip()]
        may_be_lines |= len(lines) > 1 and _row_of(lines[0][1], "").is_json
        if not may_be_lines:
            raise ValueError(f"{title} is not valid JSON: {e}.") from None
        yield from (_row_of(line, f"{title}, line {i}") for i, line in lines)
        return
    for name, row in _rows_of(value, title, wanted):
        yield Row(f"{title}, record {name}", row)


def _rows_of(value: object, title: str, wanted: Wanted) -> Iterator[tuple[str, object]]:
    """The rows of an array, of an object of rows, or of one that has them in a list."""
    if isinstance(value, dict) and not set(value) & set(wanted.columns):
        lists = {k: v for k, v in value.items() if _is_list_of_objects(v)}
        if len(lists) > 1:
            raise ValueError(
                f"{title} has several lists of rows ({', '.join(lists)}): put the one "
                "that is meant into a file of its own."
            )
        if not lists and value and all(isinstance(v, dict) for v in value.values()):
            yield from ((str(key), row) for key, row in value.items())
            return
        value = next(iter(lists.values()), value)
    rows = value if isinstance(value, list) else [value]
    yield from ((str(number), row) for number, row in enumerate(rows, 1))


def _is_list_of_objects(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) for row in value)
    )


def _read_table(
    data: io.BufferedReader, title: str, delimiter: str, wanted: Wanted
) -> Iterator[Row]:
    encoding = _encoding(data)
    head = data.peek(4000).decode(encoding, "replace").lstrip().partition("\n")[0]
    if delimiter == "," and "," not in head:
        # As spreadsheets write it where the comma is that of decimals.
        delimiter = next((d for d in ";\t" if d in head), ",")
    csv.field_size_limit(_LARGEST_CELL)
    header: list[str] = []
    with io.TextIOWrapper(data, encoding, newline="") as text:
        table = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            before = 0
            for cells in table:
                name, before = f"{title}, line {before + 1}", table.line_num
                if not any(map(str.strip, cells)):
                    continue
                if not header:
                    header = [cell.strip() for cell in cells]
                    _check_columns(header, title, wanted)
                    continue
                if len(cells) > len(header):
                    raise ValueError(
                        f"{name} has {len(cells)} cells, and the first line names "
                        f"{len(header)}: a cell that has a {delimiter!r} in it needs "
                        'quotes (") around it.'
                    )
                # A cell without text is one that is not there.
                pairs = zip(header, cells, strict=False)
                yield Row(name, {key: cell for key, cell in pairs if cell.strip()})
        except csv.Error as e:
            raise ValueError(
                f"{title}, line {before + 1} cannot be read as a table ({e}): a cell "
                'that has quotes in it needs quotes (") around it, and those within '
                "twice."
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"{title} is not UTF-8 text: save it as that.") from None


def _check_columns(found: Sequence[str], title: str, wanted: Wanted) -> None:
    if not set(found) & set(wanted.needed):
        *others, last = wanted.needed
        none = f"none of the columns {', '.join(others)} and {last}"
        raise ValueError(
            f"{title} has {none if others else f'no column {last}'}; it has "
            f"{', '.join(found)}."
        )


def _read_parquet(file: Path, title: str, wanted: Wanted) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(
            f"{title} is a Parquet file, and reading it needs pyarrow: "
            f"`{install_command('train')}`."
        ) from None
    try:
        with pq.ParquetFile(file) as parquet:
            found = parquet.schema_arrow.names
            _check_columns(found, title, wanted)
            columns = [name for name in wanted.columns if name in found]
            batches = parquet.iter_batches(_ROWS_AT_ONCE, columns=columns)
            values = (value for batch in batches for value in batch.to_pylist())
            for number, value in enumerate(values, 1):
                yield Row(f"{title}, row {number}", value)
    except (pa.ArrowException, OSError) as e:
        reason = str(e).strip().partition("\n")[0].rstrip(". ")
        raise ValueError(f"{title} cannot be read as Parquet ({reason}).") from None
