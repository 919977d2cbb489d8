"""Converts a checkpoint from a checkout: the same as `mlx-budget convert`."""

from mlx_budget.__main__ import main

if __name__ == "__main__":
    main("convert.py", "convert")
