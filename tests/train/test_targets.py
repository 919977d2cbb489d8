"""Where thinking is in a reply, and which of its positions are chosen."""

import numpy as np
import pytest

from mlx_budget.engine.thinking import ThinkingTracker, find_markers
from mlx_budget.train.targets import (
    ThinkingSpan,
    UnusableRecord,
    check_positions,
    choose_positions,
    find_thinking,
)

NEWLINE, START, END = 201, 423, 424
SPAN = ThinkingSpan(start=3, end=9, newlines=(5, 9))


@pytest.fixture(scope="session")
def tokenizer(loaded):
    return loaded[1]


def find(tokenizer, reply, prompt=(START,), **markers) -> ThinkingSpan:
    tracker = ThinkingTracker(tokenizer, find_markers(tokenizer, **markers), prompt)
    return find_thinking(tracker, reply)


def choose(positions, seed=0) -> list[int]:
    return choose_positions(SPAN, positions, np.random.default_rng(seed)).tolist()


@pytest.mark.parametrize(
    ("prompt", "reply", "span"),
    [
        ([START], [5, NEWLINE, 6, END], ThinkingSpan(0, 3, (2,))),
        ([START], [5, NEWLINE, END, 7], ThinkingSpan(0, 2, (2,))),
        ([START], [NEWLINE, NEWLINE, END], ThinkingSpan(0, 2, (1, 2))),
        ([START], [END, NEWLINE], ThinkingSpan(0, 0, ())),
        # A newline before the block makes no position but the first.
        ([START, NEWLINE], [5, END], ThinkingSpan(0, 1, ())),
        ([5], [NEWLINE, START, 5, END], ThinkingSpan(2, 3, ())),
        ([5], [START, NEWLINE, 5, END], ThinkingSpan(1, 3, (2,))),
        # The first block alone.
        ([5], [START, 5, END, START, 5, NEWLINE, 5, END], ThinkingSpan(1, 2, ())),
    ],
)
def test_the_first_block_is_found(tokenizer, prompt, reply, span):
    assert find(tokenizer, reply, prompt) == span


def test_a_marker_of_several_tokens_counts_from_its_first(tokenizer):
    reply = tokenizer.encode("<a>x\ny</a>z", add_special_tokens=False)
    assert len(reply) == 11  # every character
    markers = {"start": "<a>", "end": "</a>"}
    assert find(tokenizer, reply, [5], **markers) == ThinkingSpan(3, 6, (5,))


def test_a_marker_may_begin_and_end_inside_tokens(tokenizer):
    reply = [90, NEWLINE, 272, 393]  # "x", newline, " the", " answer"
    assert tokenizer.decode(reply) == "x\n the answer"
    markers = {"start": "", "end": "he ans"}
    assert find(tokenizer, reply, [5], **markers) == ThinkingSpan(0, 2, (2,))


def test_a_newline_inside_the_closing_marker_is_not_trained_on(tokenizer):
    reply = [90, NEWLINE, 90, NEWLINE, 91, 92]
    markers = {"start": "", "end": "\nyz"}
    assert find(tokenizer, reply, [5], **markers) == ThinkingSpan(0, 3, (2,))


@pytest.mark.parametrize(
    ("prompt", "reply", "reason"),
    [
        ([5], [5, 6], "no thinking block"),
        ([5], [5, END], "no thinking block"),
        ([5], [], "no thinking block"),
        ([5], [NEWLINE, START], "thinking not closed"),
        ([START], [5, 6], "thinking not closed"),
        ([START], [], "thinking not closed"),
    ],
)
def test_what_cannot_be_learned_from_has_a_reason(tokenizer, prompt, reply, reason):
    with pytest.raises(UnusableRecord, match=f"^{reason}$") as caught:
        find(tokenizer, reply, prompt)
    assert caught.value.is_bad


def test_positions_by_name():
    assert choose("newline") == [3, 5, 9]
    assert choose("all") == [3, 4, 5, 6, 7, 8, 9]


def test_drawn_positions_are_ascending_different_and_from_the_whole_block():
    draws = [choose(3, seed) for seed in range(200)]
    assert all(a < b < c for a, b, c in draws)
    # A position misses 200 draws of 3 in 7 with odds of (4/7)^200, below 1e-48.
    assert {p for draw in draws for p in draw} == set(range(3, 10))
    assert choose(7) == choose(100) == choose("all")


@pytest.mark.parametrize(
    ("given", "taken"), [("newline", "newline"), ("all", "all"), (16, 16), ("16", 16)]
)
def test_positions_that_can_be_asked_for(given, taken):
    assert check_positions(given) == taken


@pytest.mark.parametrize("given", [0, -1, "0", "-1", "first", "", True, 1.5, None])
def test_others_are_refused(given):
    message = "positions must be newline, all, or how many .* not "
    with pytest.raises(ValueError, match=message) as caught:
        check_positions(given)
    assert str(caught.value).endswith(f"not {given!r}.")
