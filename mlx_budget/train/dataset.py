"""From chat records to cached hidden states, and the tokens that guidance may favour.

The records are read twice: once for those tokens, once for the hidden states. Knows the
language model and the records; nothing of updates or of the predictor.
"""

import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.context import context_length
from ..engine.recorder import hidden_states_at
from ..files.locks import in_use
from ..files.outputs import taken_back
from .cache import CachedRecord, StateCache, has_states
from .options import TrainOptions
from .records import Record, SkippedRecords, read_records

_FLOAT16_TYPES = {mx.float16: "float16", mx.bfloat16: "bfloat16"}
# What the contents of the cache depend on, besides the records themselves.
_CACHE_OPTIONS = (
    "model",
    "adapter_path",
    "revision",
    "positions",
    "max_length",
    "min_count",
    "val_fraction",
    "seed",
)


@dataclass(frozen=True, eq=False)
class Survey:
    """What a first reading of the records finds.

    Attributes:
        records: Number of usable records.
        held_out: Number of those that are held out for validation.
        training_positions: Number of positions in the records that are not.
        tokens: All tokens that come next at those positions, ascending.
        known: Those of them that guidance may favour: seen often enough where it acts,
            and the one that closes thinking.
        closes: Whether thinking closes at a training position of some record.
        skipped: The records that cannot be used.
        digest: Of all in the records that matters.
    """

    records: int
    held_out: int
    training_positions: int
    tokens: np.ndarray
    known: np.ndarray
    closes: bool
    skipped: SkippedRecords
    digest: str


@dataclass(frozen=True, eq=False)
class GuidedPositions:
    """Positions at which guidance acts; arrays of one length.

    Attributes:
        record: Number of each position's record.
        is_validation: Whether that is held out.
        tokens: The token that came next.
        thinking_tokens: Tokens of thinking before it.
        lengths: L.
        is_first: Whether it is the first of the thinking.
        prompt_tokens: Tokens before the first of the thinking.
        prompt_digits: Digits in the last message before the reply.
    """

    record: np.ndarray
    is_validation: np.ndarray
    tokens: np.ndarray
    thinking_tokens: np.ndarray
    lengths: np.ndarray
    is_first: np.ndarray
    prompt_tokens: np.ndarray
    prompt_digits: np.ndarray


class Dataset:
    """The training records of a language model.

    Args:
        options (TrainOptions): Where they are and how to read them.
        model (nn.Module): The language model.
        tokenizer (TokenizerWrapper): Its tokenizer.
    """

    def __init__(
        self, options: TrainOptions, model: nn.Module, tokenizer: TokenizerWrapper
    ):
        self._options = options
        self._model = model
        self._tokenizer = tokenizer
        self._has_newline = functools.cache(lambda t: "\n" in tokenizer.decode([t]))

    def survey(self, progress: Callable[[int], None]) -> Survey:
        """Reads all records for the tokens that come next.

        Args:
            progress (Callable): Called with the number of records read so far.

        Raises:
            ValueError: If nothing is left to train on or to validate on.
        """
        o = self._options
        skipped, digest = SkippedRecords(), hashlib.sha256()
        counts: Counter[int] = Counter()
        closing: set[int] = set()
        tokens: Counter[int] = Counter()
        held_out_tokens: set[int] = set()
        number = {False: 0, True: 0}
        for record in self._records(skipped):
            held_out = is_held_out(record.group, o.seed, o.val_fraction)
            number[held_out] += 1
            for part in (record.tokens, record.positions, record.lengths):
                digest.update(part.tobytes())
            digest.update(record.group.encode())
            candidates = record.tokens[record.positions]
            if held_out:
                held_out_tokens.update(candidates.tolist())
            else:
                tokens.update(candidates.tolist())
                closing.update(candidates[record.lengths == 1].tolist())
                counts.update(candidates[self._is_guided(record)].tolist())
            progress(sum(number.values()))
        for held_out, purpose in ((False, "train"), (True, "validate")):
            if not number[held_out]:
                raise ValueError(_nothing_left(o.data, purpose, number, skipped))
        if held_out_tokens.isdisjoint(tokens):
            raise ValueError(
                "No token of the held-out records comes next in the others: give more "
                "records."
            )
        often = {t for t, n in counts.items() if n >= o.min_count}
        if not often:
            raise ValueError(
                f"{o.data}: no token comes next {o.min_count} times where guidance "
                "acts: give more records, or a lower --min-count."
            )
        return Survey(
            records=sum(number.values()),
            held_out=number[True],
            training_positions=tokens.total(),
            tokens=np.array(sorted(tokens), np.int32),
            known=np.array(sorted(often | closing), np.int32),
            closes=bool(closing),
            skipped=skipped,
            digest=digest.hexdigest(),
        )

    def guided_positions(self) -> "GuidedPositions":
        """The positions of all records at which guidance acts, in their order."""
        columns: list[list[np.ndarray]] = [[] for _ in fields(GuidedPositions)]
        for number, (record, held_out) in enumerate(self.records()):
            guided = self._is_guided(record)
            positions = record.positions[guided]
            values = (
                np.full(len(positions), number),
                np.full(len(positions), held_out),
                record.tokens[positions],
                positions - record.start,
                record.lengths[guided],
                positions == record.start,
                np.full(len(positions), record.start),
                np.full(len(positions), _digits(record.group)),
            )
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return GuidedPositions(*map(np.concatenate, columns))

    def fill_cache(
        self, folder: Path, survey: Survey, progress: Callable[[int, float], None]
    ) -> StateCache:
        """Computes the hidden states of all positions that are not in the cache yet.

        Args:
            folder (Path): Of the cache.
            survey (Survey): Of these records.
            progress (Callable): Called with the number of records in the cache, and
                tokens/s.
        """
        with taken_back(folder, is_worth_keeping=lambda: has_states(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            with in_use(folder):
                cache = self._open_cache(folder, survey)
                self._complete(cache, survey, progress)
        return cache

    def _complete(
        self,
        cache: StateCache,
        survey: Survey,
        progress: Callable[[int, float], None],
    ) -> None:
        known = mx.array(survey.known)
        done, tokens, start = len(cache.records), 0, time.perf_counter()
        progress(done, 0.0)
        # No more than were surveyed, should the file have grown since.
        records = islice(self._records(SkippedRecords()), survey.records)
        for i, record in enumerate(records):
            if i < done:
                continue
            cached, states = self._observe(record, known)
            cache.append(cached, states)
            tokens += len(record.tokens)
            progress(i + 1, tokens / (time.perf_counter() - start))
            mx.clear_cache()

    def records(self) -> Iterator[tuple[Record, bool]]:
        """All usable records, and whether each is held out."""
        o = self._options
        for record in self._records(SkippedRecords()):
            yield record, is_held_out(record.group, o.seed, o.val_fraction)

    def _records(self, skipped: SkippedRecords) -> Iterator[Record]:
        o = self._options
        return read_records(
            o.data,
            self._tokenizer,
            positions=o.positions,
            max_length=o.max_length,
            augment=o.augment,
            thinking=o.thinking,
            prompt=o.prompt,
            limit=o.limit,
            seed=o.seed,
            strict=o.strict,
            most_tokens=context_length(self._model, self._tokenizer),
            skipped=skipped,
        )

    def _is_guided(self, record: Record) -> np.ndarray:
        """At which positions of a record guidance acts."""
        before = record.tokens[record.positions - 1].tolist()
        after_newline = np.array([self._has_newline(t) for t in before], bool)
        return after_newline | (record.positions == record.start)

    def _open_cache(self, folder: Path, survey: Survey) -> StateCache:
        states, _ = next(hidden_states_at(self._model, [0], [0], 1))
        _, layers, width = states.shape
        dtype = self._options.cache_dtype
        options = json.loads(json.dumps(asdict(self._options), default=str))
        return StateCache(
            folder,
            shape=(layers, width),
            dtype=dtype or _FLOAT16_TYPES.get(states.dtype, "float16"),
            settings={
                "records": survey.digest,
                **{name: options[name] for name in _CACHE_OPTIONS},
            },
        )

    def _observe(
        self, record: Record, known: mx.array
    ) -> tuple[CachedRecord, mx.array]:
        """The hidden states before each position, and what else is to be kept."""
        o = self._options
        held_out = is_held_out(record.group, o.seed, o.val_fraction)
        is_guided = self._is_guided(record)
        states: list[mx.array] = []
        mass: list[float | None] = []
        for chunk, logits in hidden_states_at(
            self._model, record.tokens, record.positions - 1, o.prefill_step_size
        ):
            states.append(chunk)
            if held_out:
                p = mx.softmax(logits.astype(mx.float32), axis=-1)
                mass += cast(list[float], p[:, known].sum(axis=-1).tolist())
        pairs = zip(mass or [None] * len(is_guided), is_guided, strict=True)
        cached = CachedRecord(
            name=record.name,
            is_validation=held_out,
            tokens=record.tokens[record.positions].tolist(),
            lengths=record.lengths.tolist(),
            is_guided=is_guided.tolist(),
            is_first=(record.positions == record.start).tolist(),
            mass=[m if guided else None for m, guided in pairs],
            prompt_tokens=record.start,
            prompt_digits=_digits(record.group),
        )
        return cached, mx.concatenate(states)


def _digits(group: str) -> int:
    """Digits in the last message of a prompt, whose messages are JSON."""
    return sum(c.isdigit() for c in json.loads(group)[-1]["content"])


def is_held_out(group: str, seed: int, fraction: float) -> bool:
    """Whether the records of a prompt are kept for validation.

    It depends on the prompt alone, not on the other records.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < fraction * 2**32


def _nothing_left(
    data: str, purpose: str, number: dict[bool, int], skipped: SkippedRecords
) -> str:
    found = f"{sum(number.values())} usable record(s)"
    if skipped.total:
        found += f", {skipped.total} skipped: {'; '.join(skipped.summary())}"
    return (
        f"{data}: no record is left to {purpose} on ({found}). Give records of more "
        "prompts, or another --val-fraction."
    )
