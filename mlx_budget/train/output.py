"""The folder that `train` makes: whether it may be written, and how its run goes on.

A run is begun once it has hidden states of a record or a checkpoint to go on from. What
a killed run leaves before that counts as nothing. Knows files and options; nothing of
training.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..files.atomic import full_disk_in_one_line, remove_unfinished
from ..files.locks import in_use
from ..files.outputs import check_output_folder, taken_back
from ..files.texts import read_json, write_json
from ..method.predictor import CONFIG_FILE
from . import checkpoints
from .cache import has_states
from .options import TrainOptions
from .report import REPORT_FILE, Report

CURVES_FILE, BEST_FILE = "curves.jsonl", "best.safetensors"

_OPTIONS_FILE, _STATES = "options.json", "states"
# Options that may change when a run goes on, since its result does not depend on them.
_FREE_OPTIONS = (
    "resume",
    "output",
    "cache_dir",
    "save_every",
    "prefill_step_size",
    "strict",
    "trust_remote_code",
)
# What may be in the folder of a run that was killed before it was begun, and what the
# Finder puts everywhere.
_OF_OUTPUT = {"training", CURVES_FILE, ".DS_Store"}
_OF_WORK = {_OPTIONS_FILE, BEST_FILE, _STATES, ".DS_Store"}


def work_folder(options: TrainOptions) -> Path:
    """Where a run keeps what it needs to go on."""
    return options.output / "training"


def states_folder(options: TrainOptions) -> Path:
    """Where a run keeps hidden states."""
    return options.cache_dir or work_folder(options) / _STATES


def is_begun(options: TrainOptions) -> bool:
    """Whether the output folder holds a run to go on with."""
    work = work_folder(options)
    return has_states(work / _STATES) or checkpoints.has_any(work)


def is_finished(options: TrainOptions) -> bool:
    """Whether the run to go on with has made its predictor already.

    Raises:
        ValueError: If the run there had other options.
    """
    if not options.resume or not (options.output / CONFIG_FILE).exists():
        return False
    _check_options(options)
    return True


def finished_report(options: TrainOptions) -> Report:
    """The report of a run that is finished; empty if it was removed."""
    file = options.output / REPORT_FILE
    report = read_json(file, f"There is no {file}.") if file.exists() else {}
    return report if isinstance(report, dict) else {}


def check_output(options: TrainOptions) -> None:
    """Checks the output folder before time goes into anything else; makes nothing.

    Raises:
        ValueError: If it holds something else, may not be written, or is in use, or
            the run in it had other options.
    """
    output, work = options.output, work_folder(options)
    check_output_folder(output)
    if (output / CONFIG_FILE).exists():
        raise ValueError(
            f"{output} holds a predictor already: choose another --output, or remove "
            "it first."
        )
    begun = is_begun(options)
    if options.resume and not begun and not work.is_dir():
        raise ValueError(f"{output} holds no run to go on with: leave out --resume.")
    if (begun and not options.resume) or (not begun and _holds_others(output, work)):
        raise ValueError(
            f"{output} is not empty: choose another --output"
            + (", or go on with its run with --resume." if begun else ".")
        )
    if begun:
        _check_options(options)
    if work.is_dir():
        with in_use(work):
            pass


@contextmanager
def output_folder(options: TrainOptions) -> Iterator[None]:
    """The output folder, for one run alone, with the options that it began with.

    If the block fails before the run is begun, nothing is left of it.

    Raises:
        ValueError: As `check_output`, or if the disk is full.
    """
    output, work = options.output, work_folder(options)

    def begun() -> bool:
        return is_begun(options)

    with (
        full_disk_in_one_line(output, lambda: f"then {_next_command(options)}"),
        taken_back(work, output / CURVES_FILE, is_worth_keeping=begun),
    ):
        work.mkdir(parents=True, exist_ok=True)
        with in_use(work):
            for folder in (output, work):
                remove_unfinished(folder)
            if begun():
                _check_options(options)
            else:
                write_json(work / _OPTIONS_FILE, _as_json(options))
            yield


def how_to_go_on(options: TrainOptions) -> str:
    """What to tell the user of a run that was stopped."""
    if is_begun(options):
        return (
            f"Stopped; what there is so far is in {options.output}: "
            f"{_next_command(options)}."
        )
    kept = ""
    if has_states(states_folder(options)):
        kept = f" The hidden states in {options.cache_dir} are used again."
    return (
        f"Stopped before there was anything to keep in {options.output}: "
        f"{_next_command(options)}.{kept}"
    )


def _next_command(options: TrainOptions) -> str:
    if not is_begun(options):
        return "run the same again" + " without --resume" * options.resume
    if options.resume:
        return "run the same again, and it goes on from there"
    return "run the same again with --resume, and it goes on from there"


def _holds_others(output: Path, work: Path) -> bool:
    """Whether more is there than a run that was never begun may have left."""
    found = {p.name for p in output.iterdir()} if output.is_dir() else set()
    within = {p.name for p in work.iterdir()} if work.is_dir() else set()
    unfinished = {name for name in within if name.endswith(".incomplete")}
    return not (found <= _OF_OUTPUT and within - unfinished <= _OF_WORK)


def _as_json(options: TrainOptions) -> dict:
    return json.loads(json.dumps(asdict(options), default=str))


def _check_options(options: TrainOptions) -> None:
    """Checks that the run there was begun with the same options."""
    file = work_folder(options) / _OPTIONS_FILE
    if not file.exists():
        return
    theirs = read_json(file, f"There is no {file}.")
    theirs = theirs if isinstance(theirs, dict) else {}
    for name, value in _as_json(options).items():
        if name in _FREE_OPTIONS or value == theirs.get(name):
            continue
        if name == "data" and _is_same_path(value, theirs.get(name)):
            continue
        raise ValueError(
            f"The run in {options.output} was begun with {name} = "
            f"{theirs.get(name)!r}, not {value!r}: go on with the same options, or "
            "choose another --output."
        )


def _is_same_path(one: object, other: object) -> bool:
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])
