"""The public names: all there, nothing else, and imported when they are first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mlx_budget

PARTS = ("train", "evaluate", "server")
PACKAGES = ("mlx_budget", *(f"mlx_budget.{part}" for part in PARTS))
HEAVY = ("mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy")


def static_names(package: ModuleType) -> set[str]:
    """The names that a type checker sees a package import from its modules."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_there_is_what_all_promises(name):
    package = importlib.import_module(name)
    public = set(package.__all__)
    assert static_names(package) == public
    found = {n: getattr(package, n) for n in dir(package) if not n.startswith("_")}
    assert {n for n, value in found.items() if not isinstance(value, ModuleType)} == (
        public
    )
    for each in public:
        # What a type checker sees is what there is.
        assert found[each].__module__.startswith(f"{name}.")
        assert found[each].__name__ == each


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_can_be_imported_at_once(name):
    code = (
        f"import {name}\nfrom {name} import *\nassert {{*{name}.__all__}} <= {{*dir()}}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="'mlx_budget' has no attribute 'lod'"):
        _ = mlx_budget.lod
    with pytest.raises(ImportError, match="cannot import name 'lod'"):
        from mlx_budget import lod  # noqa: F401


def test_a_name_is_looked_up_once():
    _ = mlx_budget.load
    assert vars(mlx_budget)["load"] is mlx_budget.load


def heavy_imports(code: str, *args: str, **environment: str) -> list[str]:
    """What of the slow packages a piece of Python imports before it ends."""
    code = (
        "import atexit, sys\n"
        f"heavy = {HEAVY}\n"
        "atexit.register(lambda: print('IMPORTED', *(h for h in heavy if h in "
        f"sys.modules), file=sys.stderr))\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert done.returncode == 0, done.stderr
    label, *found = done.stderr.splitlines()[-1].split()
    assert label == "IMPORTED"
    return found


COMMANDS = (
    *("convert", "generate", "estimate", "chat", "traces", "train", "evaluate"),
    *("report", "serve"),
)
MAIN = "from mlx_budget.__main__ import main\nmain()"


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_waits_for_no_slow_import(args):
    assert heavy_imports(MAIN, *args) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_waits_for_no_slow_import(shell):
    words = {"COMP_WORDS": "mlx-budget generate --thi", "COMP_CWORD": "2"}
    assert heavy_imports(MAIN, _MLX_BUDGET_COMPLETE=f"{shell}_complete", **words) == []


@pytest.mark.parametrize(
    "code",
    [
        "import mlx_budget",
        "import mlx_budget; dir(mlx_budget)",
        "import mlx_budget.engine.settings, mlx_budget.engine.fields",
        "import mlx_budget.demo",
        "from mlx_budget.train import TrainOptions",
        "from mlx_budget.evaluate import EvaluateOptions; EvaluateOptions()",
        "import mlx_budget.server.budgets",
    ],
)
def test_light_modules_wait_for_no_slow_import(code):
    assert heavy_imports(code) == []


def test_what_is_slow_is_seen():
    assert "mlx_lm" in heavy_imports("from mlx_budget import load")
