"""The version of the package, which is that of the tag it was built from.

Knows what is installed; nothing of repositories.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mlx-budget")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+not.installed"
