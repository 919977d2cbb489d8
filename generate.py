"""Answers a prompt from a checkout: the same as `mlx-budget generate`."""

import sys

from mlx_budget.cli import cli

if __name__ == "__main__":
    cli(["generate", *sys.argv[1:]], prog_name="generate.py")
