"""What a model is asked to think about, to learn how long it thinks.

Knows files of prompts; nothing of models.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from .. import demo
from ..engine.messages import Chat
from ..engine.prompt_files import read_prompts
from ..files.rows import read_rows

BUILT_IN = Path(__file__).parent / "prompts.jsonl"

_GSM8K = "openai/gsm8k/main/train-00000-of-00001.parquet"
# Of so many prompts one is of GSM8K, where that can be had.
_GSM8K_EVERY = 5
_MOST_OF_GSM8K = 2000


def builtin_prompts(model: str, seed: int) -> Sequence[str | Chat]:
    """The prompts for a model of whose own user there are none.

    They are `BUILT_IN`, in an order that follows from the seed, with GSM8K's training
    questions among them where the Hub can be reached; for the built-in model, which
    knows nothing else, its own problems.
    """
    if model == demo.NAME:
        return read_prompts(demo.FOLDER.parent / "problems.jsonl")
    own = read_prompts(BUILT_IN)
    order = np.random.default_rng(seed).permutation(len(own))
    return _mixed([own[i] for i in order], _gsm8k())


def _gsm8k() -> list[str]:
    """GSM8K's training questions, or none where they cannot be had."""
    try:
        rows = read_rows(_GSM8K, ("question",))
        values = (row.value for row in islice(rows, _MOST_OF_GSM8K))
        return [str(v["question"]) for v in values if isinstance(v, dict)]
    except ValueError:
        return []


def _mixed(own: list[str | Chat], others: list[str]) -> list[str | Chat]:
    """All of them, one of the others behind so many of one's own."""
    mixed: list[str | Chat] = []
    rest = iter(others)
    for i, prompt in enumerate(own, 1):
        mixed.append(prompt)
        if i % (_GSM8K_EVERY - 1) == 0:
            mixed += islice(rest, 1)
    return [*mixed, *rest]
