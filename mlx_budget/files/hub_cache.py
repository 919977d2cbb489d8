"""What of the Hub lies in the user's cache.

Knows where the Hub's client keeps repositories, and reads names alone; it neither
imports that client, which takes a while, nor asks the Hub.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def hub_cache() -> Path:
    """The folder in which the Hub's client keeps what it has downloaded."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if own := os.environ.get(variable):
            return Path(own).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared).expanduser() if shared else Path.home() / ".cache"
    return base / "huggingface" / "hub"


def cached_snapshot(name: str) -> Path | None:
    """The folder of a model's files as far as they are there, the latest first.

    Args:
        name (str): Hub name, such as "owner/name".
    """
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    try:
        folders = [folder for folder in snapshots.iterdir() if folder.is_dir()]
    except OSError:
        return None
    main = repository / "refs" / "main"
    if main.is_file():
        commit = main.read_text(encoding="utf-8", errors="replace").strip()
        folders = [f for f in folders if f.name == commit] or folders
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def cached_models(file: str = "config.json") -> Iterator[str]:
    """Hub names of the models in the cache that hold a file, sorted.

    Args:
        file (str): Its name.
    """
    try:
        folders = sorted(hub_cache().glob("models--*"))
    except OSError:
        return
    for folder in folders:
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = cached_snapshot(name)
        if snapshot is not None and (snapshot / file).exists():
            yield name
