"""The named sizes of predictors. Knows numbers alone."""

from typing import TypedDict


class EncoderSizes(TypedDict):
    """The sizes of a `PredictorConfig` that do not follow from the model."""

    width: int
    layers: int
    heads: int
    intermediate: int


# BERT-base, as in the published checkpoints, and three of the
# smaller BERTs of Turc et al., "Well-Read Students Learn Better", arXiv 1908.08962.
SIZES: dict[str, EncoderSizes] = {
    "base": {"width": 768, "layers": 12, "heads": 12, "intermediate": 3072},
    "small": {"width": 512, "layers": 4, "heads": 8, "intermediate": 2048},
    "mini": {"width": 256, "layers": 4, "heads": 4, "intermediate": 1024},
    "tiny": {"width": 128, "layers": 2, "heads": 2, "intermediate": 512},
}
