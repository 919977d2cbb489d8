"""A model's own reasoning over many prompts, as chat records to learn from.

Knows prompts, replies and what is written of them; nothing of training or of how
options are parsed.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import BatchReply, stream_batch_generate
from ..engine.prompts import encode_chat
from ..engine.settings import UNBOUNDED_TOKENS, check_temperature
from ..engine.thinking import ThinkingMarkers, find_markers
from ..files.atomic import full_disk_in_one_line
from ..files.records import open_records, to_line

_ID = re.compile("([0-9]+)-([0-9]+)")
_SAMPLING = ("temp", "top_p", "min_p", "top_k")


@dataclass(frozen=True)
class TraceOptions:
    """The options of `write_traces`.

    Attributes:
        num_samples: Replies to each prompt.
        limit: How many of the prompts to take, from the first; None for all.
        batch_size: Most replies to generate at a time.
        max_tokens: Most tokens of a reply, thinking included; -1 for no limit.
        temp: Sampling temperature. Predictions hold for the distribution that their
            training data was drawn from.
        top_p, min_p, top_k: As in ``mlx_lm.sample_utils.make_sampler``.
        thinking_only: Whether to end each reply when its thinking is closed. That is
            faster, and leaves no answer to be concise with.
        seed: Of the sampling; None for one that differs from run to run.
        thinking_start: Opening marker, in place of the tokenizer's.
        thinking_end: Closing marker, in place of the tokenizer's.
        system_prompt: Put before the messages.
        chat_template_config: More arguments for the chat template.
        ignore_chat_template: Whether to use the prompts as they are.
        prompt_template: What to send in place of a prompt that is a text: its first
            ``{}`` stands for the prompt.
        prefill_step_size: Prompt tokens to process at a time.
        model_name: What tells the model from others.
    """

    num_samples: int = 1
    limit: int | None = None
    batch_size: int = 8
    max_tokens: int = UNBOUNDED_TOKENS
    temp: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    thinking_only: bool = False
    seed: int | None = None
    thinking_start: str | None = None
    thinking_end: str | None = None
    system_prompt: str | None = None
    chat_template_config: dict | None = None
    ignore_chat_template: bool = False
    prompt_template: str | None = None
    prefill_step_size: int = 2048
    model_name: str = ""

    def __post_init__(self):
        for name in ("num_samples", "limit", "batch_size", "prefill_step_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}.")
        if self.max_tokens < -1 or self.max_tokens == 0:
            raise ValueError(
                f"max_tokens must be 1 or more, or -1 for no limit, not "
                f"{self.max_tokens}."
            )
        check_temperature(self.temp)
        if self.temp == 0 and self.num_samples > 1:
            raise ValueError(
                f"At temp 0 all {self.num_samples} samples of a prompt would be the "
                "same: set a temperature above 0, or take one sample of each."
            )
        if self.prompt_template is not None and "{}" not in self.prompt_template:
            raise ValueError(
                f"The prompt template {self.prompt_template!r} has no {{}} to stand "
                "for the prompt."
            )

    def settings(self, markers: ThinkingMarkers) -> str:
        """A digest of what decides which replies a prompt can get."""
        values = {
            **{name: float(getattr(self, name)) for name in _SAMPLING},
            "model": self.model_name,
            "max_tokens": self.max_tokens,
            "thinking_only": self.thinking_only,
            "markers": [markers.start, markers.end],
            "system_prompt": self.system_prompt,
            "template": [self.ignore_chat_template, self.chat_template_config or {}],
        }
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


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

    def adding(self, record: dict) -> "TraceStats":
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
    prompts: Sequence[str | list[dict]],
    output: str | Path,
    *,
    progress: Callable[[TraceStats], None] = lambda _: None,
    **options,
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
    off, and what is there already is not generated again. Greedy replies are those of
    a run that was never stopped; sampled ones are other draws of the same distribution.

    Args:
        model, tokenizer: As `mlx_budget.load` returns them.
        prompts (Sequence): Texts or chats (lists of messages), as `read_prompts`
            returns them.
        output (str or Path): The file, *.jsonl.
        progress (Callable): Called at the start and after each record.
        options: The fields of `TraceOptions`.

    Returns:
        TraceStats: Of the file and this run.

    Raises:
        ValueError: In one line, if an option or a prompt cannot be used, the file is of
            another run or in use, or the disk is full.
    """
    options = TraceOptions(**options)
    output = check_output(output)
    if isinstance(prompts, str):
        raise ValueError("prompts must be a sequence of prompts: put it in a list.")
    markers = find_markers(tokenizer, options.thinking_start, options.thinking_end)
    settings = options.settings(markers)
    prompts = [_fill(options.prompt_template, prompt) for prompt in prompts]
    chats = [_messages(prompt, options.system_prompt) for prompt in prompts]
    # What is written of a reply, besides the reply.
    constants = {"settings": settings}
    if options.ignore_chat_template or not tokenizer.has_chat_template:
        constants["raw_prompt"] = True
    advice = "and run the same again: it goes on where it ended"
    with full_disk_in_one_line(output, advice), open_records(output) as file:
        there, stats = set(), TraceStats()
        for record in file.read(partial(_check_trace, chats=chats, settings=settings)):
            name = _indices(record)
            if name not in there:
                there.add(name)
                stats = stats.adding(record)
        # Every prompt once before any a second time, in case the run is stopped.
        missing = [
            (index, sample)
            for sample in range(options.num_samples)
            for index in range(len(prompts[: options.limit]))
            if (index, sample) not in there
        ]
        encoded = _encode(tokenizer, prompts, {index for index, _ in missing}, options)
        stats = replace(stats, total=stats.records + len(missing))
        progress(stats)
        _seed(options.seed, stats.records)
        replies = stream_batch_generate(
            model,
            tokenizer,
            [encoded[index] for index, _ in missing],
            predictor=False,
            max_tokens=options.max_tokens,
            stop_after_thinking=options.thinking_only,
            thinking_start=options.thinking_start,
            thinking_end=options.thinking_end,
            batch_size=options.batch_size,
            prefill_step_size=options.prefill_step_size,
            **{name: getattr(options, name) for name in _SAMPLING},
        )
        started = time.perf_counter()
        with closing(replies):
            for reply in replies:
                index, sample = missing[reply.index]
                record = _record(f"{index}-{sample}", chats[index], reply, constants)
                file.append(record)
                stats = replace(
                    stats.adding(record),
                    written=stats.written + 1,
                    tokens=stats.tokens + len(reply.tokens),
                    seconds=time.perf_counter() - started,
                )
                progress(stats)
    return stats


def check_output(output: str | Path) -> Path:
    """The path of the file to write.

    Raises:
        ValueError: If its name is not that of a file of JSON lines.
    """
    output = Path(output)
    if output.suffix != ".jsonl":
        raise ValueError(f"The output must be a file *.jsonl, not {output}.")
    return output


def _fill(template: str | None, prompt: str | list[dict]) -> str | list[dict]:
    if template is None or not isinstance(prompt, str):
        return prompt
    # The first alone: a template may well ask for the answer in \boxed{}.
    return template.replace("{}", prompt, 1)


def _messages(prompt: str | list[dict], system_prompt: str | None) -> list[dict]:
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    if isinstance(prompt, str):
        return [*messages, {"role": "user", "content": prompt}]
    return [*messages, *prompt]


def _encode(
    tokenizer: TokenizerWrapper,
    prompts: list[str | list[dict]],
    indices: Collection[int],
    options: TraceOptions,
) -> dict[int, list[int]]:
    encoded = {}
    for index in sorted(indices):
        prompt = prompts[index]
        try:
            to_line({"prompt": prompt, "system_prompt": options.system_prompt})
            encoded[index] = encode_chat(
                tokenizer,
                prompt,
                system_prompt=options.system_prompt,
                chat_template_config=options.chat_template_config,
                ignore_chat_template=options.ignore_chat_template,
            )
        except ValueError as e:
            raise ValueError(
                f"Prompt {index} (the first is 0) cannot be used: {e}"
            ) from e
    return encoded


def _seed(seed: int | None, records: int) -> None:
    """Seeds the sampling, otherwise where records are there that were sampled so."""
    if seed is None:
        return
    if records:
        digest = hashlib.sha256(f"{seed} {records}".encode()).digest()
        seed = int.from_bytes(digest[:8], "little")
    mx.random.seed(seed)


def _record(name: str, chat: list[dict], reply: BatchReply, constants: dict) -> dict:
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


def _check_trace(
    record: object, where: str, chats: list[list[dict]], settings: str
) -> None:
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


def _indices(record: dict) -> tuple[int, int]:
    """Indices of prompt and sample of a record."""
    index, sample = _ID.fullmatch(record["id"]).groups()
    return int(index), int(sample)


def _is_trace(record: dict) -> bool:
    name = record.get("id")
    return (
        isinstance(name, str)
        and _ID.fullmatch(name) is not None
        and isinstance(record.get("messages"), list)
        and isinstance(record.get("thinking_tokens"), int)
        and "closed_by" in record
    )
