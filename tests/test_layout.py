"""The imports of the package run downwards, without circles, as its layout promises."""

import ast
import graphlib
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlx_budget"

# Lowest first. Two parts on the same floor do not know each other.
FLOORS = (
    ("lazy", "interrupts", "installing", "version"),
    ("files", "demo", "ranks"),
    ("method",),
    ("engine",),
    ("models",),
    ("planning",),
    ("train", "evaluate", "server"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
# Folders of the repository that are not in the wheel.
OUTSIDE = ("recipes", "benchmarks", "tests")


def modules_of(package: Path) -> dict[str, Path]:
    """The files of a package by the full names of their modules."""
    modules = {}
    for file in package.rglob("*.py"):
        path = file.parent if file.name == "__init__.py" else file.with_suffix("")
        modules[".".join(path.relative_to(package.parent).parts)] = file
    return modules


def imported_names(module: str, file: Path) -> Iterator[str]:
    """The full names that a module imports, wherever in it the imports stand."""
    parent = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), parent)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imports_within(package: Path) -> dict[str, set[str]]:
    """For each module of a package the others of it that it imports."""
    modules = modules_of(package)

    def owner(name: str) -> str | None:
        """The module that is imported for a name, which may be an object of it."""
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or None

    return {
        module: {owner(name) for name in imported_names(module, file)} - {None, module}
        for module, file in modules.items()
    }


def part_of(module: str) -> str:
    """The part of the package, a folder or a file of its top, to which it belongs."""
    _, _, name = module.partition(".")
    return name.split(".")[0] or "__init__"


def floor_of(module: str) -> int:
    (floor,) = (i for i, parts in enumerate(FLOORS) if part_of(module) in parts)
    return floor


def upward_imports(package: Path) -> list[str]:
    """The imports that lead to another part of the same floor or of one above."""
    return [
        f"{module} imports {other}"
        for module, others in sorted(imports_within(package).items())
        for other in sorted(others)
        if part_of(other) != part_of(module) and floor_of(other) >= floor_of(module)
    ]


def circle(package: Path) -> list[str]:
    """Modules of which each is imported by the next, back to the first, if any are."""
    try:
        graphlib.TopologicalSorter(imports_within(package)).prepare()
    except graphlib.CycleError as e:
        return e.args[1]
    return []


def imports_from_outside(package: Path) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, file in modules_of(package).items()
        for name in imported_names(module, file)
        if name.split(".")[0] in OUTSIDE
    ]


@pytest.fixture
def write(tmp_path: Path):
    """Writes a package of some modules, given as paths and sources."""

    def write(modules: dict[str, str]) -> Path:
        package = tmp_path / "mlx_budget"
        for path, source in {"__init__.py": "", **modules}.items():
            file = package / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return package

    return write


def test_every_top_level_name_has_its_floor() -> None:
    assert {part_of(module) for module in modules_of(PACKAGE)} == {
        part for floor in FLOORS for part in floor
    }


def test_no_import_runs_upwards() -> None:
    assert upward_imports(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(PACKAGE) == []


def test_the_package_does_without_what_is_not_in_the_wheel() -> None:
    assert imports_from_outside(PACKAGE) == []


def test_demo_holds_constants_alone() -> None:
    body = ast.parse((PACKAGE / "demo" / "__init__.py").read_text()).body
    docstring, *others = body
    assert isinstance(docstring, ast.Expr)
    assert others
    assert {type(o) for o in others} <= {ast.Import, ast.ImportFrom, ast.Assign}


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        (
            "method/gamma.py",
            "from ..engine.sampler import sample",
            ["mlx_budget.method.gamma imports mlx_budget.engine.sampler"],
        ),
        (
            "method/gamma.py",
            "def late():\n    import mlx_budget.engine.sampler as s\n    return s",
            ["mlx_budget.method.gamma imports mlx_budget.engine.sampler"],
        ),
        (
            "engine/__init__.py",
            "from .. import cli",
            ["mlx_budget.engine imports mlx_budget.cli"],
        ),
        (
            "evaluate/summary.py",
            "from ..train import report",
            ["mlx_budget.evaluate.summary imports mlx_budget.train.report"],
        ),
        (
            "server/run.py",
            "from mlx_budget import load",
            ["mlx_budget.server.run imports mlx_budget"],
        ),
        (
            "demo/__init__.py",
            "import mlx_budget.files.hub",
            ["mlx_budget.demo imports mlx_budget.files.hub"],
        ),
        ("engine/batch.py", "from ..method import gamma\nfrom . import sampler", []),
        ("cli/options.py", "from .. import load\nfrom ..train.report import a", []),
    ],
)
def test_an_import_upwards_or_sideways_is_found(write, path, source, found) -> None:
    others = {
        "files/hub.py": "",
        "method/gamma.py": "",
        "engine/sampler.py": "",
        "train/report.py": "",
        "cli/__init__.py": "",
    }
    assert upward_imports(write({**others, path: source})) == found


def test_a_circle_is_found(write) -> None:
    late = "def late():\n    from .b import x\n    return x"
    package = write({"engine/a.py": late, "engine/b.py": "from .a import late"})
    assert set(circle(package)) == {"mlx_budget.engine.a", "mlx_budget.engine.b"}
    assert circle(write({"engine/b.py": "import math"})) == []


def test_an_import_from_outside_is_found(write) -> None:
    package = write({"demo/__init__.py": "from recipes.demo import make"})
    assert imports_from_outside(package) == [
        "mlx_budget.demo imports recipes.demo.make"
    ]


def test_no_two_test_files_have_the_same_name():
    """pytest imports them by their names alone."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
