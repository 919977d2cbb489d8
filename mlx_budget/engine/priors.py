"""The prior that guides a model for which there is no predictor.

Knows tokenizers and markers, and how the replies of users who ask for it are counted;
nothing of when to guide.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..files.locks import waited_for
from ..files.tensors import read_header, read_tensors, write_tensors
from ..files.user_cache import user_cache
from ..method.priors import ENDINGS, make_prior
from ..method.table import LengthCounts, TablePredictor, read_counts
from .follower import ReplyFollower
from .markers import ThinkingMarkers

NOTICE = (
    "There is no predictor for this model: a prior guides its thinking. Better: "
    "`mlx-budget learn`; --predictor none asks for the hard stop alone."
)
_FITTING = (
    "A prior guides thinking. A predictor is published that fits this model: add "
    "--predictor {}."
)


def notice(fitting: str | None = None) -> str:
    """What to say where a prior guides.

    Args:
        fitting (str, optional): Name of a published predictor that fits the model.
    """
    return NOTICE if fitting is None else _FITTING.format(fitting)


def prior_for(
    tokenizer: TokenizerWrapper,
    markers: ThinkingMarkers,
    counts: LengthCounts | None = None,
    base_model: str = "any model",
) -> TablePredictor:
    """The prior of a model.

    Args:
        tokenizer (TokenizerWrapper): The model's.
        markers (ThinkingMarkers): How its thinking ends.
        counts (LengthCounts, optional): Of its replies without a budget.
        base_model (str): The model's name.
    """
    openings = (tokenizer.encode(text, add_special_tokens=False) for text in ENDINGS)
    return make_prior(
        base_model,
        None,
        markers.end_tokens[0],
        tuple(tokens[0] for tokens in openings if tokens),
        counts,
    )


class LearnedPrior:
    """A prior that learns from a user's own replies without a budget.

    What it has learnt is a file in the user's cache: for each token that opened a line,
    how often it did and how long thinking went on, in sums. No text is kept.

    Args:
        model_name (str): What tells the model from others.
        tokenizer (TokenizerWrapper): The model's.
        markers (ThinkingMarkers): How its thinking ends.

    Attributes:
        file: Where it is kept. Remove it to have it forget.
    """

    def __init__(
        self, model_name: str, tokenizer: TokenizerWrapper, markers: ThinkingMarkers
    ):
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._markers = markers
        told = f"{model_name}\n{len(tokenizer.get_vocab())}\n{markers.end}"
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(model_name).name).strip("-")
        self.file = user_cache() / "priors" / f"{name}-{digest}.safetensors"

    def counts(self) -> LengthCounts:
        """What was learnt so far.

        Raises:
            ValueError: If the file is damaged.
        """
        if not self.file.exists():
            return LengthCounts.nothing()
        read_header(self.file)  # which says what is wrong in one line
        return read_counts(self.file, read_tensors(self.file))

    def predictor(self) -> TablePredictor:
        """The prior with what was learnt so far."""
        return prior_for(
            self._tokenizer, self._markers, self.counts(), self._model_name
        )

    def learn(self, reply: ReplyFollower) -> bool:
        """Counts a reply that has ended.

        Other programs may do so at the same time.

        Args:
            reply (ReplyFollower): Of the model. One with a budget, or whose thinking
                the model did not close, teaches nothing.

        Returns:
            bool: Whether it taught anything.
        """
        seen = reply.line_lengths()
        if not seen:
            return False
        counts = LengthCounts.of(*(np.array(c) for c in zip(*seen, strict=True)))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with waited_for(self.file.parent):
            write_tensors(self.file, (self.counts() + counts).tensors())
        return True
