"""The folder in which the program keeps what it can do without.

Knows the places of systems; nothing of what is kept.
"""

import os
from pathlib import Path

VARIABLE = "MLX_BUDGET_CACHE"


def user_cache() -> Path:
    """The folder of this user; it may not be there yet.

    It is that of the environment variable ``MLX_BUDGET_CACHE``, or ``mlx-budget`` in
    ``XDG_CACHE_HOME`` or in ``~/.cache``.
    """
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "mlx-budget"
