"""`mlx_lm.server` with thinking budgets that hold.

Its request handling, streaming, tool calls, prompt cache and continuous batching are
mlx-lm's own, extended where `seams` says.
"""

from ..lazy import import_when_used

__all__ = ["running", "serve"]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .run import running, serve
else:
    __getattr__, __dir__ = import_when_used(
        __name__, {"running": "run", "serve": "run"}
    )
