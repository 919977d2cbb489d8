"""Several short replies to a question, and the answer that most of them give.

Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models",
arXiv 2203.11171, with the budget split among the replies. Knows outcomes; nothing of
how answers are read.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...engine.settings import seed_of
from ..outcomes import Counts, Maker, Outcome, Request


def vote(
    maker: Maker,
    requests: Sequence[Request],
    votes: int,
    read: Callable[[int, Outcome], str | None],
    **options: Any,
) -> Iterator[tuple[int, Outcome]]:
    """Asks each question several times; yields the winner of each, as they finish.

    The first reply to a question has the draws that every other strategy has.

    Args:
        maker (Maker): Makes the replies.
        requests (Sequence): The questions.
        votes (int): Replies to each.
        read (Callable): What the answer of an outcome of a request says, None if
            nothing, so that equal answers are equal.
        options: Of `stream_batch_generate`.
    """
    asked = [
        replace(request, seed=seed_of(request.seed, i) if i else request.seed)
        for request in requests
        for i in range(votes)
    ]
    found: dict[int, dict[int, Outcome]] = {}
    for index, outcome in maker.outcomes(asked, **options):
        which, i = divmod(index, votes)
        replies = found.setdefault(which, {})
        replies[i] = outcome
        if len(replies) == votes:
            del found[which]
            ordered = [replies[i] for i in range(votes)]
            said = [read(which, reply) for reply in ordered]
            yield which, _winner(ordered, said)


def _winner(replies: Sequence[Outcome], said: Sequence[str | None]) -> Outcome:
    """The first reply that gives the answer of most, with what all of them took."""
    counted = Counter(answer for answer in said if answer is not None)
    # Of those that are equally common the one that came first.
    best = max(counted, key=lambda answer: counted[answer], default=said[0])
    winner = replies[said.index(best)]
    return replace(
        winner,
        counts=sum((reply.counts for reply in replies), Counts()),
        seconds=sum(reply.seconds for reply in replies),
        notes={"votes": list(said), "replies": [reply.text for reply in replies]},
    )
