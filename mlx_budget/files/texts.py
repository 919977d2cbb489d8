"""Small text files: JSON read with one clear error, written whole or not at all.

Knows nothing of what the texts mean.
"""

import json
from pathlib import Path

from .atomic import appearing_file


def read_json(file: Path, missing: str) -> object:
    """What a JSON file holds.

    Args:
        file (Path): The file.
        missing (str): What to say if it is not there.

    Raises:
        ValueError: With ``missing``, or if it is not valid JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(missing) from None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{file} is not valid JSON: {e}.") from None


def write_json(file: Path, value: object) -> None:
    """Writes a value as indented JSON; the file appears whole or not at all."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a text; the file appears whole or not at all."""
    with appearing_file(file) as f:
        f.write(text.encode())
