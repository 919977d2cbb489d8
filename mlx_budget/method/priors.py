"""Guidance without a trained predictor: what is believed of any model's thinking.

The closing marker ends thinking by definition; a few tokens are known to open an
ending; all others share one belief, in units of the budget. Guided by these a model
lands softly: as the budget runs low, it ends at the line at which it is readiest to.
Knows no models and no texts; the table holds the arithmetic.
"""

import math

from .table import LengthCounts, LengthPrior, TablePredictor

# The belief of all lines but endings: the median length is more than half a budget, so
# that weight moves to the closing marker early enough. Chosen on the built-in model
# (docs/training.md); as many lengths as this outweigh it.
PRIOR = LengthPrior(share=0.6, deviation=0.3, count=20.0)
# Texts that reasoning models are known to open their endings with: models distilled
# from DeepSeek R1 close with this heading, as the budget forcing baseline of Budget
# Guidance (arXiv 2506.13752) does.
ENDINGS = ("**Final Answer**",)
# Of log(L + 1) behind such an opening: 7 tokens, three times as many at most.
_ENDING = (math.log(8.0), 0.3)


def make_prior(
    base_model: str,
    vocab_size: int | None,
    closing: int,
    endings: tuple[int, ...] = (),
    counts: LengthCounts | None = None,
) -> TablePredictor:
    """A predictor that has seen nothing, or only what is counted.

    Args:
        base_model (str): Name of the language model.
        vocab_size (int, optional): V; None for that of the first model it meets.
        closing (int): First token of the closing marker.
        endings (tuple): First tokens of `ENDINGS`.
        counts (LengthCounts, optional): Of the user's own replies without a budget.
    """
    return TablePredictor(
        base_model,
        vocab_size,
        closing,
        counts or LengthCounts.nothing(),
        PRIOR,
        {token: _ENDING for token in endings if token != closing},
    )
