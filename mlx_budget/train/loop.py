"""`train`: from chat records to a predictor folder, in runs that can be stopped.

Knows the kinds of predictors and the order of the steps; nothing of updates.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.memory import tell_of_size, wired
from ..engine.thinking import ThinkingMarkers, find_markers
from ..method.predictor import NO_THRESHOLDS
from ..method.predictor_config import PredictorConfig
from ..method.table import TablePredictor
from ..models.fetching import Ahead, find_before, look_ahead
from ..models.loading import load_source
from ..models.model_card import write_light_card
from . import tables
from .cache import StateCache
from .dataset import Dataset, Survey
from .options import WITHOUT_ENCODER, TrainOptions
from .output import (
    check_output,
    finished_report,
    is_finished,
    output_folder,
    states_folder,
)
from .progress import Progress, TrainResult
from .records import check_data
from .report import Predictions, make_report, write_report
from .updates import Updates, make_plan

__all__ = ["Progress", "TrainResult", "public_name", "train"]


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
    find_before(options.data, options.source)
    check_data(options.data)
    if loaded is None:
        # A table needs no weights of the model.
        look_ahead(options.source, lambda ahead: _check_ahead(options, ahead))
        is_lazy = options.size == "table"
        loaded = load_source(options.source, lazy=is_lazy)[:2]
    model, tokenizer = loaded
    markers = find_markers(tokenizer, options.thinking.start, options.thinking.end)
    tell_of_size(model)
    with output_folder(options), wired():
        dataset = Dataset(options, model, tokenizer)
        survey = dataset.survey(lambda n: progress(Progress("reading", n)))
        if options.size == "table":
            return _finish(options, survey, *_count(options, model, markers, dataset))
        is_linear = options.size == "linear"
        # Raises before the long part.
        plan = None if is_linear else make_plan(options, survey)
        cache = dataset.fill_cache(
            states_folder(options),
            survey,
            lambda n, rate: progress(Progress("encoding", n, survey.records, rate)),
        )
        if plan is None:
            found = _count(options, model, markers, dataset, cache)
            return _finish(options, survey, *found)
        config = _encoder_config(options, model, survey, cache)
        del model, dataset, loaded  # the updates need nothing but the cache
        mx.clear_cache()
        updates = Updates(options, survey, cache, config, plan, progress)
        updates.go()
        return updates.finish()


def _check_ahead(options: TrainOptions, ahead: Ahead) -> None:
    """Reads the records as they will be read, without the model."""
    find_markers(ahead.tokenizer, options.thinking.start, options.thinking.end)
    survey = Dataset(options, ahead.model, ahead.tokenizer).survey(lambda _: None)
    if options.size not in WITHOUT_ENCODER:
        make_plan(options, survey)


def _encoder_config(
    options: TrainOptions, model: nn.Module, survey: Survey, cache: StateCache
) -> PredictorConfig:
    layers, width = cache.shape
    return PredictorConfig(
        base_model=public_name(options.model),
        model_width=width,
        model_layers=layers - 1,
        vocab_size=tables.vocabulary_of(model),
        **options.predictor_sizes(),
        norm="pre",
        standardize_inputs=True,
        known_tokens=len(survey.tokens),
        # Guidance may favour known tokens only; nothing else need keep one out.
        thresholds=NO_THRESHOLDS,
    )


def _count(
    options: TrainOptions,
    model: nn.Module,
    markers: ThinkingMarkers,
    dataset: Dataset,
    cache: StateCache | None = None,
) -> tuple[TablePredictor, Predictions]:
    """A table, or with hidden states a linear predictor, and what it says."""
    p = dataset.guided_positions()
    if p.is_validation.all():
        raise ValueError(
            f"{options.data} has no position of training where guidance acts: raise "
            "--max-length, or give more records."
        )
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


def public_name(model: str) -> str:
    """The model's name on the Hub, or that of its folder, for the model card."""
    path = Path(model)
    return path.resolve().name if path.exists() else model
