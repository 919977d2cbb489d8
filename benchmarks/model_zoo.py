"""Tries the hidden-state recorder on every architecture of the installed mlx-lm.

Each model module is built at a tiny size, in a process of its own, and the recorder is
compared with what the unrecorded model shows. The configurations are those of mlx-lm's
own tests (`tests/test_models.py` of its source distribution, fetched with pip, or
``--tests``), with a few of our own. `model_zoo_ranks` does the same on several ranks.
Knows nothing of predictors, budgets or tokenizers.
"""

import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import pkgutil
import resource
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import click
import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache

from mlx_budget.engine.recorder import HiddenStateRecorder
from model_zoo_configs import CONFIGS

TOKENS = [[1, 3], [2, 4]]  # two steps of two rows
# The same computation must give the same numbers; a batch sums in another order than
# a row alone.
SAME, REORDERED = 1e-5, 1e-4


class Mismatch(Exception):
    """What the recorder got wrong."""


@dataclass
class Outcome:
    """The line of one architecture: ``reason`` says why it fails, or what was left."""

    module: str
    model_type: str = ""
    result: str = "fails"
    reason: str = ""


@dataclass
class Seen:
    """What the model shows without a recorder, in the last forward pass."""

    layer_inputs: dict[int, mx.array] = field(default_factory=dict)  # by layer's id
    final_norm: mx.array | None = None


def check_recorder(model: nn.Module) -> str:
    """Compares the recorder with the unrecorded model.

    Returns:
        str: A remark, or nothing.

    Raises:
        Mismatch: If the recorder is wrong; its own ValueError if it refuses the model.
    """
    model.eval()
    model.update(tree_map(to_float32, model.parameters()))
    rows = [[[step[row]] for step in TOKENS] for row in range(2)]
    with watched(model) as seen:
        try:
            plain = run_steps(model, rows[0])
        except Exception as error:
            raise Mismatch(f"the model itself does not run here: {error}") from error
    before = [type(module) for module in model.modules()]
    names = [name for name, _ in tree_flatten(model.parameters())]
    recorder = HiddenStateRecorder.acquire(model)
    try:
        recorded = run_steps(model, rows[0])
        states = recorder.last.states([0])
        compare_logits(plain, recorded)
        compare_states(model, seen, states)
        if [name for name, _ in tree_flatten(model.parameters())] != names:
            raise Mismatch("the names of the parameters change")
        run_steps(model, rows[1])
        singles = [states, recorder.last.states([0])]
        remark = compare_batch(model, recorder, singles)
    finally:
        recorder.release()
    if [type(module) for module in model.modules()] != before:
        raise Mismatch("the classes of the modules are not put back")
    return remark


def to_float32(weight: mx.array) -> mx.array:
    floating = mx.issubdtype(weight.dtype, mx.floating)
    return weight.astype(mx.float32) if floating else weight


def run_steps(model: nn.Module, steps: list[list[int]]) -> list[mx.array]:
    """Logits of single-token steps from an empty cache, each (B, 1, V)."""
    cache = make_prompt_cache(model)
    logits = [model(mx.array(step)[:, None], cache=cache) for step in steps]
    mx.eval(logits)
    return logits


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """Notes layer inputs and norms by patching classes and functions."""
    seen = Seen()
    layers = {id(layer) for layer in model.layers}
    inside = {id(module) for layer in model.layers for module in layer.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]
    norms = {id(m): m for m in outside if "norm" in type(m).__name__.lower()}

    def note_layer(self: nn.Module, values: list, out: mx.array | None) -> None:
        if id(self) in layers:
            seen.layer_inputs[id(self)] = values[0]

    def note_norm(self: nn.Module, values: list, out: mx.array | None) -> None:
        if id(self) in norms:
            seen.final_norm = out

    def note_function(x: mx.array, values: list, out: mx.array | None) -> None:
        seen.final_norm = out

    with contextlib.ExitStack() as stack:
        spots: list[tuple[object, str, Callable]] = [
            (mx.fast, name, note_function) for name in ("rms_norm", "layer_norm")
        ]
        for kind in {type(layer) for layer in model.layers}:
            spots.append((kind, "__call__", note_layer))
        for kind in {type(norm) for norm in norms.values()}:
            spots.append((kind, "__call__", note_norm))
        for owner, name, note in spots:
            spied = spy(getattr(owner, name), note)
            stack.enter_context(mock.patch.object(owner, name, spied))
        yield seen


def spy(function: Callable, note: Callable) -> Callable:
    @functools.wraps(function)
    def spied(first, *args, **kwargs):
        # Arrays of our own: the model may change its own in place.
        values = [v for v in (*args, *kwargs.values()) if isinstance(v, mx.array)]
        values = [mx.array(value) for value in values]
        out = function(first, *args, **kwargs)
        note(first, values, mx.array(out) if isinstance(out, mx.array) else None)
        return out

    return spied


def close(a: mx.array, b: mx.array, tolerance: float) -> bool:
    return bool(mx.allclose(a, b, rtol=tolerance, atol=tolerance))


def compare_logits(plain: list[mx.array], recorded: list[mx.array]) -> None:
    for a, b in zip(plain, recorded, strict=True):
        if not close(a, b, SAME):
            raise Mismatch(f"the logits change by {float(abs(a - b).max()):.2g}")


def compare_states(model: nn.Module, seen: Seen, states: mx.array) -> None:
    n = len(model.layers)
    if states.ndim != 3 or states.shape[:2] != (1, n + 1):
        raise Mismatch(f"the states are {states.shape}, not (1, {n + 1}, D)")
    expected = [seen.layer_inputs.get(id(layer)) for layer in model.layers]
    expected.append(seen.final_norm)
    for i, want in enumerate(expected):
        name = f"the input of layer {i}" if i < n else "the final norm's output"
        if want is None:
            raise Mismatch(f"{name} was recorded but never passed")
        got = states[:, i : i + 1]
        if want.shape != got.shape:
            raise Mismatch(f"{name} is {want.shape}, recorded as {got.shape}")
        if not close(got, want, SAME):
            raise Mismatch(f"{name} is off by {float(abs(got - want).max()):.2g}")


def compare_batch(
    model: nn.Module, recorder: HiddenStateRecorder, singles: list[mx.array]
) -> str:
    try:
        run_steps(model, TOKENS)
    except Exception as error:
        return f"the model takes no batch here: {one_line(error)}"
    for i, single in enumerate(singles):
        row = recorder.last.states([i])
        if not close(row, single, REORDERED):
            worst = float(abs(row - single).max())
            raise Mismatch(
                f"a row of a batch differs from the row alone by {worst:.2g}"
            )
    return ""


def check_module(name: str, tests: Path) -> Outcome | None:
    """Checks every configuration at hand of one module; None if it is no model."""
    # mlx-lm's olmo module ends the process without this package, which it never uses.
    sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))
    module = importlib.import_module(f"mlx_lm.models.{name}")
    if not (hasattr(module, "Model") and hasattr(module, "ModelArgs")):
        return None
    outcome = Outcome(name)
    checked = 0

    def check(model: nn.Module) -> None:
        nonlocal checked
        outcome.model_type = model.model_type
        outcome.reason = check_recorder(model)
        checked += 1

    try:
        if name in CONFIGS:
            config = {"model_type": name, **CONFIGS[name]}
            check(module.Model(module.ModelArgs.from_dict(config)))
        else:
            run_mlx_lm_tests(name, module, tests, check)
        if not checked:
            raise Mismatch("no configuration at hand")
        outcome.result = "ok"
    except Exception as error:
        outcome.reason = one_line(error)
    return outcome


def run_mlx_lm_tests(
    name: str, module: types.ModuleType, folder: Path, check: Callable
) -> None:
    """Calls ``check`` on the models that mlx-lm's tests build of one architecture."""
    sys.path.insert(0, str(folder))
    tests = importlib.import_module("test_models")
    failures: list[Exception] = []

    def model_test_runner(self, model, *args) -> None:
        if isinstance(model, module.Model):
            try:
                check(model)
            except Exception as error:
                failures.append(error)

    def import_module(wanted: str) -> types.ModuleType:
        if wanted != module.__name__:
            raise unittest.SkipTest("another architecture")
        return module

    tests.TestModels.model_test_runner = model_test_runner
    # One test of mlx-lm imports a list of architectures by name: leave out the others.
    tests.importlib = types.SimpleNamespace(import_module=import_module)
    suite = unittest.TestSuite()
    for method, function in vars(tests.TestModels).items():
        code = getattr(function, "__code__", None)
        if method.startswith("test") and "model_test_runner" in code.co_names:
            if name in code.co_names or "import_module" in code.co_names:
                suite.addTest(tests.TestModels(method))
    with contextlib.redirect_stdout(None):
        result = suite.run(unittest.TestResult())
    for _, traceback in [] if failures else result.errors:
        failures.append(Mismatch(traceback.strip().splitlines()[-1]))
    if failures:
        raise failures[0]


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, Mismatch) else f"{type(error).__name__}: {text}"


def work(name: str, tests: Path, memory_gb: float, connection: Connection) -> None:
    """The child process of one architecture: sends its outcome, or None."""
    if sys.platform == "linux" and mx.default_device() == mx.cpu:
        limit = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.stderr = open(os.devnull, "w")
    connection.send(check_module(name, tests))


def run_apart(
    name: str, tests: Path, memory_gb: float, timeout: float
) -> Outcome | None:
    """Checks one module in a child process, which may die without harm."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    child = spawn.Process(target=work, args=(name, tests, memory_gb, sender))
    child.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        child.kill()
        return Outcome(name, reason=f"not done after {timeout:g} s")
    except EOFError:
        child.join()
        return Outcome(name, reason=f"its process died ({child.exitcode})")
    finally:
        child.join()


def fetch_tests(folder: Path) -> Path:
    """The folder of tests of the installed mlx-lm, from its source distribution."""
    package = f"mlx-lm=={version('mlx-lm')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise click.ClickException(f"pip could not download {package}: {reason}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("*/tests"))


@click.command()
@click.argument("modules", nargs=-1)
@click.option(
    "--tests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with mlx-lm's test_models.py; fetched with pip if left out.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--memory-gb",
    default=4.0,
    show_default=True,
    help="Address space of each child process (Linux without a GPU only).",
)
@click.option("--timeout", default=120.0, show_default=True, help="Seconds for each.")
def main(
    modules: tuple[str, ...],
    tests: Path | None,
    json_file: Path | None,
    memory_gb: float,
    timeout: float,
) -> None:
    """Try the recorder on MODULES of mlx_lm.models, all of them if none is named."""
    names = [module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)]
    if unknown := set(modules) - set(names):
        raise click.BadParameter(f"mlx_lm.models has no {', '.join(sorted(unknown))}.")
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        tests = tests or fetch_tests(Path(temporary))
        for name in modules or names:
            outcome = run_apart(name, tests.resolve(), memory_gb, timeout)
            if outcome is None:
                continue
            outcomes.append(outcome)
            result = ": ".join(filter(None, [outcome.result, outcome.reason]))
            click.echo(f"{name:22} {outcome.model_type:22} {result}")
    if json_file:
        json_file.write_text(json.dumps([asdict(o) for o in outcomes], indent=2) + "\n")
    good = sum(outcome.result == "ok" for outcome in outcomes)
    click.echo(
        f"{len(outcomes)} architectures of mlx-lm {version('mlx-lm')}: {good} ok, "
        f"{len(outcomes) - good} fail."
    )


if __name__ == "__main__":
    main()
