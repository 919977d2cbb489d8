"""The updates of an encoder, from the newest checkpoint of its run on.

All of them run on cached hidden states. Knows the state of a run and what ends it;
nothing of language models or of how records become positions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from ..method.predictor_config import PredictorConfig
from ..models.model_card import write_trained_card
from . import checkpoints
from .cache import StateCache, batches
from .collapse import LEAST_RESPONSE, CollapsedError, has_collapsed
from .dataset import Survey
from .learner import Learner
from .options import TrainOptions
from .output import BEST_FILE, CURVES_FILE, states_folder, work_folder
from .progress import Progress, TrainResult
from .report import make_report, write_report
from .schedules import make_schedule
from .validation import Split, stays_collapsed

# Share of the model's probability below which guidance has little to choose from.
SMALL_MASS = 0.8

_LARGEST_GRADIENT = 1.0
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Plan:
    """How many updates there are, and how fast.

    Attributes:
        steps: Number of updates.
        warmup: Those of them over which the learning rate rises.
        schedule: The learning rate after some updates.
    """

    steps: int
    warmup: int
    schedule: Callable[[mx.array], mx.array]


def make_plan(o: TrainOptions, survey: Survey) -> Plan:
    """The plan that the options make for the records of a survey.

    Raises:
        ValueError: If the warm-up is as long as the run.
    """
    each = -(-survey.training_positions // o.batch_size)
    steps = o.steps or max(1, round(o.epochs * each))
    warmup = min(100, steps // 10) if o.warmup is None else o.warmup
    schedule = make_schedule(o.schedule, o.highest_rate, steps, warmup, o.phi)
    return Plan(steps, warmup, schedule)


class Updates:
    """The updates of a run, from its newest checkpoint on.

    Attributes:
        curves: The losses so far.

    Args:
        options (TrainOptions): Of the run.
        survey (Survey): Of its records.
        cache (StateCache): Their hidden states.
        config (PredictorConfig): Of the predictor, which is to know all tokens of the
            survey.
        plan (Plan): The updates to make.
        progress (Callable): Called after each.
    """

    def __init__(
        self,
        options: TrainOptions,
        survey: Survey,
        cache: StateCache,
        config: PredictorConfig,
        plan: Plan,
        progress: Callable[[Progress], None],
    ):
        self._options = options
        self._survey = survey
        self._cache = cache
        self._plan = plan
        self._progress = progress
        self._work = work_folder(options)
        self._split = Split(cache, survey.tokens)
        p, train = self._split.positions, self._split.train
        mx.random.seed(options.seed)
        self._learner = Learner(
            config,
            survey.tokens,
            p.tokens[train],
            p.lengths[train],
            cache.moments(train),
        )
        own = optim.AdamW(plan.schedule, weight_decay=options.weight_decay)
        # Nothing but what a token has of its own is to be small.
        self._optimizer = optim.MultiOptimizer(
            [own, optim.Adam(plan.schedule)], [lambda name, _: name == "own"]
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
            if self._step == self._plan.steps:
                break
            loss, gradients = loss_and_gradients(rows)
            gradients, norm = optim.clip_grad_norm(gradients, _LARGEST_GRADIENT)
            if not np.isfinite([loss.item(), norm.item()]).all():
                raise self._not_finite(self._step + 1, rows, self._losses(rows))
            self._optimizer.update(self._learner, gradients)
            mx.eval(self._learner.trainable_parameters(), self._optimizer.state)
            self._step += 1
            done += len(rows)
            if self._step % o.eval_every == 0 or self._step == self._plan.steps:
                val_loss = self._validate(loss.item())
            else:
                self.curves.add(step=self._step, loss=loss.item())
            if self._step % o.save_every == 0 or self._step == self._plan.steps:
                self._save()
            rate = done / positions_per_record / (time.perf_counter() - start)
            losses = loss.item(), val_loss
            now = Progress("training", self._step, self._plan.steps, rate, losses)
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
        if stays_collapsed(self.curves.rows, self._plan.warmup):
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

    def _collapsed(self, found: float) -> CollapsedError:
        """What to say of a predictor whose `collapse.response` is too small."""
        validated = [r["val_loss"] for r in self.curves.rows if "val_loss" in r]
        if self._options.keep == "best" and min(validated) == validated[0]:
            what = (
                f"In {self._step} steps the loss on held-out records never fell below "
                "that of one Gamma for each token, from which training starts"
            )
        else:
            what = (
                f"After {self._step} of {self._plan.steps} steps the predictor says "
                "the same whatever the hidden states are: what it says of one token "
                f"differs by {found:.1g} of what the lengths do, and "
                f"{LEAST_RESPONSE:g} is the least"
            )
        return CollapsedError(
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
            "steps": self._plan.steps,
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
        known = np.searchsorted(s.tokens, s.known)
        predictor = self._learner.export(known, self._split.certain)
        write_trained_card(o.output, predictor.config, report)
        predictor.save(o.output)
        return TrainResult(report, notes)


def _split(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
