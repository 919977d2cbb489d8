"""The folder of an evaluation: what is in it, and whose run it is of.

Knows its files and their fields; nothing of how replies are made or graded.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..files.outputs import check_output_folder
from ..files.records import Record, has_records, read_finished
from ..files.texts import read_json
from ..method.predictor import Predictor
from .options import EvaluateOptions
from .strategies import STRATEGIES
from .tasks import Problem, Task

RECORDS_FILE = "records.jsonl"
SETTINGS_FILE = "settings.json"

# What may grow, with the options that say how far.
_OPTIONS = {"problems": "--limit", "num_samples": "--num-samples"}

# What all records of a folder have in common, by name.
Settings = dict[str, Any]
_NOT_LOADED: Settings = {}
_GUIDED = tuple(n for n, s in STRATEGIES.items() if s.is_guided or n == "prior")


def check_output(
    output: Path,
    task: Task,
    options: EvaluateOptions,
    model_name: str,
    loaded: Settings = _NOT_LOADED,
) -> None:
    """Checks the folder to write before the model is read; makes nothing.

    What there is without a record of a reply counts as nothing.

    Args:
        output (Path): The folder.
        task (Task): The questions.
        options (EvaluateOptions): Of the run.
        model_name (str): What tells the model from others.
        loaded (dict): Settings that are known once the model is loaded.

    Raises:
        ValueError: If it cannot be written, or its records are of another run.
    """
    check_output_folder(output)
    if not has_records(output / RECORDS_FILE):
        return
    if not (output / SETTINGS_FILE).exists():
        if any(True for _ in read_finished(output / RECORDS_FILE, check_record)):
            raise ValueError(
                f"{output} has records and no {SETTINGS_FILE} that tells whose they "
                "are: choose another --output."
            )
        return
    settings = {**settings_of(task, options, model_name), **loaded}
    _check_settings(output, task, settings)


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
    settings = read_json(file, f"There is no {file}: name another folder.")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a JSON object.")
    return settings


def _describe(task: Task) -> Settings:
    """A task in a few words, and a digest of its questions and answers."""
    return {
        "task": task.name,
        "problems": len(task.problems),
        "questions": _digest_of(task.problems),
        "instruction": task.instruction,
    }


def _digest_of(problems: Sequence[Problem]) -> str:
    return digest([asdict(problem) for problem in problems])


def digest(value: object) -> str:
    """What tells a value that JSON can hold from others."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def fingerprint(predictor: Predictor | bool | None) -> str | None:
    """What tells a predictor from others, by its arrays; None without one."""
    if not isinstance(predictor, Predictor):
        return None
    found = hashlib.sha256()
    for name, array in sorted(predictor.tensors().items()):
        found.update(f"{name} {array.shape} {array.dtype}".encode())
        found.update(np.array(array.reshape(-1).view(mx.uint8)).tobytes())
    return found.hexdigest()[:12]


def settings_of(task: Task, options: EvaluateOptions, model_name: str) -> Settings:
    """The settings of a run, but for its predictor."""
    return {"model": model_name, **_describe(task), **options.settings()}


def _check_settings(folder: Path, task: Task, settings: Settings) -> None:
    """Checks that a folder was begun with the same settings, or with less of a task.

    What it does not name had its default.
    """
    there = {**EvaluateOptions().settings(), **read_settings(folder)}
    _check_predictor(folder, there, settings)
    for name in ("problems", "num_samples"):
        least, asked = there.get(name), settings[name]
        if isinstance(least, int) and asked < least:
            raise ValueError(
                f"{folder} is of a run with {name} {least}, not {asked}, and a run can "
                f"grow, but not shrink: set {_OPTIONS[name]} as before or higher, or "
                "choose another --output."
            )
        there[name] = asked
        if name == "problems" and _digest_of(task.problems[:least]) == there.get(
            "questions"
        ):
            there["questions"] = settings["questions"]
    for name, value in json.loads(json.dumps(settings)).items():
        if there.get(name) != value:
            raise ValueError(
                f"{folder} is of a run with {name} {there.get(name)!r}, not "
                f"{value!r}: choose another --output, or set it as before."
            )


def _check_predictor(folder: Path, there: Settings, settings: Settings) -> None:
    """Checks that one predictor has guided, and foretold lengths, all along.

    A run that was begun without one may get one as long as nothing was guided.
    """
    if "predictor" not in settings:
        return
    now = settings["predictor"]
    before = there.get("predictor", now)  # which earlier versions did not tell
    if before is None and now is not None:
        records = read_finished(folder / RECORDS_FILE, check_record)
        is_free = not any(r["strategy"] in _GUIDED for r in records)
        before = now if is_free else None
    if before != now:
        raise ValueError(
            f"{folder} is of a run with another predictor: name the one that it was "
            "begun with, or choose another --output."
        )
    there["predictor"] = now


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
        "budget": str | None,
        "seconds": int | float,
    }
    numbers = ("thinking_budget", "predicted_tokens")
    return all(
        isinstance(record.get(name), kind) for name, kind in fields.items()
    ) and all(
        name in record and isinstance(record[name], int | float | None)
        for name in numbers
    )
