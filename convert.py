"""Converts a checkpoint from a checkout: the same as `mlx-budget convert`."""

import sys

from mlx_budget.cli import cli

if __name__ == "__main__":
    cli(["convert", *sys.argv[1:]], prog_name="convert.py")
