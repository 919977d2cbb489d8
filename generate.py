"""Answers a prompt from a checkout: the same as `mlx-budget generate`."""

from mlx_budget.__main__ import main

if __name__ == "__main__":
    main("generate.py", "generate")
