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
from ..method.predictor import CONFIG_FILE, WEIGHTS_FILE
from . import checkpoints
from .cache import has_states
from .options import TrainOptions
from .picture import PICTURE_FILE
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
# What a run makes besides `training`, and within it before it is begun.
_MADE = (CURVES_FILE, REPORT_FILE, PICTURE_FILE, "README.md", WEIGHTS_FILE, CONFIG_FILE)
_MADE_WITHIN = (_OPTIONS_FILE, BEST_FILE, _STATES)
_OF_THE_FINDER = ".DS_Store"


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
    if options.cache_dir is not None:
        check_output_folder(options.cache_dir, "--cache-dir")
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

    def is_worth_keeping() -> bool:
        return is_begun(options) or (output / CONFIG_FILE).exists()

    made = [output / name for name in _MADE]
    with (
        full_disk_in_one_line(output, lambda: f"then {_next_command(options)}"),
        taken_back(work, *made, is_worth_keeping=is_worth_keeping),
    ):
        work.mkdir(parents=True, exist_ok=True)
        with in_use(work):
            for folder in (output, work):
                remove_unfinished(folder)
            if is_begun(options):
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
    may_be = {work.name, _OF_THE_FINDER}
    if (work / _OPTIONS_FILE).exists():
        may_be.update(_MADE)
    within = _names(work) - {_OF_THE_FINDER, *_MADE_WITHIN}
    return bool(_names(output) - may_be or within)


def _names(folder: Path) -> set[str]:
    """Of what is in a folder, unfinished files aside."""
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if not name.endswith(".incomplete")}


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
