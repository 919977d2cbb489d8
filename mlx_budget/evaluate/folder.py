"""The folder of an evaluation: what is in it, and whose run it is of.

Knows its files and their fields; nothing of how replies are made or graded.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files.outputs import check_output_folder
from ..files.records import Record, has_records, read_finished
from ..files.texts import read_json
from .options import EvaluateOptions
from .tasks import Problem, Task

RECORDS_FILE = "records.jsonl"
SETTINGS_FILE = "settings.json"

# What may grow, with the options that say how far.
_OPTIONS = {"problems": "--limit", "num_samples": "--num-samples"}

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
        _check_settings(output, task, settings_of(task, options, model_name))


def read_records(folder: Path) -> list[Record]:
    """The records of a folder, each once, in a fixed order.

    A run may be at work in it: what it has finished is read.

    Raises:
        ValueError: If there are none.
    """
    file = Path(folder) / RECORDS_FILE
    if not file.exists():
        raise ValueError(
            f"There is no {file}: name the --output folder of `mlx-budget evaluate`."
        )
    found = {record["id"]: record for record in read_finished(file, check_record)}
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
    return {
        "task": task.name,
        "problems": len(task.problems),
        "questions": _digest(task.problems),
        "instruction": task.instruction,
    }


def _digest(problems: Sequence[Problem]) -> str:
    asked = [asdict(problem) for problem in problems]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def settings_of(task: Task, options: EvaluateOptions, model_name: str) -> Settings:
    """The settings of a run."""
    return {"model": model_name, **_describe(task), **options.settings()}


def _check_settings(folder: Path, task: Task, settings: Settings) -> None:
    """Checks that a folder was begun with the same settings, or with less of a task.

    What it does not name had its default.
    """
    there = {**EvaluateOptions().settings(), **read_settings(folder)}
    for name in ("problems", "num_samples"):
        least, asked = there.get(name), settings[name]
        if isinstance(least, int) and asked < least:
            raise ValueError(
                f"{folder} is of a run with {name} {least}, not {asked}, and a run can "
                f"grow, but not shrink: set {_OPTIONS[name]} as before or higher, or "
                "choose another --output."
            )
        there[name] = asked
        if name == "problems" and _digest(task.problems[:least]) == there["questions"]:
            there["questions"] = settings["questions"]
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
