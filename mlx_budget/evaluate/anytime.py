"""Anytime answers: one full reply to a question, cut at each of several budgets.

The measure of AnytimeReasoner (Qi et al., arXiv 2505.13438): the accuracy of the
answers that are asked for at each budget, all budgets counting alike. The thinking is
that of the reply without a budget, so only the answers are generated. Knows outcomes
and records; nothing of how answers are graded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..engine.closing import closing_of
from ..engine.thinking import ThinkingTracker
from ..files.records import Record
from .outcomes import (
    Counts,
    Maker,
    Outcome,
    Request,
    answer_in,
    behind_close,
    counts_of,
    drawing_from,
    recorded,
    tokens_of,
)
from .strategies import ANYTIME_ANSWER, ANYTIME_CUT


@dataclass(frozen=True)
class _Cut:
    """Where the thinking of a full reply ends at a budget.

    Attributes:
        tokens: Of the reply, up to there.
        thinking: How many of them are thinking.
        ending: What is put in behind them: the close, if the model has not closed, and
            what asks for the answer.
        is_forced: Whether the budget has ended thinking, not the model.
    """

    tokens: list[int]
    thinking: int
    ending: tuple[int, ...]
    is_forced: bool


def answer_at(
    maker: Maker,
    requests: Sequence[Request],
    budget: int,
    earlier: Sequence[Record | None],
    **options: Any,
) -> Iterator[tuple[int, Outcome]]:
    """Lets each reply answer at a budget; yields the outcomes as they finish.

    Args:
        maker (Maker): Makes the answers.
        requests (Sequence): The questions, with their replies without a budget.
        budget (int): Tokens of thinking.
        earlier (Sequence): For each what was answered at another budget that thinking
            did not use up either: that is the answer here too.
        options: Of `stream_batch_generate`, for the answers.
    """
    cuts: dict[int, _Cut] = {}
    for index, (request, former) in enumerate(zip(requests, earlier, strict=True)):
        full = request.full
        if full is None:
            raise ValueError("There is no full reply to cut.")
        if former is not None:
            done = recorded(former, former["answer"])
            yield (
                index,
                replace(done, budget=budget, notes={"answer": former["answer"]}),
            )
        elif (cut := _cut(maker, request, full, budget)) is not None:
            cuts[index] = cut
        else:
            # It never thought.
            tokens = tokens_of(maker.tokenizer, full)
            done = recorded(full, answer_in(maker, request.prompt, tokens))
            yield index, replace(done, budget=budget)
    places = list(cuts)
    prompts = [[*requests[i].prompt, *cuts[i].tokens, *cuts[i].ending] for i in places]
    # As the tokens of one reply, so that draws are those of a reply that was cut.
    samplers = [
        partial(drawing_from, len(cuts[i].tokens) + len(cuts[i].ending)) for i in places
    ]
    if not prompts:
        return
    seeds = [requests[i].seed for i in places]
    options |= {"make_sampler": samplers, "keeps_prompts": False}
    options |= behind_close(maker.markers)
    for reply, seconds in maker.replies(prompts, seeds, **options):
        index = places[reply.index]
        cut, full = cuts[index], requests[index].full or {}
        # Its share of what the full reply took.
        share = len(cut.tokens) / max(full.get("total_tokens", 0), 1)
        own = Counts(
            thinking=cut.thinking,
            marker=len(cut.tokens) - cut.thinking,
            forced=len(cut.ending),
        )
        answer = ANYTIME_ANSWER.lstrip("\n") + reply.answer
        begun = maker.tokenizer.decode([*cut.tokens, *cut.ending])
        yield (
            index,
            Outcome(
                text=begun + reply.text,
                answer=answer,
                counts=own + counts_of(reply),
                prompt_tokens=len(requests[index].prompt),
                finish_reason=reply.finish_reason,
                closed_by="budget" if cut.is_forced else "model",
                budget=budget,
                seconds=share * full.get("seconds", 0.0) + seconds,
                notes={"answer": answer},
            ),
        )


def _cut(maker: Maker, request: Request, full: Record, budget: int) -> _Cut | None:
    """Where a full reply is cut; None if there is no thinking in it."""
    tokenizer, markers = maker.tokenizer, maker.markers
    tokens = tokens_of(maker.tokenizer, full)
    tracker = ThinkingTracker(tokenizer, markers, request.prompt)
    for i, token in enumerate(tokens):
        is_full = tracker.thinking_tokens >= budget and not tracker.is_mid_character
        if tracker.thinking and is_full:
            tokens = tokens[:i]
            break
        tracker.update(token)
        if tracker.closed_by is not None:
            ending = tokenizer.encode(ANYTIME_ANSWER, add_special_tokens=False)
            used = tracker.thinking_tokens
            return _Cut(tokens[: i + 1], used, tuple(ending), False)
    if not tracker.thinking:
        return None
    message = f"{ANYTIME_CUT}{markers.end}{ANYTIME_ANSWER}"
    close = closing_of(tokenizer, markers, request.prompt, message)
    ending = close.tokens(tracker, is_line_ended=tracker.after_newline)
    return _Cut(list(tokens), tracker.thinking_tokens, ending, True)
