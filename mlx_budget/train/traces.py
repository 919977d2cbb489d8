"""A model's own reasoning over many prompts, as chat records to learn from.

Knows prompts, replies and what is written of them; nothing of training or of how
options are parsed.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import stream_batch_generate
from ..engine.context import context_length
from ..engine.fields import keywords_of, take_all
from ..engine.messages import Chat, plain_chat
from ..engine.prompts import encode_chat
from ..engine.settings import seed_of
from ..engine.template import let_think
from ..engine.thinking import find_markers
from ..files.atomic import full_disk_in_one_line
from ..files.outputs import check_output_file, taken_back
from ..files.records import Record, RecordFile, has_records, open_records, to_line
from .options import TraceOptions

_ID = re.compile("([0-9]+)-([0-9]+)")


@dataclass(frozen=True)
class TraceStats:
    """Where a run is.

    Attributes:
        records: Records in the file.
        total: Records that will be in it at the end.
        closed: Those in which the model closed its thinking.
        thinking_tokens: Thinking tokens of all records together.
        written: Records that this run has written.
        tokens: Tokens of these.
        seconds: Time that it took to generate them.
    """

    records: int = 0
    total: int = 0
    closed: int = 0
    thinking_tokens: int = 0
    written: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def mean_thinking_tokens(self) -> float:
        """Thinking tokens of a record, on average."""
        return self.thinking_tokens / max(self.records, 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of finished replies by the time of this run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def adding(self, record: Record) -> "TraceStats":
        """The statistics with one more record in the file."""
        return replace(
            self,
            records=self.records + 1,
            closed=self.closed + (record["closed_by"] == "model"),
            thinking_tokens=self.thinking_tokens + record["thinking_tokens"],
        )


def write_traces(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[str | Chat],
    output: str | Path,
    *,
    progress: Callable[[TraceStats], None] = lambda _: None,
    **options: Any,
) -> TraceStats:
    """Generates replies without a budget; appends each to a file when it is finished.

    A record is a JSON object on a line of its own::

        {"id": "<index of the prompt>-<index of the sample>",
         "messages": [<the chat as sent>, {"role": "assistant", "content": <reply>}],
         "tokens": [<token ids of the reply, without the one that ended it>],
         "thinking_tokens": n, "closed_by": "model" or null,
         "finish_reason": "stop", "length" or "closed", "prompt_tokens": n,
         "settings": <digest of the model's name and the options>}

    The content is the whole reply, markers included; where the chat template opens the
    thinking block in the prompt, it begins behind the opening marker. A prompt that
    meets no chat template is a user message, and its record has ``"raw_prompt": true``.

    A run on an existing file goes on with it: what a killed run left of a line is cut
    off, and what is there already is not generated again. The replies are those of a
    run that was never stopped, to the rounding of batched arithmetic: a sampled one
    depends on the seed, its prompt's index and its sample's alone. Without a seed they
    are other draws of the same distribution.

    Args:
        model, tokenizer: As `mlx_budget.load` returns them.
        prompts (Sequence): Texts or chats (lists of messages), as `read_prompts`
            returns them.
        output (str or Path): The file, *.jsonl.
        progress (Callable): Called at the start and after each record.
        options: The fields of `TraceOptions`, and of the values that it holds.

    Returns:
        TraceStats: Of the file and this run.

    Raises:
        ValueError: In one line, if an option or a prompt cannot be used, the file is of
            another run or in use, or the disk is full.
    """
    run = take_all(TraceOptions, options)
    most = context_length(model, tokenizer)
    with open_traces(tokenizer, prompts, output, run, most) as traces:
        progress(traces.stats)
        sampling = keywords_of(run.sampling)
        if run.sampling.seed is not None:
            sampling["seed"] = [traces.seed_of(*names) for names in traces.missing]
        replies = stream_batch_generate(
            model,
            tokenizer,
            [traces.prompts[index] for index, _ in traces.missing],
            predictor=False,
            max_tokens=run.max_tokens,
            stop_after_thinking=run.thinking_only,
            batch_size=run.batch_size,
            prefill_step_size=run.prefill_step_size,
            **keywords_of(run.thinking),
            **sampling,
        )
        with closing(replies):
            for reply in replies:
                traces.add(*traces.missing[reply.index], reply)
                progress(traces.stats)
        return traces.stats


class Reply(Protocol):
    """What a record takes of a reply; `BatchReply` and others have it."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def thinking_tokens(self) -> int: ...
    @property
    def closed_by(self) -> str | None: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...


class Traces:
    """A file of traces, and what is missing in it.

    Attributes:
        options: Of the run.
        missing: Index of the prompt and of the sample of each reply that is not there.
        prompts: Token ids of the prompts that are still to be answered, by index.
        stats: Of the file and this run.
        started: When the first reply was begun.
    """

    def __init__(
        self,
        file: RecordFile,
        options: TraceOptions,
        chats: list[Chat],
        constants: Record,
    ):
        self.options = options
        self._file, self._chats, self._constants = file, chats, constants
        self.missing: list[tuple[int, int]] = []
        self.prompts: dict[int, list[int]] = {}
        self.stats = TraceStats()
        self.started = time.perf_counter()

    def seed_of(self, index: int, sample: int) -> int | None:
        """The seed of one reply; None if the run has none."""
        seed = self.options.sampling.seed
        return None if seed is None else seed_of(seed, index, sample)

    def read(self, limit: int) -> None:
        """Reads what is there, for what is missing of the first ``limit`` prompts."""
        check = partial(
            _check_trace, chats=self._chats, settings=self._constants["settings"]
        )
        there = set()
        for record in self._file.read(check):
            name = _indices(record)
            if name not in there:
                there.add(name)
                self.stats = self.stats.adding(record)
        # Every prompt once before any a second time, in case the run is stopped.
        self.missing = [
            (index, sample)
            for sample in range(self.options.num_samples)
            for index in range(limit)
            if (index, sample) not in there
        ]
        total = self.stats.records + len(self.missing)
        self.stats = replace(self.stats, total=total)

    def add(self, index: int, sample: int, reply: Reply) -> None:
        """Writes a reply of a prompt."""
        chat = self._chats[index]
        record = _record(f"{index}-{sample}", chat, reply, self._constants)
        self._file.append(record)
        self.stats = replace(
            self.stats.adding(record),
            written=self.stats.written + 1,
            tokens=self.stats.tokens + len(reply.tokens),
            seconds=time.perf_counter() - self.started,
        )


@contextmanager
def open_traces(
    tokenizer: TokenizerWrapper,
    prompts: Sequence[str | Chat],
    output: str | Path,
    run: TraceOptions,
    most_tokens: int,
) -> Iterator[Traces]:
    """Opens a file of traces, for this program alone, and reads what is there.

    Args:
        tokenizer, prompts, output: As of `write_traces`.
        run (TraceOptions): Its options.
        most_tokens (int): Of a prompt, see `context.context_length`.

    Raises:
        ValueError: As `write_traces`.
    """
    output = check_output(output)
    if isinstance(prompts, str):
        raise ValueError("prompts must be a sequence of prompts: put it in a list.")
    settings = run.settings(find_markers(tokenizer, run.start, run.end))
    prompts = [
        _fill(run.prompt_template, prompt, index)
        for index, prompt in enumerate(prompts)
    ]
    chats = [_messages(prompt, run.prompt.system_prompt) for prompt in prompts]
    # What is written of a reply, besides the reply.
    constants: Record = {"settings": settings}
    if run.prompt.ignore_chat_template or not tokenizer.has_chat_template:
        constants["raw_prompt"] = True
    advice = "and run the same again: it goes on where it ended"
    with (
        full_disk_in_one_line(output, advice),
        taken_back(output, is_worth_keeping=lambda: has_records(output)),
        open_records(output) as file,
    ):
        traces = Traces(file, run, chats, constants)
        traces.read(len(prompts[: run.limit]))
        wanted = {index for index, _ in traces.missing}
        traces.prompts = _encode(tokenizer, prompts, wanted, run, most_tokens)
        traces.started = time.perf_counter()
        yield traces


def check_prompts(
    tokenizer: TokenizerWrapper,
    prompts: Sequence[str | Chat],
    output: str | Path,
    run: TraceOptions,
    most_tokens: int,
) -> None:
    """Checks that prompts can be answered, before the model is there to do it.

    Args:
        tokenizer, prompts, output, run, most_tokens: As of `open_traces`.

    Raises:
        ValueError: As `open_traces`.
    """
    output = check_output(output)
    if output.exists():
        with open_traces(tokenizer, prompts, output, run, most_tokens):
            return
    find_markers(tokenizer, run.start, run.end)
    filled = [
        _fill(run.prompt_template, prompt, index)
        for index, prompt in enumerate(prompts)
    ]
    wanted = range(len(filled[: run.limit]))
    _encode(tokenizer, filled, wanted, run, most_tokens)


def check_output(output: str | Path) -> Path:
    """The path of the file to write, which is not made yet.

    Raises:
        ValueError: If its name is not that of a file of JSON lines, or it cannot be
            written.
    """
    output = Path(output)
    if output.suffix != ".jsonl":
        raise ValueError(f"The output must be a file *.jsonl, not {output}.")
    check_output_file(output)
    return output


def _fill(template: str | None, prompt: str | Chat, index: int) -> str | Chat:
    """A prompt as it is sent, and written of."""
    if not isinstance(prompt, str):
        try:
            return plain_chat(prompt)
        except ValueError as e:
            raise ValueError(f"{_name(index)} cannot be used: {e}.") from None
    if template is None:
        return prompt
    # The first alone: a template may well ask for the answer in \boxed{}.
    return template.replace("{}", prompt, 1)


def _name(index: int) -> str:
    return f"Prompt {index} (the first is 0)"


def _messages(prompt: str | Chat, system_prompt: str | None) -> Chat:
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    if isinstance(prompt, str):
        return [*messages, {"role": "user", "content": prompt}]
    return [*messages, *prompt]


def _encode(
    tokenizer: TokenizerWrapper,
    prompts: list[str | Chat],
    indices: Collection[int],
    options: TraceOptions,
    most_tokens: int,
) -> dict[int, list[int]]:
    encoded = {}
    template = let_think(tokenizer, options.thinking, options.prompt)
    chat = {**keywords_of(template), "most_tokens": most_tokens}
    for index in sorted(indices):
        prompt = prompts[index]
        try:
            encoded[index] = encode_chat(tokenizer, prompt, **chat)
            to_line({"prompt": prompt, "system_prompt": options.prompt.system_prompt})
        except ValueError as e:
            raise ValueError(f"{_name(index)} cannot be used: {e}") from e
    return encoded


def _record(name: str, chat: Chat, reply: Reply, constants: Record) -> Record:
    return {
        "id": name,
        "messages": [*chat, {"role": "assistant", "content": reply.text}],
        "tokens": reply.tokens,
        "thinking_tokens": reply.thinking_tokens,
        "closed_by": reply.closed_by,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        **constants,
    }


def _check_trace(record: object, where: str, chats: list[Chat], settings: str) -> None:
    """Raises a ValueError unless a line holds a record of this run."""
    if not isinstance(record, dict) or not _is_trace(record):
        raise ValueError(
            f"{where} is no record of traces: choose another --output, or remove the "
            "line."
        )
    index, _ = _indices(record)
    if record.get("settings") != settings:
        raise ValueError(
            f"{where} was made with another model, or other options of sampling, "
            "prompt, markers or length: choose another --output, or set them as before."
        )
    if index >= len(chats) or record["messages"][:-1] != chats[index]:
        raise ValueError(
            f"{where} does not belong to prompt {index} of these (the first is 0): "
            "choose another --output, or give the prompts as before."
        )


def _indices(record: Record) -> tuple[int, int]:
    """Indices of prompt and sample of a record."""
    index, sample = record["id"].split("-")
    return int(index), int(sample)


def _is_trace(record: Record) -> bool:
    name = record.get("id")
    return (
        isinstance(name, str)
        and _ID.fullmatch(name) is not None
        and isinstance(record.get("messages"), list)
        and isinstance(record.get("thinking_tokens"), int)
        and "closed_by" in record
    )
