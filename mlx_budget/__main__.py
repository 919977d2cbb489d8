"""`mlx-budget`, also as `python -m mlx_budget`: where the command line begins."""

import os


def main(name: str = "mlx-budget", command: str | None = None) -> None:
    """Runs a command and ends the process.

    Args:
        name (str): What help calls the program.
        command (str, optional): The only command of the program, if it has one.
    """
    try:
        from .interrupts import leave_at_once

        leave_at_once()
    except KeyboardInterrupt:
        os._exit(130)
    # Only now, since it takes a while.
    from .cli import cli

    program = cli if command is None else cli.commands[command]
    program(prog_name=name)


if __name__ == "__main__":
    main()
