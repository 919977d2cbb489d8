"""A model whose layers are spread over several ranks, and their hidden states together.

A pipeline of mlx-lm's leaves each rank a slice of the layers: rank 0 has the last ones.
All ranks get the output of the final norm, but each sees the inputs of its own layers
alone. Knows mlx-lm's pipelines and MLX's collectives; nothing of predictors.

B is the batch, N layers, n those of one rank, D model width, P predictor width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

# Hidden states of this size and more are mapped to what the predictor reads of them
# before they are gathered: below it a gather takes as long as its latency.
LARGE_BYTES = 1 << 22


@dataclass(frozen=True)
class Stages:
    """The layers of each rank.

    Attributes:
        counts: How many, by rank. Rank 0 has the last layers, the last rank the first.
        rank: This one.
    """

    counts: tuple[int, ...]
    rank: int

    @property
    def layers(self) -> int:
        """N, the layers of all ranks."""
        return sum(self.counts)

    @property
    def first(self) -> int:
        """Index of the first layer of this rank."""
        return sum(self.counts[self.rank + 1 :])

    def are_many(self, states: Sequence[mx.array]) -> bool:
        """Whether the hidden states of a pass, of all layers, are `LARGE_BYTES`."""
        return states[-1].nbytes * (self.layers + 1) >= LARGE_BYTES

    def gather(self, inputs: mx.array, final: mx.array) -> mx.array:
        """The hidden states of all layers, in their order.

        A collective: every rank has to be at the same step, on the same stream.

        Args:
            inputs (mx.array): Of this rank's layers, shape (B, n, D).
            final (mx.array): Of the final norm, which all ranks have, (B, 1, D).

        Returns:
            mx.array: Shape (B, N + 1, D).
        """
        # What this rank owes the others for the pass itself is under way before.
        mx.async_eval(final)
        most = max(self.counts)
        h = mx.pad(inputs, [(0, 0), (0, most - inputs.shape[1]), (0, 0)])
        every = mx.distributed.all_gather(h[None])  # (ranks, B, most, D)
        mx.async_eval(every)
        parts = [every[rank, :, :n] for rank, n in enumerate(self.counts)]
        return mx.concatenate([*parts[::-1], final], axis=1)


def note_stages(model: nn.Module, counts: Sequence[int], rank: int) -> None:
    """Notes how many layers of a model each rank has, by rank, for this one."""
    model._stages = Stages(tuple(counts), rank)


def stages_of(model: nn.Module) -> Stages | None:
    """How a model's layers are spread over ranks; None if this one has all of them."""
    return model.__dict__.get("_stages")
