"""Installs the package in each way that the README names, and asks it a question.

The blocks are run as they stand, in zsh if it is there, with the address of the
repository leading to this checkout. Knows how the README fences its code; nothing of
the package. Needs git, uv and pipx, and the package index.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/mlx-budget/mlx-budget"
WAYS = ("uv tool install", "pipx install", "git clone")
QUESTION, ANSWER = "7 + 1 + 5 - 9", "The answer is 4."


def blocks() -> list[str]:
    """The README's shell blocks that install the package from its repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    installing = [block for block in found if block.startswith(WAYS)]
    if len(installing) != len(WAYS):
        raise SystemExit(f"The README has {len(installing)} ways to install, not 3.")
    return installing


def environment(folder: Path) -> dict[str, str]:
    """Variables under which tools install into a folder, from this checkout."""
    programs = folder / "bin"
    return {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        # For this process and what it starts: no file of the user's is changed.
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.file://{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
        "UV_TOOL_DIR": str(folder / "uv"),
        "UV_TOOL_BIN_DIR": str(programs),
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(programs),
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
    }


def main() -> None:
    if not (ROOT / ".git").exists():
        print("This is no checkout of the repository: nothing to install from.")
        return
    shell = shutil.which("zsh") or shutil.which("bash")
    for block in blocks():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # The question is asked where the block leaves its reader.
            script = f'set -e\n{block}mlx-budget generate --prompt "{QUESTION}"\n'
            found = subprocess.run(
                [shell, "-c", script],
                cwd=folder,
                env=environment(folder),
                stdout=subprocess.PIPE,
                text=True,
            )
        first = block.splitlines()[0]
        if found.returncode or not found.stdout.rstrip().endswith(ANSWER):
            raise SystemExit(f"{first} leads to:\n{found.stdout}")
        print(f"{first}: {ANSWER}")


if __name__ == "__main__":
    main()
