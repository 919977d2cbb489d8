"""Several processes that run one model: rank 0 leads, the others follow.

mlx-lm splits a model over the processes that `mlx.launch` starts, and each of them has
to compute the same steps. Here is the one place where they agree on what those are.
Rank 0 runs the program: it reads options and files, draws seeds, looks at the clock and
at its clients, prints and writes. What the model has to do for that are calls of
functions that are `mirrored`: rank 0 tells the others of each, and they make the same
call. What a call asks of the world outside, rank 0 answers for all (`share`).

Knows processes and messages; nothing of models, tokens or options. Alone, without
`mlx.launch`, all of it does nothing.
"""

from .mirror import mirrored
from .team import (
    RanksError,
    Team,
    current,
    leads,
    note_token,
    share,
    shared,
    the_team,
)

__all__ = [
    "RanksError",
    "Team",
    "current",
    "leads",
    "mirrored",
    "note_token",
    "share",
    "shared",
    "the_team",
]
