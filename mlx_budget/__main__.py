"""`mlx-budget`, also as `python -m mlx_budget`: where the command line begins."""

import os


def main(args: list[str] | None = None, name: str = "mlx-budget") -> None:
    """Runs a command and ends the process.

    Args:
        args (list[str], optional): In place of those of the process.
        name (str): What help calls the program.
    """
    try:
        from .interrupts import leave_at_once

        leave_at_once()
    except KeyboardInterrupt:
        os._exit(130)
    # Only now, since it takes a while.
    from .cli import cli

    cli(args, prog_name=name)


if __name__ == "__main__":
    main()
