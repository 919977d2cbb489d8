"""`mlx_lm.server` with thinking budgets that hold.

Its request handling, streaming, tool calls, prompt cache and continuous batching are
mlx-lm's own, extended where `seams` says.
"""

from .run import serve

__all__ = ["serve"]
