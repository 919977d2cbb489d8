"""What a run of `train` tells: while it goes on, and at its end.

Knows nothing of how a predictor is made.
"""

from dataclasses import dataclass

from .report import Report


@dataclass(frozen=True)
class Progress:
    """What a run tells while it goes on.

    Attributes:
        stage: "reading" records, "encoding" records, or "training" steps.
        done: How many of them.
        total: Of how many; None while that is not known.
        rate: Tokens/s of encoding, or records/s of training.
        losses: Of the last step and of the last validation, in nats, while training.
    """

    stage: str
    done: int
    total: int | None = None
    rate: float = 0.0
    losses: tuple[float, float] | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        report: What `report.json` in the output folder holds.
        notes: Lines for the user: records that were skipped, warnings.
        is_new: Whether it was made now, and not by an earlier run that had finished.
    """

    report: Report
    notes: list[str]
    is_new: bool = True
