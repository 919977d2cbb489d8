"""`python -m mlx_budget`: the same as `mlx-budget`."""

from .cli import cli

if __name__ == "__main__":
    cli(prog_name="mlx-budget")
