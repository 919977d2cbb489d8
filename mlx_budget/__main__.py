"""`mlx-budget`, also as `python -m mlx_budget`: where the command line begins."""

import os


def main() -> None:
    """Runs a command and ends the process."""
    try:
        from .interrupts import leave_at_once

        leave_at_once()
    except KeyboardInterrupt:
        os._exit(130)
    # Only now, since it takes a while.
    from .cli import cli

    cli(prog_name="mlx-budget")


if __name__ == "__main__":
    main()
