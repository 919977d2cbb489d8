"""Answers a prompt from a checkout: the same as `mlx-budget generate`."""

import sys

from mlx_budget.__main__ import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]], "generate.py")
