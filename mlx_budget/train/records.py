"""Chat records to token sequences with the thinking lengths to learn from them.

Knows chat templates and markers; nothing of models or of what a row may look like.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.context import check_length
from ..engine.fields import keywords_of
from ..engine.prompts import encode_chat
from ..engine.settings import PromptOptions, ThinkingBudget
from ..engine.template import let_think
from ..engine.thinking import ThinkingMarkers, ThinkingTracker, find_markers
from ..files.rows import Row, read_rows
from .chats import ChatRecord, canonical, chat_of, messages_of
from .options import TrainOptions
from .targets import UnusableRecord, check_positions, choose_positions, find_thinking

_COLUMNS = ("messages", "tokens", "raw_prompt", "finish_reason")
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Record:
    """One reply to train on.

    Attributes:
        name: Where it came from, such as "traces.jsonl, line 12", with " (concise)"
            behind it if it was made of that one.
        group: A text that is the same for all records of one prompt: the messages
            before the reply as JSON.
        tokens: Prompt and reply up to the last position, int32.
        positions: Ascending indices of tokens to train on, int32, all >= 1: what
            predicts ``tokens[i]`` is the hidden state at ``i - 1``.
        lengths: L of each position, int32: the thinking tokens from it on, itself
            counted and the closing marker counted as one.
        start: Index of the first thinking token.
    """

    name: str
    group: str
    tokens: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    start: int


@dataclass
class SkippedRecords:
    """The records that were not used, by reason.

    Attributes:
        counts: How many for each reason.
        names: The first few of them.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Counts a record."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.names.setdefault(reason, [])
        if len(names) < _NAMES_SHOWN:
            names.append(name)

    @property
    def total(self) -> int:
        """How many records were skipped."""
        return sum(self.counts.values())

    def summary(self) -> list[str]:
        """One line for each reason, the most frequent first."""
        lines = []
        for reason, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            names = "; ".join(self.names[reason])
            more = "; ..." if count > len(self.names[reason]) else ""
            records = "record" if count == 1 else "records"
            lines.append(f"{count} {records} skipped, {reason}: {names}{more}")
        return lines


def check_data(data: str | Path) -> None:
    """Checks that some row looks like a record, which needs neither model nor template.

    Reads, and downloads, no further than the first one that does.

    Raises:
        ValueError: If the data cannot be read, or holds nothing like a record.
    """
    skipped = SkippedRecords()
    for row in read_rows(data, _COLUMNS):
        try:
            messages_of(row)
            return
        except UnusableRecord as e:
            skipped.add(row.name, str(e))
    raise ValueError(
        f"{data}: nothing in it can be trained on"
        + (f" ({'; '.join(skipped.summary())})" if skipped.total else ", it is empty")
        + ". A record has messages, the last of them the assistant's: make some with "
        "`mlx-budget traces`."
    )


def read_records(
    data: str | Path | Sequence[str | Path | dict],
    tokenizer: TokenizerWrapper,
    *,
    positions: str | int = "newline",
    max_length: int = TrainOptions.max_length,
    augment: str | None = None,
    thinking: ThinkingBudget = ThinkingBudget(),  # noqa: B008
    prompt: PromptOptions = PromptOptions(),  # noqa: B008
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    most_tokens: int | None = None,
    skipped: SkippedRecords,
) -> Iterator[Record]:
    """Reads chat records and makes training targets of their thinking.

    A record is an object with ``messages``, each with role and content, a text or
    OpenAI's parts of type text, of which the last is the reply to learn from. Its
    thinking is in its content, between the markers, or apart as ``reasoning_content``,
    ``reasoning`` or ``thinking``. The record may have ``tokens``, the reply's token
    ids, which are used if they decode to the content; and ``raw_prompt``, true if the
    prompt has no chat template.

    Args:
        data (str, Path or Sequence): Files or names, see `rows.read_rows`.
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        positions (str or int): "newline", "all" or how many to draw of each record, see
            `targets.choose_positions`.
        max_length (int): Tokens of a record, the prompt included. Targets are those of
            the whole reply; positions behind this are left out.
        augment (str, optional): "concise" adds to each record one whose thinking is its
            answer alone (paper, section on data augmentation).
        thinking (ThinkingBudget): The markers, in place of the tokenizer's.
        prompt (PromptOptions): How prompts are encoded; its system prompt is for
            records that have none.
        limit (int, optional): Usable records to stop after, added ones not counted.
        seed (int): Of the positions that are drawn.
        strict (bool): Whether a bad record is an error. What is left out because of
            ``max_length`` or has no answer to be concise with, is not.
        most_tokens (int, optional): That the model reads; prompts and replies with
            more are not tokenised whole, and their records are bad.
        skipped (SkippedRecords): Counts what was not used.

    Returns:
        Iterator[Record]: Read, and downloaded, as they are asked for.

    Raises:
        ValueError: In one line, if an option or the data cannot be used.
    """
    for name, value, least in (
        ("max_length", max_length, 2),
        ("limit", 1 if limit is None else limit, 1),
        ("seed", seed, 0),
    ):
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, not {value!r}.")
    if augment not in (None, "concise"):
        raise ValueError(f"augment must be None or concise, not {augment!r}.")
    targets = _Targets(
        tokenizer,
        find_markers(tokenizer, thinking.start, thinking.end),
        check_positions(positions),
        max_length,
        seed,
        let_think(tokenizer, thinking, prompt),
        most_tokens,
    )
    rows = read_rows(data, _COLUMNS)
    return _read(rows, targets, augment, limit, strict, skipped)


def _read(
    rows: Iterator[Row],
    targets: "_Targets",
    augment: str | None,
    limit: int | None,
    strict: bool,
    skipped: SkippedRecords,
) -> Iterator[Record]:
    used = 0
    for number, row in enumerate(rows):
        try:
            chat = chat_of(row, targets.markers)
            reply = targets.encode(chat)
            record = targets.make(row.name, chat, reply, number)
        except UnusableRecord as e:
            if strict and e.is_bad:
                raise ValueError(
                    f"{row.name} cannot be trained on: {e}. Mend or remove it."
                ) from None
            skipped.add(row.name, str(e))
            continue
        yield record
        if augment == "concise":
            name = f"{row.name} (concise)"
            try:
                reply = targets.concise(chat, reply)
                record = targets.make(name, chat, reply, number)
            except UnusableRecord as e:
                skipped.add(name, str(e))
            else:
                yield record
        used += 1
        if used == limit:
            return


@dataclass(frozen=True)
class _Reply:
    """A prompt and the reply to it, which begins where the prompt ends."""

    prompt: list[int]
    opened: bool
    text: str
    tokens: list[int]


@dataclass(frozen=True)
class _Targets:
    """What makes a `Record` of a chat."""

    tokenizer: TokenizerWrapper
    markers: ThinkingMarkers
    positions: str | int
    max_length: int
    seed: int
    prompt: PromptOptions
    most_tokens: int | None

    def encode(self, chat: ChatRecord) -> _Reply:
        """Prompt and reply as the model met them."""
        prompt = self._encode_prompt(chat)
        if not prompt:
            raise UnusableRecord("no prompt before the reply")
        opened = ThinkingTracker(self.tokenizer, self.markers, prompt).thinking
        text = chat.content
        if opened and self.markers.start:
            prompt_text = self.tokenizer.decode(prompt)
            text = _without_opening(text, self.markers.start, prompt_text)
        tokens = chat.tokens
        while tokens and tokens[-1] in self.tokenizer.eos_token_ids:
            tokens = tokens[:-1]
        if tokens and self._is_text_of(tokens, text):
            return _Reply(prompt, opened, self.tokenizer.decode(tokens), tokens)
        return _Reply(prompt, opened, text, self._encode_text(text))

    def concise(self, chat: ChatRecord, reply: _Reply) -> _Reply:
        """The reply with its answer in place of its thinking."""
        if chat.is_cut:
            raise UnusableRecord("answer cut off, so no concise copy")
        text = _concise_text(reply, self.markers)
        return replace(reply, text=text, tokens=self._encode_text(text))

    def make(self, name: str, chat: ChatRecord, reply: _Reply, number: int) -> Record:
        """The record of a reply, its positions drawn with a seed of its own."""
        tracker = ThinkingTracker(self.tokenizer, self.markers, reply.prompt)
        span = find_thinking(tracker, reply.tokens)
        rng = np.random.default_rng((self.seed, number))
        behind = len(reply.prompt)
        positions = behind + choose_positions(span, self.positions, rng)
        positions = positions[positions < self.max_length]
        if not positions.size:
            raise UnusableRecord("no position within --max-length", is_bad=False)
        tokens = [*reply.prompt, *reply.tokens][: positions[-1] + 1]
        return Record(
            name=name,
            group=canonical(chat.messages),
            tokens=np.array(tokens, np.int32),
            positions=positions.astype(np.int32),
            lengths=(behind + span.end - positions + 1).astype(np.int32),
            start=behind + span.start,
        )

    def _encode_prompt(self, chat: ChatRecord) -> list[int]:
        if chat.is_raw and len(chat.messages) > 1:
            raise UnusableRecord("a raw prompt of several messages")
        if not any((m.get("content") or "").strip() for m in chat.messages):
            raise UnusableRecord("no prompt before the reply")
        self._check_length(*(m.get("content") or "" for m in chat.messages))
        if chat.is_raw:
            text = chat.messages[0]["content"]
            return encode_chat(self.tokenizer, text, ignore_chat_template=True)
        prompt = self.prompt
        if any(m["role"] == "system" for m in chat.messages):
            prompt = replace(prompt, system_prompt=None)
        try:
            return encode_chat(self.tokenizer, chat.messages, **keywords_of(prompt))
        except ValueError as e:
            reason = str(e.__cause__ or e).strip().partition("\n")[0].rstrip(". ")
            raise UnusableRecord(f"chat template fails ({reason})") from None

    def _encode_text(self, text: str) -> list[int]:
        self._check_length(text)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _check_length(self, *texts: str) -> None:
        if self.most_tokens is None:
            return
        try:
            check_length(self.tokenizer, texts, self.most_tokens)
        except ValueError:
            raise UnusableRecord("longer than what the model reads") from None

    def _is_text_of(self, tokens: list[int], text: str) -> bool:
        """Whether tokens are those of a text, special ones and outer space aside."""
        texts = {
            self.tokenizer.decode(tokens, skip_special_tokens=skip).strip()
            for skip in (False, True)
        }
        return text.strip() in texts


def _without_opening(content: str, start: str, prompt: str) -> str:
    """The content without what the end of the prompt has of it already."""
    body, start = content.lstrip(), start.lstrip()
    if not body.startswith(start):
        return content
    body = body[len(start) :]
    blank = body[: len(body) - len(body.lstrip())]
    return body[len(os.path.commonprefix([blank, prompt.rpartition(start)[2]])) :]


def _concise_text(reply: _Reply, markers: ThinkingMarkers) -> str:
    head, rest = "", reply.text
    if not reply.opened:
        before, opening, rest = reply.text.partition(markers.start)
        head = before + opening
    thinking, closing, after = rest.partition(markers.end)
    answer = after.strip()
    if not answer:
        raise UnusableRecord("no answer, so no concise copy")
    body = thinking.lstrip()
    lead = thinking[: len(thinking) - len(body)]
    trail = body[len(body.rstrip()) :]
    return head + lead + answer + trail + closing + after
