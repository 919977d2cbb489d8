"""The prior that guides a model for which there is no predictor.

Knows tokenizers and markers, and the replies of users who let theirs be counted;
nothing of when to guide.
"""

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.priors import ENDINGS, make_prior
from ..method.table import LengthCounts, TablePredictor
from .markers import ThinkingMarkers

NOTICE = (
    "There is no predictor for this model: a prior guides its thinking. Better: "
    "`mlx-budget train`; --predictor none asks for the hard stop alone."
)


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
