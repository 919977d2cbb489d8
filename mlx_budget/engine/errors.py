"""Errors that someone further up can say more about. Knows nothing else."""


class NoPredictorError(ValueError):
    """What was asked for needs a predictor, and there is none."""
