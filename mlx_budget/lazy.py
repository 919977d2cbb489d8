"""Names of a package that are imported when they are first used (PEP 562).

Knows nothing of the names. Imports next to nothing itself.
"""

import importlib
import sys
from collections.abc import Callable


def import_when_used(
    package: str, modules: dict[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """What a package takes as its ``__getattr__`` and ``__dir__``.

    Args:
        package (str): The package's name.
        modules (dict[str, str]): By public name, the module within the package that
            has it.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        # Beside the public names, what Python puts into a package.
        return sorted(
            {
                *modules,
                *(
                    name
                    for name, value in vars(sys.modules[package]).items()
                    if name.startswith("__") or isinstance(value, type(sys))
                ),
            }
        )

    return get, names
