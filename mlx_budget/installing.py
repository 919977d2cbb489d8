"""How to install the package and its extras, as messages and model cards tell it.

The name is not ours on the package index yet: whoever asked the index for it might get
somebody else's code. Until it is, the repository is named. Knows nothing else.
"""

REPOSITORY = "https://github.com/mlx-budget/mlx-budget"


def install_command(extra: str = "", is_upgrade: bool = False) -> str:
    """The command that installs the package.

    Args:
        extra (str): Name of an extra.
        is_upgrade (bool): Whether a newer release is wanted.
    """
    name = f"mlx-budget[{extra}]" if extra else "mlx-budget"
    option = "-U " if is_upgrade else ""
    return f'pip install {option}"{name} @ git+{REPOSITORY}"'
