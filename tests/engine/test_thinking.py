"""Where thinking begins and ends, and how long it was."""

import pytest

from mlx_budget.engine.markers import TOOL_FORMATS
from mlx_budget.engine.thinking import MarkKind, ThinkingTracker, find_markers

NEWLINE, START, END = 201, 423, 424


def track(tokenizer, tokens, prompt=(START,), forced=(), **markers) -> ThinkingTracker:
    tracker = ThinkingTracker(tokenizer, find_markers(tokenizer, **markers), prompt)
    for i, token in enumerate(tokens):
        tracker.update(token, forced=i in forced)
    return tracker


@pytest.fixture(scope="session")
def tokenizer(loaded):
    return loaded[1]


def test_markers_are_the_tokenizers_own(tokenizer):
    markers = find_markers(tokenizer)
    assert (markers.start, markers.end) == ("<think>", "</think>")
    assert (markers.start_tokens, markers.end_tokens) == ((START,), (END,))


def test_given_markers_take_their_place(tokenizer):
    markers = find_markers(tokenizer, start="", end="So 21")
    assert markers.start_tokens == ()
    assert len(markers.end_tokens) > 1


def test_missing_markers_say_what_to_do(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_think_start", None)
    monkeypatch.setattr(tokenizer, "_think_end", None)
    with pytest.raises(ValueError, match="no thinking markers.*thinking-end-token"):
        find_markers(tokenizer)


@pytest.mark.parametrize(("start", "end"), [("", " "), ("#", "#")])
def test_useless_markers_are_refused(tokenizer, start, end):
    with pytest.raises(ValueError, match="marker"):
        find_markers(tokenizer, start=start, end=end)


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ([5, START], True),
        ([5, START, NEWLINE], True),
        ([START, 5, END, 5], False),
        ([START, 5, END, 5, START], True),
        ([5, 6], False),
    ],
)
def test_the_prompt_may_have_opened_the_block(tokenizer, prompt, thinking):
    assert track(tokenizer, [], prompt).thinking is thinking


def test_the_model_may_open_the_block(tokenizer):
    tracker = track(tokenizer, [NEWLINE, START, 6, 7, END, 8], prompt=[5])
    assert not tracker.thinking
    assert tracker.blocks == 1
    assert tracker.thinking_tokens == 2
    assert tracker.closed_by == "model"


def test_thinking_tokens_leave_markers_out(tokenizer):
    assert track(tokenizer, [5, 6, NEWLINE]).thinking_tokens == 3
    assert track(tokenizer, [5, 6, NEWLINE, END]).thinking_tokens == 3
    assert track(tokenizer, [5, 6, NEWLINE, END, 9]).thinking_tokens == 3


def test_a_newline_anywhere_in_a_token_counts(tokenizer):
    assert track(tokenizer, [5, NEWLINE]).after_newline
    assert not track(tokenizer, [NEWLINE, 5]).after_newline


def test_forced_tokens_do_not_count_as_thinking(tokenizer):
    tracker = track(tokenizer, [5, 6, 7, 8, END], forced={3, 4})
    assert tracker.thinking_tokens == 3
    assert tracker.closed_by == "budget"


def test_an_empty_start_marker_begins_by_thinking(tokenizer):
    tracker = track(tokenizer, [5, 6], prompt=[5], start="", end="</think>")
    assert tracker.thinking
    assert tracker.thinking_tokens == 2


def test_a_reopened_block_goes_on_counting(tokenizer):
    tracker = track(tokenizer, [5, 6, END, START, 7])
    assert tracker.thinking
    assert tracker.blocks == 2
    assert tracker.thinking_tokens == 3


def test_a_marker_of_several_tokens_is_found_however_it_is_split(tokenizer):
    usual = tokenizer.encode("So 21.", add_special_tokens=False)
    by_character = [
        t for c in "So 21." for t in tokenizer.encode(c, add_special_tokens=False)
    ]
    assert len(usual) < len(by_character)
    for split in (usual, by_character):
        tracker = track(tokenizer, [5, 6, *split], start="", end="So 21.", prompt=[1])
        assert tracker.closed_by == "model"
        assert tracker.thinking_tokens == 2


def test_a_word_as_a_marker_is_found_in_its_context(tokenizer):
    word = tokenizer.encode("answer", add_special_tokens=False)
    in_context = tokenizer.encode("the answer", add_special_tokens=False)
    tracker = track(tokenizer, in_context, start="", end="answer", prompt=[1])
    assert tracker.closed_by == "model"
    tracker = track(tokenizer, word, start="", end="answer", prompt=[1])
    assert tracker.closed_by == "model"


def test_what_the_user_wrote_opens_no_block(tokenizer):
    end_of_turn = 2
    assert not track(tokenizer, [], [5, START, 6, end_of_turn, 7]).thinking
    assert track(tokenizer, [], [5, START, 6, end_of_turn, 7, START]).thinking


def test_a_marker_may_end_inside_a_token(tokenizer):
    ids = tokenizer.encode("the answer", add_special_tokens=False)
    tracker = track(tokenizer, [5, *ids], start="", end="the ans", prompt=[1])
    assert tracker.closed_by == "model"
    assert tracker.thinking_tokens == 1


def test_markers_of_several_tokens_are_found_in_the_prompt(tokenizer):
    def is_open(text: str) -> bool:
        ids = tokenizer.encode(text, add_special_tokens=False)
        markers = {"start": "Question:", "end": "Answer:"}
        return track(tokenizer, [], ids, **markers).thinking

    assert is_open("First Question: what")
    assert not is_open("First Question: what Answer: 5")
    assert not is_open("what")


def test_what_the_model_began_of_a_marker_is_not_repeated(tokenizer):
    end = "So 21."
    whole = tuple(tokenizer.encode(end, add_special_tokens=False))
    for n in range(len(whole)):
        tracker = track(tokenizer, [5, *whole[:n]], start="", end=end, prompt=[1])
        assert tracker.missing_end_tokens() == whole[n:]


@pytest.mark.parametrize("call", [tool.start for tool in TOOL_FORMATS])
def test_what_the_model_began_of_a_tool_call_is_completed(tokenizer, call):
    """More than half of it, and not of others, at the beginning of a line."""
    whole = tuple(tokenizer.encode(call, add_special_tokens=False))
    sides = set()
    for n in range(1, len(whole)):
        begun = tokenizer.decode(list(whole[:n]))
        alike = [tool for tool in TOOL_FORMATS if tool.start.startswith(begun)]
        is_plain = 2 * len(begun) > len(call) and len(alike) == 1
        sides.add(is_plain)
        assert track(tokenizer, [5, *whole[:n]]).missing_tool_tokens() == ()
        tracker = track(tokenizer, [5, 6, NEWLINE, *whole[:n]])
        missing = tracker.missing_tool_tokens()
        assert (begun + tokenizer.decode(list(missing)) == call) is is_plain
        marks = [tracker.update(token, forced=True) for token in missing]
        if is_plain:
            assert marks[-1].kind is MarkKind.TOOL
            assert (tracker.thinking_tokens, tracker.answer_tokens) == (3, n)
            assert tracker.closed_by == "budget"
    # Up to its last character one of them may be the beginning of another.
    assert sides == ({False} if call == "<|tool_call>" else {False, True})


def test_a_message_that_names_a_tool_call_calls_none(tokenizer):
    (call, *_) = TOOL_FORMATS
    message = tokenizer.encode(f"\n{call.start}", add_special_tokens=False)
    forced = range(2, 2 + len(message))
    tracker = track(tokenizer, [5, 6, *message], forced=forced)
    assert (tracker.thinking, tracker.thinking_tokens) == (True, 2)
