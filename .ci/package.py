"""Builds the wheel and the sdist, looks inside, and runs the wheel as a user would.

Knows what must be in them and what must not; nothing of how the package works.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_WHEEL = (
    "mlx_budget/__init__.py",
    "mlx_budget/py.typed",
    "mlx_budget/demo/problems.jsonl",
    "mlx_budget/server/page.html",
    "mlx_budget/demo/model/config.json",
    "mlx_budget/demo/model/tokenizer.json",
    "mlx_budget/demo/model/model.safetensors",
    "mlx_budget/demo/model/predictor.safetensors",
    "mlx_budget/demo/model/predictor_config.json",
)
IN_SDIST = (
    *IN_WHEEL,
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "tests/fixtures/bg-qwen2-tiny/golden.npz",
)
QUESTION, ANSWER = "7 + 1 + 5 - 9", "The answer is 4."


def run(*command: object, folder: Path = ROOT) -> str:
    """What a command prints; it must succeed, without our checkout on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    )
    return found.stdout


def check_names(archive: Path, names: set[str], wanted: tuple[str, ...]) -> None:
    if missing := [name for name in wanted if name not in names]:
        raise SystemExit(f"{archive.name} does not hold {', '.join(missing)}.")


def check_wheel(wheel: Path) -> None:
    """Checks that the wheel holds the package with the demo, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    check_names(wheel, names, IN_WHEEL)
    others = [
        n for n in sorted(names) if not n.startswith(("mlx_budget/", "mlx_budget-"))
    ]
    if others:
        raise SystemExit(f"{wheel.name} also holds {', '.join(others)}.")


def check_sdist(sdist: Path) -> None:
    """Checks that the sdist holds what it takes to build and to test."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    check_names(sdist, names, IN_SDIST)


def try_wheel(wheel: Path, folder: Path) -> None:
    """Runs the commands of an installed wheel, in an environment of its own."""
    venv.create(folder / "venv", with_pip=True)
    bin_folder = folder / "venv" / "bin"
    run(bin_folder / "pip", "install", wheel)
    command = bin_folder / "mlx-budget"
    version = run(command, "--version", folder=folder)
    if version.split()[-1] != wheel.name.split("-")[1]:
        raise SystemExit(f"{wheel.name} says that it is {version}")
    reply = run(command, "generate", "-p", QUESTION, folder=folder)
    if not reply.strip().endswith(ANSWER):
        raise SystemExit(f"{wheel.name} answers {QUESTION} with:\n{reply}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The wheel is built from the sdist, which proves that the sdist is whole.
        run(sys.executable, "-m", "build", "--outdir", folder / "dist")
        (wheel,) = (folder / "dist").glob("*.whl")
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        check_wheel(wheel)
        check_sdist(sdist)
        try_wheel(wheel, folder)
        sizes = [f"{f.name}: {f.stat().st_size / 1e6:.1f} MB" for f in (wheel, sdist)]
        print("\n".join(sizes))


if __name__ == "__main__":
    main()
