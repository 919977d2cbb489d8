"""How the replies of an arm are made: once for each question, or as a rival asks.

Knows the engine's batches; nothing of tasks, grading or records of a file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import BatchReply, stream_batch_generate
from ..engine.follower import ReplyFollower, SteeringRecord
from ..engine.known_prompts import KnownPrompts
from ..engine.plain import PlainSampler, ReplySampler
from ..engine.sampler import steer
from ..engine.thinking import ThinkingMarkers
from ..files.records import Record


@dataclass(frozen=True)
class Request:
    """A question that an arm is asked.

    Attributes:
        prompt: Token ids.
        seed: Of its draws.
        full: The record of the reply without a budget, if there is one.
    """

    prompt: list[int]
    seed: int
    full: Record | None = None


@dataclass(frozen=True)
class Counts:
    """What a reply took, in tokens; each is counted once.

    Attributes:
        thinking, after_close, answer: Of the model's own: inside thinking, reasoned on
            behind the close, and in the answer.
        forced: Put in by the strategy.
        marker: Of markers that the model wrote.
        probe: Generated and thrown away, and what asked for it.
    """

    thinking: int = 0
    after_close: int = 0
    answer: int = 0
    forced: int = 0
    marker: int = 0
    probe: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(vars(self).values())

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + vars(other)[name] for name, a in vars(self).items()))


@dataclass(frozen=True)
class Outcome:
    """What an arm made of a question.

    Attributes:
        text: The reply, thinking and markers included.
        answer: What is to be graded; None without an answer.
        counts: What it took.
        prompt_tokens: Of the question's prompt.
        finish_reason: As in `BatchReply`.
        closed_by: As there, or "exit" for a trial answer that ended thinking.
        budget: Of the thinking, in tokens, if it is known.
        seconds: What it took, its share of a batch.
        notes: What else is to be kept of it.
    """

    text: str
    answer: str | None
    counts: Counts
    prompt_tokens: int
    finish_reason: str
    closed_by: str | None
    budget: int | None
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Maker:
    """A model and what all its replies have in common.

    Attributes:
        model, tokenizer: As `mlx_budget.load` returns them.
        markers: Of its thinking.
        batch_size: Most replies at a time.
        options: Of `stream_batch_generate`, ``max_tokens`` among them.
        known: Prompts that have been read, for the arms that ask them again.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    markers: ThinkingMarkers
    batch_size: int
    options: dict[str, Any]
    known: KnownPrompts | None = None

    def replies(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Iterator[tuple[BatchReply, float]]:
        """Replies as they finish, with the seconds since the one before."""
        if seeds is not None:
            options["seed"] = list(seeds)
        replies = stream_batch_generate(
            self.model,
            self.tokenizer,
            prompts,
            batch_size=self.batch_size,
            known_prompts=self.known,
            **{**self.options, **options},
        )
        before = time.perf_counter()
        with closing(replies):
            for reply in replies:
                now = time.perf_counter()
                yield reply, now - before
                # What the caller does with a reply is no time of generation.
                before = time.perf_counter()

    def outcomes(
        self, requests: Sequence[Request], keeps_tokens: bool = False, **options: Any
    ) -> Iterator[tuple[int, Outcome]]:
        """One reply to each request, as they finish, with its place among them.

        Args:
            requests (Sequence): The questions.
            keeps_tokens (bool): Whether to keep the ids of a reply's tokens.
            options: Of `stream_batch_generate`.
        """
        prompts = [request.prompt for request in requests]
        seeds = [request.seed for request in requests]
        for reply, seconds in self.replies(prompts, seeds, **options):
            outcome = outcome_of(reply, seconds)
            if keeps_tokens:
                outcome = replace(outcome, notes={"tokens": reply.tokens})
            yield reply.index, outcome


def outcome_of(reply: BatchReply, seconds: float) -> Outcome:
    """The outcome that one reply is."""
    return Outcome(
        text=reply.text,
        answer=None if reply.is_thinking else reply.answer,
        counts=counts_of(reply),
        prompt_tokens=reply.prompt_tokens,
        finish_reason=reply.finish_reason,
        closed_by=reply.closed_by,
        budget=reply.thinking_budget,
        seconds=seconds,
    )


def counts_of(reply: BatchReply) -> Counts:
    """What one reply took."""
    return Counts(
        thinking=reply.thinking_tokens,
        after_close=reply.after_close_tokens,
        answer=reply.answer_tokens,
        forced=reply.forced_tokens,
        marker=reply.marker_tokens,
    )


def behind_close(markers: ThinkingMarkers) -> dict[str, Any]:
    """Options for replies whose thinking was closed in their prompts.

    With an empty opening marker every reply begins by thinking, whatever its prompt
    ends with: so one is named that no reply writes.
    """
    return {} if markers.start else {"thinking_start": markers.end * 2}


def drawing_from(position: int, *given: Any, **options: Any) -> ReplySampler:
    """A sampler whose draws go on at a position of a reply; else as `steer`."""
    sampler = steer(*given, **options)
    if isinstance(sampler, PlainSampler):  # as all are without a budget
        sampler.skip(position)
    return sampler


def tokens_of(tokenizer: TokenizerWrapper, record: Record) -> list[int]:
    """The tokens of a reply; of a record without them those of its text."""
    tokens = record.get("tokens")
    if tokens is not None:
        return tokens
    return tokenizer.encode(record["reply"], add_special_tokens=False)


def answer_in(maker: Maker, prompt: Sequence[int], tokens: Sequence[int]) -> str | None:
    """The answer in the tokens of a reply; None if they do not come to one."""
    reply = ReplyFollower(maker.tokenizer, maker.markers, prompt, SteeringRecord())
    for token in tokens:
        reply.take(token)
    return None if reply.is_in_thinking else reply.split()[1]


def recorded(record: Record, answer: str | None) -> Outcome:
    """The outcome that a record keeps, with its answer."""
    names = vars(Counts()).keys()
    return Outcome(
        text=record["reply"],
        answer=answer,
        counts=Counts(**{name: record[f"{name}_tokens"] for name in names}),
        prompt_tokens=record["prompt_tokens"],
        finish_reason=record["finish_reason"],
        closed_by=record["closed_by"],
        budget=record["thinking_budget"],
        seconds=record["seconds"],
    )


def with_probes(
    outcome: Outcome, tokens: int, seconds: float, notes: dict[str, Any]
) -> Outcome:
    """An outcome that took probes as well, and what is to be kept of them."""
    counts = outcome.counts + Counts(probe=tokens)
    seconds += outcome.seconds
    return replace(outcome, counts=counts, seconds=seconds, notes=notes)
