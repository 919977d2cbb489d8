"""A predictor that is a table: one Gamma distribution for each token that opens a line.

It knows which token is a candidate and how far the reply has come, and reads no hidden
states. Its file holds counts and sums of log-lengths alone, so that tables can be added
up. What was never seen follows all tokens together, and where there is too little of
these, a prior. Knows nothing of language models, tokenizers or texts.

K is the number of tokens that were seen, V the vocabulary. B is the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..files.tensors import read_tensors, write_tensors
from ..files.texts import write_json
from ..installing import install_command
from . import certain
from .predictor import (
    CONFIG_FILE,
    VOCABULARY,
    WEIGHTS_FILE,
    Outputs,
    Predictor,
    ReplyProgress,
    check_size,
)

FORMAT_VERSION = 2
# Stages of a reply: thinking tokens so far from 2^i - 1 to 2^(i+1) - 2, and the last
# one without an end.
STAGES = 18
# How many lengths of its own count as much as what a token has from others.
_BACKING = 5.0
# The least variance of log(L + 1): no line tells more than a tenth of the length.
_LEAST_VARIANCE = 0.01
# The least mean of log(L + 1): L is 1 at least.
_LEAST_MEAN = math.log(1.5)


@dataclass(frozen=True)
class LengthPrior:
    """What is believed of log(L + 1) before any reply was seen.

    Attributes:
        share: Median of L, in budgets.
        deviation: Standard deviation of log(L + 1), in nats.
        count: How many lengths that were seen count as much.
    """

    share: float
    deviation: float
    count: float

    def mean(self, budget: int | None) -> float:
        """Mean of log(L + 1), in nats."""
        return math.log1p(self.share * (budget or 0))


@dataclass(frozen=True, eq=False)
class LengthCounts:
    """The lengths of thinking that were seen to follow tokens, as sums.

    Attributes:
        tokens: Ids of the tokens, ascending, int32, shape (K,).
        sums: Of 1, x and x^2 with x = log(L + 1), for each token and stage of the
            reply, float64, shape (3, K, STAGES).
    """

    tokens: np.ndarray
    sums: np.ndarray

    @classmethod
    def nothing(cls) -> "LengthCounts":
        """Those of no reply at all."""
        return cls(np.zeros(0, np.int32), np.zeros((3, 0, STAGES)))

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        thinking_tokens: np.ndarray,
        lengths: np.ndarray,
        shifts: np.ndarray | float = 0.0,
    ) -> "LengthCounts":
        """Counts positions.

        Args:
            tokens (np.ndarray): The token that came next, shape (n,).
            thinking_tokens (np.ndarray): Tokens of thinking before it, shape (n,).
            lengths (np.ndarray): L, shape (n,).
            shifts (np.ndarray): What is known of log(L + 1) from elsewhere, in nats,
                and taken off first, shape (n,).
        """
        known, rows = np.unique(np.asarray(tokens, np.int32), return_inverse=True)
        x = np.log1p(np.asarray(lengths, np.float64)) - shifts
        sums = np.zeros((3, len(known), STAGES))
        stages = stage_of(np.asarray(thinking_tokens))
        for power in range(3):
            np.add.at(sums[power], (rows.ravel(), stages), x**power)
        return cls(known, sums)

    def __add__(self, other: "LengthCounts") -> "LengthCounts":
        tokens = np.union1d(self.tokens, other.tokens).astype(np.int32)
        sums = np.zeros((3, len(tokens), STAGES))
        for part in (self, other):
            sums[:, np.searchsorted(tokens, part.tokens)] += part.sums
        return LengthCounts(tokens, sums)

    def tensors(self) -> dict[str, mx.array]:
        """As a safetensors file has them; `read_counts` reads them back."""
        return {
            "tokens": mx.array(self.tokens),
            "sums": mx.array(self.sums.astype(np.float32)),
        }

    @property
    def number(self) -> int:
        """How many positions were counted."""
        return round(float(self.sums[0].sum()))


def stage_of(thinking_tokens: np.ndarray | int) -> np.ndarray:
    """The stage of a reply after so many tokens of thinking, 0 to STAGES - 1."""
    stages = np.floor(np.log2(np.asarray(thinking_tokens) + 1.0))
    return np.minimum(stages, STAGES - 1).astype(np.int64)


class TablePredictor(Predictor):
    """Predicts from the candidate and the length of the reply so far.

    The mean of log(L + 1) for a token at a stage is that of the stage for all tokens,
    plus what the token differs by at all stages, plus what it differs by at this one;
    each is drawn to the one before as if `_BACKING` lengths had been seen of that
    (shrinkage as in empirical Bayes). The variance is one for each token. A token that
    always came with the same length is certain to have it (`certain`).

    Args:
        base_model (str): Name of the language model.
        vocab_size (int, optional): V; None for that of the first model it meets.
        closing (int): First token of the closing marker, of which L is 1.
        counts (LengthCounts): What was seen.
        prior (LengthPrior, optional): What is believed before; none if enough was seen.
        endings (dict): Tokens that are known to open the end of thinking, with what is
            believed of them.
    """

    reads_states = False
    follows_progress = True

    def __init__(
        self,
        base_model: str,
        vocab_size: int | None,
        closing: int,
        counts: LengthCounts,
        prior: LengthPrior | None = None,
        endings: dict[int, tuple[float, float]] | None = None,
    ):
        if prior is None and not counts.number:
            raise ValueError("A table needs lengths that were seen, or a prior.")
        self.closing = closing
        self.counts = counts
        self.prior = prior
        self._base_model = base_model
        known = sorted({*counts.tokens.tolist(), *(endings or {}), closing})
        self._tokens = np.array(known, np.int32)
        self._endings = endings or {}
        self._closing_row = known.index(closing)
        # Of each row, L where it is certain, else 0; the last is that of all others.
        self._certain = np.append(certain.certain_lengths(self._sums().sum(-1)), 0)
        self._certain[self._closing_row] = 1
        self._is_certain = mx.array(self._certain > 0)
        self.vocab_size = vocab_size
        if vocab_size is not None:
            self._rows = self._rows_of(vocab_size)
        self._forget()

    def _rows_of(self, vocab_size: int) -> mx.array:
        """Row of each token: the last is that of all tokens that were not seen."""
        if self._tokens[0] < 0 or self._tokens[-1] >= vocab_size:
            raise ValueError(
                f"The tokens of a table must be from 0 to {vocab_size - 1:,}, not "
                f"{self._tokens[0]:,} to {self._tokens[-1]:,}."
            )
        rows = np.full(vocab_size, len(self._tokens), np.int32)
        rows[self._tokens] = np.arange(len(self._tokens))
        return mx.array(rows)

    @property
    def base_model(self) -> str:
        """Name of the language model that it was made for."""
        return self._base_model

    @property
    def knows_lengths(self) -> bool:
        """Whether it has seen lengths, or believes something of them alone."""
        return bool(self.counts.number)

    def check_sizes(self, width: int, layers: int, vocab_size: int) -> None:
        """Checks the vocabulary; hidden states do not matter."""
        self.check_vocabulary(vocab_size)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Checks that a language model's vocabulary is the one it was made for.

        Raises:
            ValueError: If it is not.
        """
        if self.vocab_size is None:
            self._rows = self._rows_of(vocab_size)
            self.vocab_size = vocab_size
        check_size(self.base_model, VOCABULARY, self.vocab_size, vocab_size)

    def outputs(
        self,
        encoding: mx.array | None,
        progress: ReplyProgress,
        tokens: mx.array | None = None,
    ) -> Outputs:
        """Concentration and rate, as `Predictor.outputs`."""
        stage = int(stage_of(progress.thinking_tokens))
        budget = progress.budget if self.prior is not None else None
        mean, variance = self._fit(stage, budget)
        rows = self._rows[None] if tokens is None else self._rows[tokens]
        mean, variance = mean[rows], variance[rows]
        if encoding is not None:
            mean, variance = self._shift(mean, variance, encoding, rows)
        mean = mx.maximum(mean, _LEAST_MEAN)
        rate = mean / variance
        return mean * rate, rate

    def means_at(self, tokens: np.ndarray, thinking_tokens: np.ndarray) -> np.ndarray:
        """The mean of log(L + 1) for one candidate at each of many positions.

        Args:
            tokens, thinking_tokens: As of `at_positions`.

        Returns:
            np.ndarray: In nats, shape (n,).
        """
        rows = self._places(tokens)
        return self.moments(None)[0][rows, stage_of(thinking_tokens)]

    def _places(self, tokens: np.ndarray) -> np.ndarray:
        """Row of each of some tokens, shape (n,)."""
        rows = np.searchsorted(self._tokens, tokens).clip(max=len(self._tokens) - 1)
        return np.where(self._tokens[rows] == tokens, rows, len(self._tokens))

    def at_positions(
        self,
        tokens: np.ndarray,
        thinking_tokens: np.ndarray,
        encodings: mx.array | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Concentration and rate for one candidate at each of many positions.

        Args:
            tokens (np.ndarray): The candidates, shape (n,).
            thinking_tokens (np.ndarray): Tokens of thinking before each, shape (n,).
            encodings (mx.array, optional): From `encode`, shape (n, 1).

        Returns:
            tuple[np.ndarray, np.ndarray]: Shape (n,) each.
        """
        means, variances = (mx.array(m, mx.float32) for m in self.moments(None))
        if self.vocab_size is None:
            raise ValueError("The table has met no model yet.")
        rows = self._rows[mx.array(tokens)]
        mean = means[rows, mx.array(stage_of(thinking_tokens))]
        variance = variances[rows]
        if encodings is not None:
            mean, variance = self._shift(mean, variance, encodings[:, 0], rows)
        mean = mx.maximum(mean, _LEAST_MEAN)
        rate = mean / variance
        return np.array(mean * rate), np.array(rate)

    def _shift(
        self, mean: mx.array, variance: mx.array, encoding: mx.array, rows: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Moments of log(L + 1) in the light of hidden states, which a table lacks."""
        raise NotImplementedError

    def _at_stage(self, stage: int, budget: int | None) -> tuple[mx.array, mx.array]:
        """Mean and variance of log(L + 1) of each row, shape (K + 1,) each."""
        mean, variance = self.moments(budget)
        return mx.array(mean[:, stage], mx.float32), mx.array(variance, mx.float32)

    def moments(self, budget: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of log(L + 1) for each row.

        Args:
            budget (int, optional): Tokens of budget, the unit of the prior.

        Returns:
            tuple[np.ndarray, np.ndarray]: Shape (K + 1, STAGES) and (K + 1,), in nats
            and their square; the last row is that of all tokens that were not seen.
        """
        number, total, squares = self._sums()
        prior_mean, prior_variance, weight = 0.0, 0.0, 0.0
        # Without a budget a prior in budgets says nothing, once there is what was seen.
        says_something = budget is not None or not number.any()
        if self.prior is not None and says_something:
            prior_mean, weight = self.prior.mean(budget), self.prior.count
            prior_variance = self.prior.deviation**2
        n = number.sum()
        overall = (total.sum() + weight * prior_mean) / (n + weight)
        by_stage = (total.sum(0) + _BACKING * overall) / (number.sum(0) + _BACKING)
        own = total - number * by_stage
        by_token = own.sum(1) / (number.sum(1) + _BACKING)
        for token, (believed, _) in self._endings.items():
            row = np.searchsorted(self._tokens, token)
            gap = _BACKING * (believed - by_stage.mean())
            by_token[row] = (own[row].sum() + gap) / (number[row].sum() + _BACKING)
        base = by_stage + by_token[:, None]
        mean = base + (total - number * base) / (number + _BACKING)
        # The squared distances from the means, of what was seen.
        spread = np.maximum(squares - 2 * mean * total + number * mean**2, 0).sum(1)
        everywhere = (spread.sum() + weight * prior_variance) / (n + weight)
        variance = (spread + _BACKING * everywhere) / (number.sum(1) + _BACKING)
        for token, (_, deviation) in self._endings.items():
            row = np.searchsorted(self._tokens, token)
            if not number[row].sum():
                variance[row] = deviation**2
        # An unseen token may be any: the means of tokens vary as well.
        between = np.average(by_token**2, weights=number.sum(1)) if n else 0.0
        mean = np.vstack([mean, by_stage])
        variance = np.append(variance, everywhere + between)
        variance = np.maximum(variance, _LEAST_VARIANCE)
        is_certain = self._certain > 0
        means = np.array(certain.mean_of(mx.array(self._certain[is_certain])))
        mean[is_certain] = means[:, None]
        variance[is_certain] = means**2 / certain.CONCENTRATION
        return mean, variance

    def certain_at(self, tokens: np.ndarray) -> np.ndarray:
        """L of candidates that are certain to have one, 0 of others.

        Args:
            tokens (np.ndarray): The candidates, shape (n,).
        """
        return self._certain[self._places(tokens)]

    def _sums(self) -> np.ndarray:
        """Those of the counts, by row; the closing marker's say nothing of others."""
        sums = np.zeros((3, len(self._tokens), STAGES))
        sums[:, np.searchsorted(self._tokens, self.counts.tokens)] = self.counts.sums
        sums[:, self._closing_row] = 0
        return sums

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in vars(self).items() if name != "_fit"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._fit = lru_cache(maxsize=64)(self._at_stage)

    def save(
        self, path: str | Path, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Writes the two files of a predictor, as `Predictor.save`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        write_tensors(path / WEIGHTS_FILE, self.tensors(), progress)
        write_json(path / CONFIG_FILE, self._config())

    def tensors(self) -> dict[str, mx.array]:
        """As `Predictor.tensors`."""
        return self.counts.tensors()

    def _config(self) -> dict[str, Any]:
        return {
            "kind": "table",
            "base_model": self.base_model,
            "vocab_size": self.vocab_size,
            "closing": self.closing,
            "format_version": FORMAT_VERSION,
        }

    @classmethod
    def _load(cls, path: Path, values: dict[str, Any]) -> "TablePredictor":
        config = check_config(path, values, "base_model", "vocab_size", "closing")
        file = path / WEIGHTS_FILE
        counts = read_counts(file, read_tensors(file))
        try:
            return cls(counts=counts, **config)
        except ValueError as e:
            raise ValueError(f"{path} cannot be read: {e}") from None


def check_config(path: Path, values: dict[str, Any], *names: str) -> dict[str, Any]:
    """The values that a configuration has to have, under these names and no other.

    Raises:
        ValueError: If one is missing, another is there, a value is not of its type, or
            the format is newer than this release reads.
    """
    file = path / CONFIG_FILE
    version = values.get("format_version")
    if not _is_count(version) or (version or 0) > FORMAT_VERSION:
        raise ValueError(
            f"{file} has the format version {version!r}, and this release reads up to "
            f"{FORMAT_VERSION}: upgrade with `{install_command(is_upgrade=True)}`."
        )
    found = {k: v for k, v in values.items() if k not in ("kind", "format_version")}
    for name in sorted({*names} ^ found.keys()):
        what = "lacks" if name in names else "has an unknown key"
        raise ValueError(f"{file} {what} {name!r}.")
    for name, value in found.items():
        is_good = _is_count(value, 0 if name in ("layer", "closing") else 1)
        if name == "base_model":
            is_good = isinstance(value, str)
        if not is_good:
            raise ValueError(f"{file} cannot have {name} = {value!r}.")
    return found


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def read_counts(file: Path, tensors: dict[str, mx.array]) -> LengthCounts:
    """The counts in the tensors of a file.

    Raises:
        ValueError: If they are missing, misshapen, or not counts.
    """
    for name in ("tokens", "sums"):
        if name not in tensors:
            raise ValueError(f"{file} lacks the predictor tensor {name}.")
    tokens, sums = tensors["tokens"], np.array(tensors["sums"].astype(mx.float32))
    if tokens.ndim != 1 or sums.shape != (3, tokens.size, STAGES):
        raise ValueError(
            f"{file}: the predictor tensors tokens and sums have shape {tokens.shape} "
            f"and {sums.shape}, expected (K,) and (3, K, {STAGES})."
        )
    ids = np.array(tokens.astype(mx.int32))
    if tokens.dtype != mx.int32 or np.any(np.diff(ids) <= 0) or np.any(ids < 0):
        raise ValueError(
            f"{file}: tokens must be different ids, in ascending order, as int32."
        )
    if not np.isfinite(sums).all() or np.any(sums[[0, 2]] < 0):
        raise ValueError(f"{file}: sums must be finite, and counts 0 or more.")
    return LengthCounts(ids, sums.astype(np.float64))
