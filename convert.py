"""Converts a checkpoint from a checkout: the same as `mlx-budget convert`."""

import sys

from mlx_budget.__main__ import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]], "convert.py")
