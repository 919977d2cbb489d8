"""The folder of an evaluation: what is in it, and whose run it is of.

Knows its files and their fields; nothing of how replies are made or graded.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files.outputs import check_output_folder
from ..files.records import Record, has_records, open_records
from ..files.texts import read_json
from .options import EvaluateOptions
from .tasks import Task

RECORDS_FILE = "records.jsonl"
SETTINGS_FILE = "settings.json"

# What all records of a folder have in common, by name.
Settings = dict[str, Any]


def check_output(
    output: Path, task: Task, options: EvaluateOptions, model_name: str
) -> None:
    """Checks the folder to write before the model is read; makes nothing.

    What there is without a record of a reply counts as nothing.

    Raises:
        ValueError: If it cannot be written, or its records are of another run.
    """
    check_output_folder(output)
    if has_records(output / RECORDS_FILE) and (output / SETTINGS_FILE).exists():
        _check_settings(output, settings_of(task, options, model_name))


def read_records(folder: Path) -> list[Record]:
    """The records of a folder, each once, in a fixed order.

    Raises:
        ValueError: If there are none, or the folder is in use.
    """
    file = Path(folder) / RECORDS_FILE
    if not file.exists():
        raise ValueError(
            f"There is no {file}: name the --output folder of `mlx-budget evaluate`."
        )
    with open_records(file) as records:
        found = {record["id"]: record for record in records.read(check_record)}
    if not found:
        raise ValueError(f"{file} holds no records yet.")
    return [found[name] for name in sorted(found)]


def read_settings(folder: Path) -> Settings:
    """The settings of a folder's run."""
    file = Path(folder) / SETTINGS_FILE
    settings = read_json(file, f"There is no {file}.")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a JSON object.")
    return settings


def _describe(task: Task) -> Settings:
    """A task in a few words, and a digest of its questions and answers."""
    asked = [asdict(problem) for problem in task.problems]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    return {
        "task": task.name,
        "problems": len(asked),
        "questions": digest,
        "instruction": task.instruction,
    }


def settings_of(task: Task, options: EvaluateOptions, model_name: str) -> Settings:
    """The settings of a run."""
    return {"model": model_name, **_describe(task), **options.settings()}


def _check_settings(folder: Path, settings: Settings) -> None:
    """Checks that a folder was begun with the same settings.

    What it does not name had its default.
    """
    there = {**EvaluateOptions().settings(), **read_settings(folder)}
    for name, value in json.loads(json.dumps(settings)).items():
        if there.get(name) != value:
            raise ValueError(
                f"{folder} is of a run with {name} {there.get(name)!r}, not "
                f"{value!r}: choose another --output, or set it as before."
            )


def check_record(record: object, where: str) -> None:
    """Raises a ValueError unless a line holds a record of an evaluation."""
    if not isinstance(record, dict) or not _is_of_evaluation(record):
        raise ValueError(
            f"{where} is no record of an evaluation: choose another --output, or "
            "remove the line."
        )
    if "total_tokens" not in record:
        raise ValueError(
            f"{where} does not count the tokens that were put in, being of an earlier "
            "version: run `evaluate` again with another --output."
        )


def _is_of_evaluation(record: Record) -> bool:
    fields = {
        "id": str,
        "strategy": str,
        "problem": str,
        "thinking_tokens": int,
        "correct": bool,
    }
    return "predicted_tokens" in record and all(
        isinstance(record.get(name), kind) for name, kind in fields.items()
    )
