"""`train`: from chat records to a predictor folder, in runs that can be stopped.

Knows the order of the steps and what a stopped run needs to go on. All updates run on
the cached hidden states; the language model is not needed for them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.thinking import ThinkingMarkers, find_markers
from ..method.guidance import GuidanceThresholds
from ..method.predictor_config import PredictorConfig
from ..method.table import TablePredictor
from ..models.loading import load_source
from ..models.model_card import write_light_card, write_trained_card
from . import checkpoints, tables
from .cache import StateCache, batches
from .collapse import LEAST_RESPONSE, has_collapsed
from .dataset import Dataset, Survey
from .learner import Learner
from .options import TrainOptions
from .output import (
    BEST_FILE,
    CURVES_FILE,
    check_output,
    finished_report,
    is_finished,
    output_folder,
    states_folder,
)
from .records import check_data
from .report import Report, make_report, write_report
from .schedules import make_schedule
from .validation import Split, stays_collapsed

# Share of the model's probability below which guidance has little to choose from.
SMALL_MASS = 0.8

# Guidance may favour known tokens only; nothing else need keep a token out.
_THRESHOLDS = GuidanceThresholds(min_rate=0.0, min_concentration=0.0, min_mode=0.0)
_LARGEST_GRADIENT = 1.0
_EVALUATION_BATCH = 256


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


def train(
    options: TrainOptions,
    progress: Callable[[Progress], None] = lambda _: None,
    loaded: tuple[nn.Module, TokenizerWrapper] | None = None,
) -> TrainResult:
    """Trains a thinking-length predictor on a model's own reasoning.

    The output is a predictor folder, which `load` takes as ``predictor``.

    Args:
        options (TrainOptions): What to train on, and how.
        progress (Callable): Called as the run goes on.
        loaded (tuple, optional): The model and its tokenizer, where they are loaded
            already.

    Raises:
        ValueError: In one line, if the options, the model or the records cannot be
            used, the output exists, the disk is full, the loss is not finite, or the
            predictor says the same whatever the hidden states are. Before the first
            hidden states nothing is left in the output folder then, and after them no
            predictor.
    """
    if is_finished(options):
        return TrainResult(finished_report(options), [], is_new=False)
    # What can be checked before a download is checked before it.
    check_output(options)
    check_data(options.data)
    if loaded is None:
        # A table needs no weights of the model.
        is_lazy = options.size == "table"
        loaded = load_source(options.source, lazy=is_lazy)[:2]
    model, tokenizer = loaded
    markers = find_markers(tokenizer, options.thinking.start, options.thinking.end)
    with output_folder(options):
        dataset = Dataset(options, model, tokenizer)
        survey = dataset.survey(lambda n: progress(Progress("reading", n)))
        if options.size == "table":
            return _finish(options, survey, *_count(options, model, markers, dataset))
        steps, warmup, schedule = _plan(options, survey)  # raises before the long part
        cache = dataset.fill_cache(
            states_folder(options),
            survey,
            lambda n, rate: progress(Progress("encoding", n, survey.records, rate)),
        )
        if options.size == "linear":
            found = _count(options, model, markers, dataset, cache)
            return _finish(options, survey, *found)
        vocab_size = model(mx.array([[0]])).shape[-1]
        del model, dataset, loaded  # the updates need nothing but the cache
        mx.clear_cache()
        run = _Run(
            options, survey, cache, vocab_size, steps, warmup, schedule, progress
        )
        run.go()
        return run.finish()


def _count(
    options: TrainOptions,
    model: nn.Module,
    markers: ThinkingMarkers,
    dataset: Dataset,
    cache: StateCache | None = None,
) -> tuple[TablePredictor, Predictions]:
    """A table, or with hidden states a linear predictor, and what it says."""
    p = dataset.guided_positions()
    base = tables.Base(
        public_name(options.model),
        tables.vocabulary_of(model),
        markers.end_tokens[0],
    )
    if cache is None:
        table = tables.make_table(base, p, np.flatnonzero(~p.is_validation))
        return table, tables.predictions_of(table, p)
    places = np.flatnonzero(cache.positions().is_guided)
    read = partial(_read_layer, cache, places)
    linear = tables.make_linear(base, p, read, cache.shape[0] - 1)
    states = read(np.flatnonzero(p.is_validation), linear.probe.layer)
    return linear, tables.predictions_of(linear, p, linear.encode_layer(states))


def _read_layer(
    cache: StateCache, places: np.ndarray, rows: np.ndarray, layer: int
) -> np.ndarray:
    return cache.read_layer(places[rows], layer)


def _finish(
    o: TrainOptions, s: Survey, predictor: TablePredictor, predictions: Predictions
) -> TrainResult:
    """Writes the folder of a predictor that is not trained step by step."""
    report = {
        "records": s.records,
        "held_out_records": s.held_out,
        "skipped_records": s.skipped.total,
        "training_positions": predictor.counts.number,
        "steps": 0,
        "known_tokens": len(predictor.counts.tokens),
        "unseen_positions": 0,
        "mass_let_through": None,
        **make_report(predictions),
    }
    note = write_report(report, o.output, [])
    write_light_card(o.output, o.size, predictor.base_model, report)
    predictor.save(o.output)
    return TrainResult(report, [*s.skipped.summary(), *([note] if note else [])])


class _Run:
    """The updates of a run, from its newest checkpoint on."""

    def __init__(
        self,
        options: TrainOptions,
        survey: Survey,
        cache: StateCache,
        vocab_size: int,
        steps: int,
        warmup: int,
        schedule: Callable[[mx.array], mx.array],
        progress: Callable[[Progress], None],
    ):
        self._options = options
        self._survey = survey
        self._cache = cache
        self._steps = steps
        self._warmup = warmup
        self._progress = progress
        self._work = options.output / "training"
        self._split = Split(cache, survey.tokens)
        p, train = self._split.positions, self._split.train
        mx.random.seed(options.seed)
        layers, width = cache.shape
        config = PredictorConfig(
            base_model=public_name(options.model),
            model_width=width,
            model_layers=layers - 1,
            vocab_size=vocab_size,
            **options.predictor_sizes(),
            norm="pre",
            standardize_inputs=True,
            known_tokens=len(survey.tokens),
            thresholds=_THRESHOLDS,
        )
        self._learner = Learner(
            config,
            survey.tokens,
            p.tokens[train],
            p.lengths[train],
            cache.moments(train),
        )
        own = optim.AdamW(schedule, weight_decay=options.weight_decay)
        # Nothing but what a token has of its own is to be small.
        self._optimizer = optim.MultiOptimizer(
            [own, optim.Adam(schedule)], [lambda name, _: name == "own"]
        )
        self._optimizer.init(self._learner.trainable_parameters())
        self._step, self._best = 0, float("inf")
        self._restore()
        self.curves = checkpoints.LearningCurves(
            options.output / CURVES_FILE, self._step
        )

    def _restore(self) -> None:
        found = checkpoints.load_newest(self._work)
        if found is None:
            return
        self._step, state = found
        if not mx.array_equal(state["records"], self._digest()):
            raise ValueError(
                f"{self._options.data} no longer holds the records that the run in "
                f"{self._options.output} was begun with: choose another --output."
            )
        self._best = state["best"].item()
        self._learner.update(state["learner"])
        self._optimizer.state = state["optimizer"]

    def _digest(self) -> mx.array:
        return mx.array(list(bytes.fromhex(self._survey.digest)), dtype=mx.uint8)

    def _save(self) -> None:
        state = {
            "records": self._digest(),
            "learner": self._learner.trainable_parameters(),
            "optimizer": self._optimizer.state,
            "best": mx.array(self._best),
        }
        checkpoints.save(self._work, self._step, state)

    def go(self) -> None:
        """Makes the updates that are left."""
        o = self._options
        loss_and_gradients = nn.value_and_grad(self._learner, self._loss)
        if self._step == 0:
            self._validate(None)
        wanted = batches(self._split.train, o.batch_size, o.seed, self._step)
        done, start, val_loss = 0, time.perf_counter(), self._best
        records = self._survey.records - self._survey.held_out
        positions_per_record = len(self._split.train) / records
        for rows in wanted:
            if self._step == self._steps:
                break
            loss, gradients = loss_and_gradients(rows)
            gradients, norm = optim.clip_grad_norm(gradients, _LARGEST_GRADIENT)
            if not np.isfinite([loss.item(), norm.item()]).all():
                raise self._not_finite(self._step + 1, rows, self._losses(rows))
            self._optimizer.update(self._learner, gradients)
            mx.eval(self._learner.trainable_parameters(), self._optimizer.state)
            self._step += 1
            done += len(rows)
            if self._step % o.eval_every == 0 or self._step == self._steps:
                val_loss = self._validate(loss.item())
            else:
                self.curves.add(step=self._step, loss=loss.item())
            if self._step % o.save_every == 0 or self._step == self._steps:
                self._save()
            rate = done / positions_per_record / (time.perf_counter() - start)
            losses = loss.item(), val_loss
            now = Progress("training", self._step, self._steps, rate, losses)
            self._progress(now)

    def _batch(self, rows: np.ndarray) -> tuple[mx.array, mx.array, mx.array]:
        return (
            self._cache.read(rows),
            mx.array(self._split.rows[rows]),
            mx.array(self._split.positions.lengths[rows]),
        )

    def _loss(self, rows: np.ndarray) -> mx.array:
        return self._learner.losses(*self._batch(rows)).mean()

    def _losses(self, rows: np.ndarray) -> np.ndarray:
        """The loss at each position; memory is that of a few at a time."""
        parts = [
            np.array(self._learner.losses(*self._batch(part)))
            for part in _split(rows, _EVALUATION_BATCH)
        ]
        return np.concatenate(parts)

    def _not_finite(
        self, step: int, rows: np.ndarray, losses: np.ndarray
    ) -> ValueError:
        bad = rows[~np.isfinite(losses)]
        where = "several records together"
        if len(bad):
            where = self._cache.records[self._split.positions.record[bad[0]]].name
        return ValueError(
            f"The loss at step {step} is not a number, at {where}: train without that "
            "record or with a lower --learning-rate, into another --output."
        )

    def _validate(self, loss: float | None) -> float:
        """The loss on the held-out positions; keeps the best weights so far.

        Raises:
            ValueError: If it is not finite, or the predictor has collapsed.
        """
        row = self._split.measure(self._outputs(self._split.validation))
        if not np.isfinite(row["val_loss"]):
            rows = self._split.validation
            raise self._not_finite(self._step, rows, self._losses(rows))
        known = {} if loss is None else {"loss": loss}
        self.curves.add(step=self._step, **known, **row)
        if row["val_loss"] < self._best:
            self._best = row["val_loss"]
            checkpoints.write_tree(
                self._work / BEST_FILE, self._learner.trainable_parameters()
            )
        if stays_collapsed(self.curves.rows, self._warmup):
            raise self._collapsed(row["response"])
        return row["val_loss"]

    def _outputs(self, rows: np.ndarray) -> np.ndarray:
        """Concentration and rate at some positions, shape (2, len(rows)).

        Memory is that of a few positions at a time.
        """
        parts = []
        for part in _split(rows, _EVALUATION_BATCH):
            states, tokens, _ = self._batch(part)
            outputs = self._learner.outputs(states, tokens)
            parts.append(np.array(mx.stack(list(outputs))))
        return np.concatenate(parts, axis=1)

    def _collapsed(self, found: float) -> ValueError:
        """What to say of a predictor whose `collapse.response` is too small."""
        validated = [r["val_loss"] for r in self.curves.rows if "val_loss" in r]
        if self._options.keep == "best" and min(validated) == validated[0]:
            what = (
                f"In {self._step} steps the loss on held-out records never fell below "
                "that of one Gamma for each token, from which training starts"
            )
        else:
            what = (
                f"After {self._step} of {self._steps} steps the predictor says the "
                "same whatever the hidden states are: what it says of one token "
                f"differs by {found:.1g} of what the lengths do, and "
                f"{LEAST_RESPONSE:g} is the least"
            )
        return ValueError(
            f"{what}. No predictor was written. Train on more records, with a smaller "
            "--size or another --learning-rate, into another --output; with "
            f"--cache-dir {states_folder(self._options)} the hidden states are used "
            "again."
        )

    def finish(self) -> TrainResult:
        """Writes the predictor folder: report first, the configuration last."""
        o, s, p = self._options, self._survey, self._split.positions
        if o.keep == "best":
            self._learner.update(checkpoints.read_tree(self._work / BEST_FILE))
        outputs = self._outputs(self._split.validation)
        found = self._split.response(outputs)
        if found is not None and has_collapsed(found):
            raise self._collapsed(found)
        report = make_report(self._split.predictions(outputs))
        mass = p.mass[np.isfinite(p.mass)]
        report = {
            "records": s.records,
            "held_out_records": s.held_out,
            "skipped_records": s.skipped.total,
            "training_positions": s.training_positions,
            "steps": self._steps,
            "known_tokens": len(s.known),
            "unseen_positions": self._split.unseen,
            "mass_let_through": float(mass.mean()) if mass.size else None,
            **report,
        }
        notes = s.skipped.summary()
        if mass.size and mass.mean() < SMALL_MASS:
            notes.append(
                f"Guidance may favour only {mass.mean():.0%} of the model's own "
                "probability where it acts: train on more records, or with a lower "
                "--min-count."
            )
        if not s.closes:
            notes.append(
                "In no record does thinking close right after a newline, so that only "
                "the hard stop will close it: train with --positions all."
            )
        note = write_report(report, o.output, self.curves.rows)
        notes += [note] if note else []
        predictor = self._learner.export(np.searchsorted(s.tokens, s.known))
        write_trained_card(o.output, predictor.config, report)
        predictor.save(o.output)
        return TrainResult(report, notes)


def _plan(
    o: TrainOptions, survey: Survey
) -> tuple[int, int, Callable[[mx.array], mx.array]]:
    """The number of steps, those of warm-up, and the learning rate over them."""
    each = -(-survey.training_positions // o.batch_size)
    steps = o.steps or max(1, round(o.epochs * each))
    warmup = min(100, steps // 10) if o.warmup is None else o.warmup
    schedule = make_schedule(o.schedule, o.learning_rate, steps, warmup, o.phi)
    return steps, warmup, schedule


def public_name(model: str) -> str:
    """The model's name on the Hub, or that of its folder, for the model card."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
