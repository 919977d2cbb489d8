"""The options of `learn` and their help. Knows nothing of how a run uses them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..engine.fields import check_numbers, like, setting
from ..engine.settings import (
    UNBOUNDED_TOKENS,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from .options import ALL_SIZES

# So many replies are enough for a table, which is used until there is better.
FIRST_TABLE = 50
_PROMPTS = 300


@dataclass(frozen=True)
class LearnOptions:
    """The options of `learn`.

    Attributes:
        data: Prompts of your own, as `mlx-budget traces` reads them.
        traces: Replies that are there already: only read, none are generated.
        hours: Hours for which replies are generated; the training comes after that.
        num_prompts: How many prompts are thought about at most.
        sizes: Steps of the ladder to make, comma-separated.
        held_out_prompts: Most held-out prompts to steer.
        batch_size: Most replies to generate at a time.
        max_tokens: Most tokens of a reply.
        sampling: How replies are drawn.
        start, end: Markers, in place of the tokenizer's.
        prompt: How a prompt becomes a model's input.

    Raises:
        ValueError: Naming the option that is not allowed.
    """

    GROUP: ClassVar[str] = "Replies"

    data: Path | None = setting(
        None,
        "Prompts of your own: a file as of `mlx-budget traces`.",
        shown="built-in ones, and GSM8K's where the Hub can be reached",
        group="Data",
    )
    traces: str | None = setting(
        None,
        "Replies of this model that are there already, a file or a dataset on the Hub "
        "as of `mlx-budget train --data`. They are only read, which is many times "
        "faster than generating; they must be the model's own.",
        group="Data",
    )
    hours: float | None = setting(
        None,
        "Hours for which replies are generated; what follows takes minutes.",
        group="Data",
    )
    num_prompts: int = setting(
        _PROMPTS, "Most prompts to think about.", least=FIRST_TABLE, group="Data"
    )
    sizes: str = setting(
        "table,linear,tiny",
        "Sizes to make, as of `mlx-budget train --size`.",
        group="Predictor",
    )
    held_out_prompts: int = setting(
        16, "Most held-out prompts to steer, to choose by.", least=1, group="Predictor"
    )
    batch_size: int = setting(
        8, "Most replies to generate at a time.", least=1, group="Memory and speed"
    )
    max_tokens: int = setting(
        UNBOUNDED_TOKENS,
        "Most tokens of a reply, thinking included; -1 for no limit.",
        flags=("--max-tokens", "-m"),
        least=-1,
    )
    sampling: Sampling = Sampling(temp=1.0, seed=0)
    start: str | None = like(ThinkingBudget, "start")
    end: str | None = like(ThinkingBudget, "end")
    prompt: PromptOptions = PromptOptions()

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.hours is not None and not 0 < self.hours < math.inf:
            raise ValueError(f"hours must be above 0, not {self.hours!r}.")
        if self.traces is not None:
            asked = self.data, self.hours, self.num_prompts
            if asked != (None, None, _PROMPTS):
                raise ValueError(
                    "With traces nothing is generated, so data, hours and num_prompts "
                    "have no effect: leave them out, or leave out traces."
                )
        for size in self.size_names:
            if size not in ALL_SIZES:
                raise ValueError(
                    f"sizes must be of {', '.join(ALL_SIZES)}; there is no {size!r}."
                )

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes, one by one."""
        names = [name.strip() for name in self.sizes.split(",")]
        return tuple(dict.fromkeys(names))
