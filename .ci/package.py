"""Builds the wheel and the sdist, looks inside, and runs the wheel as a user would.

For a release it also holds the version against the tag, and takes what is new from
CHANGELOG.md. Knows what must be in them and what must not; nothing of how the package
works. Needs build, twine and check-wheel-contents.
"""

import argparse
import os
import re
import shutil
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


def notes_of(version: str, changelog: str) -> str:
    """What CHANGELOG.md says of a release."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)
    titles = dict(zip(parts[1::2], parts[2::2], strict=True))
    for title, text in titles.items():
        if re.fullmatch(re.escape(version) + r" - \d{4}-\d\d-\d\d", title):
            return text.strip() + "\n"
    raise SystemExit(
        f"CHANGELOG.md has no section '## {version} - <date>': name 'Unreleased' so."
    )


def check_tag(tag: str, wheel: Path) -> str:
    """The version that a tag names, which must be the wheel's."""
    version = tag.removeprefix("v")
    if tag == version or wheel.name.split("-")[1] != version:
        raise SystemExit(f"The tag {tag} does not name the version of {wheel.name}.")
    return version


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


def read_arguments() -> argparse.Namespace:
    """What to do beside building and trying."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tag", help="Of the release; its version must be the tag's.")
    parser.add_argument("--output", type=Path, help="Folder to put both files into.")
    parser.add_argument("--notes", type=Path, help="File for what is new, with --tag.")
    return parser.parse_args()


def main() -> None:
    asked = read_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The wheel is built from the sdist, which proves that the sdist is whole.
        run(sys.executable, "-m", "build", "--outdir", folder / "dist")
        (wheel,) = (folder / "dist").glob("*.whl")
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        run(sys.executable, "-m", "check_wheel_contents", wheel)
        check_wheel(wheel)
        check_sdist(sdist)
        if asked.tag is not None:
            version = check_tag(asked.tag, wheel)
            notes = notes_of(version, (ROOT / "CHANGELOG.md").read_text("utf-8"))
            if asked.notes is not None:
                asked.notes.write_text(notes, encoding="utf-8")
        try_wheel(wheel, folder)
        if asked.output is not None:
            asked.output.mkdir(parents=True, exist_ok=True)
            for file in (wheel, sdist):
                shutil.copy(file, asked.output)
        sizes = [f"{f.name}: {f.stat().st_size / 1e6:.1f} MB" for f in (wheel, sdist)]
        print("\n".join(sizes))


if __name__ == "__main__":
    main()
