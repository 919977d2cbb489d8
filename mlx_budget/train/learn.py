"""`learn`: from a model to the predictor that serves it best, in runs that can stop.

The model's own replies are recorded, each step of the ladder of predictors is made of
them, and the one that steers held-out prompts best is kept. Knows the order of the
steps; nothing of how each is done.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import stream_batch_generate
from ..engine.context import context_length
from ..engine.fields import keywords_of, take_all
from ..engine.memory import wired
from ..engine.messages import Chat
from ..engine.priors import prior_for
from ..engine.prompt_files import read_prompts
from ..engine.prompts import encode_chat
from ..engine.settings import (
    AT_MOST,
    ModelSource,
    ThinkingBudget,
    seed_of,
)
from ..engine.thinking import find_markers
from ..files import hub
from ..files.atomic import appearing_file
from ..files.locks import in_use
from ..files.outputs import check_output_folder
from ..files.texts import read_json, write_json, write_text
from ..method.predictor import CONFIG_FILE, WEIGHTS_FILE, Predictor
from ..method.table import TablePredictor
from ..models.fetching import Ahead, find_before
from ..models.loading import load_source
from . import tables
from .builtin_prompts import builtin_prompts
from .choice import Steered, choose, verdict
from .collapse import CollapsedError
from .cost import steering_cost
from .dataset import Dataset
from .learn_options import FIRST_TABLE, LearnOptions
from .loop import Progress, public_name, train
from .options import ALL_SIZES, WITHOUT_ENCODER, TraceOptions, TrainOptions
from .picture import PICTURE_FILE
from .report import REPORT_FILE
from .traces import TraceStats, check_prompts, write_traces

VERDICT_FILE = "learned.json"
WORK, TRACES_FILE = "learning", "traces.jsonl"
# Budgets at which held-out prompts are steered, in mean lengths of thinking.
STEERED_SHARE = 0.6

_KEPT_FILES = (WEIGHTS_FILE, REPORT_FILE, PICTURE_FILE, "README.md", CONFIG_FILE)


@dataclass(frozen=True)
class Learned:
    """What a run has come to.

    Attributes:
        chosen: Name of the predictor that was kept.
        steered: Of each predictor, the prior and the cut.
        budget: Tokens of the budget that they were steered to.
        records: Replies that were learnt from.
        verdict: In a sentence.
        failed: Names of predictors that did not learn to see hidden states.
        made_of: Digest of the replies, and of what else decides the outcome.
        is_new: Whether it was made now.
    """

    chosen: str
    steered: list[Steered]
    budget: int
    records: int
    verdict: str
    failed: list[str] = field(default_factory=list)
    made_of: str = ""
    is_new: bool = True


class _TimeIsUp(Exception):
    pass


def learn(
    source: ModelSource,
    output: Path,
    progress: Callable[[str, Progress | TraceStats], None] = lambda _, __: None,
    **options: Any,
) -> Learned:
    """Makes the predictor that serves a model best.

    The output is a predictor folder, usable from the first `FIRST_TABLE` replies on. A
    run that was stopped goes on when it is called again, and so does one that is to
    have more prompts.

    Args:
        source (ModelSource): The model; its predictor does not matter.
        output (Path): The folder. Replies and steps are kept in ``learning`` in it.
        progress (Callable): Called with what is done now, and how far it is.
        options: The fields of `LearnOptions`, and of the values that it holds.

    Raises:
        ValueError: In one line, if an option cannot be used, the model does not think,
            or the folder holds something else or is in use.
    """
    asked = take_all(LearnOptions, options)
    output = Path(output)
    check_output(output)
    if asked.data is not None:
        find_before(asked.data, source)
        read_prompts(asked.data)  # says what is wrong before the model is loaded
    source = replace(source, predictor=False)
    check = partial(_check_ahead, source, output, asked)
    model, tokenizer, _ = load_source(source, check=check)
    find_markers(tokenizer, asked.start, asked.end)
    work = output / WORK
    work.mkdir(parents=True, exist_ok=True)
    with in_use(work), wired():
        prompts = prompts_for(asked, source.model, work)
        run = _Run(source, output, model, tokenizer, asked, progress)
        run.record(prompts)
        return run.choose()


def _check_ahead(
    source: ModelSource, output: Path, o: LearnOptions, ahead: Ahead
) -> None:
    """Raises a ValueError if nothing could be learnt from what was given."""
    find_markers(ahead.tokenizer, o.start, o.end)
    most = context_length(ahead.model, ahead.tokenizer)
    if o.traces is not None:
        options = train_options(source, output, o)
        Dataset(options, ahead.model, ahead.tokenizer).survey(lambda _: None)
    elif o.data is not None:
        traces = trace_options(source, o)
        file = output / WORK / TRACES_FILE
        check_prompts(ahead.tokenizer, read_prompts(o.data), file, traces, most)


def prompts_for(o: LearnOptions, model: str, work: Path) -> Sequence[str | Chat]:
    """What to think about: the user's own prompts, or the built-in ones.

    The built-in ones are written down, so that a run goes on with those that it began
    with, whether the Hub can be reached or not.
    """
    if o.traces is not None:
        return []
    if o.data is not None:
        return read_prompts(o.data)
    file = work / "prompts.jsonl"
    if not file.exists():
        found = builtin_prompts(model, o.sampling.seed or 0)
        lines = (json.dumps({"prompt": prompt}) + "\n" for prompt in found)
        write_text(file, "".join(lines))
    return read_prompts(file)


def trace_options(source: ModelSource, o: LearnOptions) -> TraceOptions:
    """How the replies of a run are made."""
    return TraceOptions(
        limit=o.num_prompts,
        batch_size=o.batch_size,
        max_tokens=o.max_tokens,
        sampling=o.sampling,
        thinking_only=True,
        start=o.start,
        end=o.end,
        prompt=o.prompt,
        model_name=hub.model_name(source.model, source.adapter_path, source.revision),
    )


def train_options(source: ModelSource, output: Path, o: LearnOptions) -> TrainOptions:
    """How the table of a run is made."""
    return TrainOptions(
        model=source.model,
        data=o.traces or str(output / WORK / TRACES_FILE),
        output=output / WORK / "table",
        adapter_path=source.adapter_path,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        thinking_start=o.start,
        thinking_end=o.end,
        system_prompt=o.prompt.system_prompt,
        chat_template_config=o.prompt.chat_template_config,
        size="table",
        seed=o.sampling.seed or 0,
    )


def table_so_far(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    source: ModelSource,
    output: Path,
    o: LearnOptions,
) -> TablePredictor:
    """The table of all replies so far."""
    dataset = Dataset(train_options(source, output, o), model, tokenizer)
    p = dataset.guided_positions()
    markers = find_markers(tokenizer, o.start, o.end)
    vocab_size = tables.vocabulary_of(model)
    base = tables.Base(public_name(source.model), vocab_size, markers.end_tokens[0])
    return tables.make_table(base, p, np.arange(len(p.tokens)))


class _Run:
    def __init__(
        self,
        source: ModelSource,
        output: Path,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        options: LearnOptions,
        progress: Callable[[str, Progress | TraceStats], None],
    ):
        self._source = source
        self._output, self._work = output, output / WORK
        self._loaded = model, tokenizer
        self._options = options
        self._progress = progress
        self._traces = options.traces or str(self._work / TRACES_FILE)
        self._has_table = (output / CONFIG_FILE).exists()

    def record(self, prompts: Sequence[str | Chat]) -> None:
        """Generates the replies, if they are not there."""
        o, started = self._options, time.monotonic()
        if o.traces is not None:
            return

        def show(stats: TraceStats) -> None:
            self._progress("Replies", stats)
            if stats.closed >= FIRST_TABLE and not self._has_table:
                self._keep_table()
            is_late = o.hours and time.monotonic() - started > 3600 * o.hours
            if is_late and stats.written:
                raise _TimeIsUp

        traces = trace_options(self._source, o)
        try:
            write_traces(
                *self._loaded,
                prompts,
                self._traces,
                progress=show,
                **keywords_of(traces),
            )
        except _TimeIsUp:
            pass

    def _keep_table(self) -> None:
        """Makes the output usable with the table of the replies so far."""
        table_so_far(*self._loaded, self._source, self._output, self._options).save(
            self._output
        )
        self._has_table = True

    def _train_options(self, size: str) -> TrainOptions:
        folder = self._work / size
        is_light = size in WITHOUT_ENCODER
        return replace(
            train_options(self._source, self._output, self._options),
            size=size,
            output=folder,
            # Hidden states are the same for all sizes that read them.
            cache_dir=None if size == "table" else self._work / "states",
            resume=not is_light and (folder / "training").is_dir(),
        )

    def choose(self) -> Learned:
        """Makes the steps of the ladder, steers by each, and keeps the best."""
        o = self._options
        lengths, held_out = self._measure()
        arms = [*o.size_names, "prior", "cut"]
        made_of = self._digest()
        done = self._finished(made_of, arms)
        if done is not None:
            return done
        self._forget_if_changed(made_of)
        losses, failed = self._train_all()
        budget = max(1, round(STEERED_SHARE * float(np.mean(lengths))))
        steered = []
        arms = [name for name in arms if name not in failed]
        for i, name in enumerate(arms):
            self._progress("Steering", Progress("steering", i, len(arms)))
            steered.append(self._steer(name, budget, held_out, losses.get(name)))
        self._progress("Steering", Progress("steering", len(arms), len(arms)))
        chosen = choose(steered[: len(losses)])
        told = verdict(chosen, {s.name: s for s in steered})
        if failed:
            told += f" Of no use were the hidden states to: {', '.join(failed)}."
        learned = Learned(chosen, steered, budget, len(lengths), told, failed, made_of)
        self._keep(learned)
        return learned

    def _measure(self) -> tuple[list[int], list[Chat]]:
        """Lengths of the replies that can be learnt from, and the held-out prompts."""
        model, tokenizer = self._loaded
        lengths: list[int] = []
        held_out: dict[str, None] = {}
        dataset = Dataset(self._train_options("table"), model, tokenizer)
        for record, is_held_out in dataset.records():
            lengths.append(int(record.lengths[0]))
            if is_held_out:
                held_out[record.group] = None
        if not held_out or len(held_out) == len(lengths):
            more = "raise --num-prompts, --hours or --max-tokens"
            if self._options.traces is not None:
                more = "give --traces more of them"
            raise ValueError(
                f"{self._traces} has {len(lengths)} replies in which the model closed "
                f"its thinking, too few to learn from and to try: {more}."
            )
        most = self._options.held_out_prompts
        return lengths, [json.loads(group) for group in list(held_out)[:most]]

    def _finished(self, made_of: str, arms: list[str]) -> Learned | None:
        """What an earlier run has come to, if there is nothing to add to it."""
        file = self._output / VERDICT_FILE
        if not file.exists():
            return None
        found = read_json(file, f"There is no {file}.")
        try:
            assert isinstance(found, dict)
            steered = [Steered(**s) for s in found.pop("steered")]
            learned = Learned(**found, steered=steered, is_new=False)
        except (AssertionError, KeyError, TypeError):
            return None
        asked = [name for name in arms if name not in learned.failed]
        is_same = learned.made_of == made_of and [s.name for s in steered] == asked
        return learned if is_same else None

    def _digest(self) -> str:
        """What tells the outcome of a run from that of others."""
        o, dataset = self._options, Dataset(self._train_options("table"), *self._loaded)
        model = trace_options(self._source, o).model_name
        decides = [dataset.survey(lambda _: None).digest, model, o.sampling.seed]
        decides += [o.held_out_prompts, o.max_tokens]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]

    def _forget_if_changed(self, made_of: str) -> None:
        """Removes the steps that were made of fewer replies, or of others."""
        file = self._work / "state.json"
        state = {"made_of": made_of}
        if file.exists() and read_json(file, "") != state:
            for name in ("states", *ALL_SIZES):
                shutil.rmtree(self._work / name, ignore_errors=True)
        write_json(file, state)

    def _train_all(self) -> tuple[dict[str, float | None], list[str]]:
        """The held-out loss of each size that was made, and the others.

        Raises:
            CollapsedError: If none was made.
        """
        losses: dict[str, float | None] = {}
        failed: list[str] = []
        error: CollapsedError | None = None
        for size in self._options.size_names:
            try:
                losses[size] = self._train(size)
            except CollapsedError as e:
                failed.append(size)
                error = e
        if error is not None and not losses:
            raise error
        return losses, failed

    def _train(self, size: str) -> float | None:
        """Makes a step of the ladder; its loss on held-out positions, in nats."""
        options = self._train_options(size)
        if (options.output / CONFIG_FILE).exists():
            report = read_json(options.output / REPORT_FILE, "There is no report.")
            return report["val_loss"] if isinstance(report, dict) else None

        def show(now: Progress) -> None:
            self._progress(f"{size}: {now.stage}", now)

        return train(options, show, self._loaded).report["val_loss"]

    def _steer(
        self, name: str, budget: int, prompts: list[Chat], loss: float | None
    ) -> Steered:
        o = self._options
        model, tokenizer = self._loaded
        predictor: Predictor | bool | None = False
        thinking = ThinkingBudget(
            budget, hard_stop=1.0, mode=AT_MOST, start=o.start, end=o.end
        )
        if name == "prior":
            markers = find_markers(tokenizer, o.start, o.end)
            predictor = prior_for(tokenizer, markers)
        elif name != "cut":
            predictor = Predictor.load(self._work / name)
        if name != "cut":
            thinking = replace(thinking, hard_stop=ThinkingBudget().hard_stop)
        keywords = keywords_of(o.sampling)
        keywords["seed"] = [
            seed_of(o.sampling.seed or 0, i) for i in range(len(prompts))
        ]
        encoded = [self._encode(chat) for chat in prompts]
        replies = list(
            stream_batch_generate(
                model,
                tokenizer,
                encoded,
                predictor=predictor,
                stop_after_thinking=True,
                batch_size=o.batch_size,
                **keywords_of(thinking),
                **keywords,
            )
        )
        cost = partial(steering_cost, model, tokenizer, predictor, thinking, o.sampling)
        ordered = sorted(replies, key=lambda reply: reply.index)
        used = np.array([reply.thinking_tokens for reply in replies])
        return Steered(
            name,
            [cost(encoded[r.index], r) for r in ordered],
            float(np.mean([reply.closed_by == "model" for reply in replies])),
            float(np.mean(np.abs(used - budget)) / budget),
            loss,
        )

    def _encode(self, chat: Chat) -> list[int]:
        prompt = self._options.prompt
        tokenizer = self._loaded[1]
        if prompt.ignore_chat_template or not tokenizer.has_chat_template:
            return encode_chat(
                tokenizer, chat[-1]["content"], ignore_chat_template=True
            )
        # A system prompt is in the chat already.
        return encode_chat(
            tokenizer, chat, chat_template_config=prompt.chat_template_config
        )

    def _keep(self, learned: Learned) -> None:
        """Puts the chosen predictor into the output, its configuration last."""
        folder = self._work / learned.chosen
        for name in _KEPT_FILES:
            if (folder / name).exists():
                with appearing_file(self._output / name) as f:
                    f.write((folder / name).read_bytes())
        values = asdict(learned)
        del values["is_new"]
        write_json(self._output / VERDICT_FILE, values)


def check_output(output: Path) -> None:
    """Raises a ValueError if a folder holds something else than a run of `learn`."""
    check_output_folder(output)
    if not output.is_dir() or (output / WORK).is_dir():
        return
    if any(path.name != ".DS_Store" for path in output.iterdir()):
        raise ValueError(
            f"{output} is not empty, and holds no run of learn: choose another "
            "--output."
        )
