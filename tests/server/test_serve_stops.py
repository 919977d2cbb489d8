"""Stop words: they end an answer, and wait while the model thinks."""

import itertools
from dataclasses import fields

import pytest
from mlx_lm import server

from mlx_budget.engine.follower import ReplyFollower, SteeringRecord, Step
from mlx_budget.engine.markers import find_markers
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.server import parts
from mlx_budget.server.exchange import Exchange
from mlx_budget.server.steering import Steering
from mlx_budget.server.stops import StopWords
from served import QUESTION, ask, at_once, gather, served, told

THINKING = ["Quick", ".\nN", "7 + 1"]
IN_ANSWER = ["wer i", "The", "s 12.X"]
ANSWER = ["wer i", " 12", "The", "\n\nThe", "\n\n", "s 12.X", "never"]


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def cutting():
    """A client of a server that closes thinking by force."""
    with served(predictor=False) as client:
        yield client


@pytest.fixture(scope="module")
def eager():
    """A client of a server whose stop words do not wait."""
    with served(stop_in_thinking=True) as client:
        yield client


def reply(client, is_stream: bool, **options) -> dict:
    if not is_stream:
        return told(ask(client, **options))
    usage = {"include_usage": True}
    return gather(ask(client, stream=True, stream_options=usage, **options))[0]


def up_to(answer: str, word: str) -> str:
    """An answer up to a word; white space before it is no end of a paragraph."""
    if word.strip():
        return answer.partition(word)[0]
    lead = answer[: len(answer) - len(answer.lstrip())]
    return lead + answer.lstrip().partition(word)[0]


def replies(client, words: list[str], **options) -> dict[tuple[str, bool], dict]:
    """Replies with each stop word, and none for "", streamed and whole."""

    def one(which: tuple[str, bool]) -> dict:
        word, is_stream = which
        stop = {"stop": [word, "nor this"]} if word else {}
        return reply(client, is_stream, **stop, **options)

    asked = list(itertools.product(["", *words], [True, False]))
    return dict(zip(asked, at_once(one, asked), strict=True))


@pytest.fixture(scope="module")
def stopped(client):
    return replies(client, [*THINKING, *ANSWER], thinking_budget=60)


@pytest.fixture(scope="module")
def eagerly_stopped(eager):
    return replies(eager, [*THINKING, *IN_ANSWER], thinking_budget=60)


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("word", [*THINKING, *ANSWER])
def test_a_stop_word_ends_the_answer_and_not_the_thinking(stopped, word, is_stream):
    whole, found = stopped["", is_stream], stopped[word, is_stream]
    assert found["reasoning"] == whole["reasoning"]
    assert (found["content"] or "") == up_to(whole["content"], word)
    assert found["thinking"]["tokens"] == whole["thinking"]["tokens"]
    assert found["thinking"]["closed_by"] == whole["thinking"]["closed_by"]


@pytest.mark.parametrize("budget", [0, 12, 70])
def test_nor_does_it_where_a_budget_closes(cutting, budget):
    options = {"thinking_budget": budget, "thinking_budget_message": "\nQuickly!\n"}
    words = [*THINKING, "!\n</", "</think>", "answer is", "12"]
    stopped = replies(cutting, words, **options)
    for (word, is_stream), found in stopped.items():
        whole = stopped["", is_stream]
        assert found["thinking"]["closed_by"] == "budget"
        assert found["reasoning"] == whole["reasoning"]
        if not word:
            continue
        assert (found["content"] or "") == up_to(whole["content"], word)


@pytest.mark.parametrize("is_stream", [True, False])
def test_without_a_budget_it_waits_as_well(client, is_stream):
    stop = {"stop": ["Quick", "answer"]}
    whole, found = at_once(lambda more: reply(client, is_stream, **more), [{}, stop])
    assert found["reasoning"] == whole["reasoning"]
    assert found["content"] == up_to(whole["content"], "answer")
    (choice,) = ask(client, **stop).choices
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("word", [*THINKING, *IN_ANSWER])
def test_asked_to_it_ends_thinking_too(eagerly_stopped, word, is_stream):
    whole, found = eagerly_stopped["", is_stream], eagerly_stopped[word, is_stream]
    if word in whole["reasoning"]:
        assert found["reasoning"] == whole["reasoning"].partition(word)[0]
        assert not found["content"]
    else:
        assert found["reasoning"] == whole["reasoning"]
        assert (found["content"] or "") == whole["content"].partition(word)[0]


@pytest.mark.parametrize("word", ["Quick", "answer", "7 + 1"])
def test_in_a_text_completion_it_ends_whatever_it_stands_in(client, model, word):
    text = model[1].apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        tokenize=False,
        add_generation_prompt=True,
    )
    whole = told(ask(client, thinking_budget=60))
    (choice,) = client.completions.create(
        model="demo", prompt=text, stop=word, extra_body={"thinking_budget": 60}
    ).choices
    found = getattr(choice, "reasoning", "") + choice.text
    assert found == (whole["reasoning"] + whole["content"]).partition(word)[0]


# What follows is told apart in replies that are written here.
END = "</END>"
splits_text = pytest.mark.skipif(
    not parts.SPLITS_TEXT, reason="this mlx-lm splits replies by tokens"
)


def exchanged(tokenizer, text: str, stop: list[str], **options) -> tuple[str, str]:
    """Thinking and answer that a client sees of a reply that thinks from its start."""
    markers = find_markers(tokenizer, "", END)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    record = SteeringRecord(steps=[Step.MODEL] * len(tokens))
    steering = Steering(ThinkingBudget())
    steering.reply = ReplyFollower(tokenizer, markers, [], record)
    detokenizer = tokenizer.detokenizer
    responses = []
    for token in tokens:
        detokenizer.add_token(token)
        text = detokenizer.last_segment
        responses.append(server.Response(text, token, 0.0, None, ()))
    responses.append(server.Response("", tokenizer.eos_token_id, 0.0, "stop", ()))

    class Provider:
        def learn(self, reply):
            pass

    class Generator:
        ends_replies = False
        model_provider = Provider()

        def generate(self, request, args, progress_callback):
            return None, iter(responses)

    request = server.CompletionRequest("chat", "", [], None, None)
    args = server.GenerationArguments(
        **{f.name: None for f in fields(server.GenerationArguments)}
    )
    args.model, args.stop_words = server.ModelDescription("a", None, None), stop
    exchange = Exchange(Generator(), steering, set(), **options)
    _, replied = exchange.generate(request, args)
    thinking, _, answer = "".join(r.text for r in replied).partition(parts.CLOSE)
    return thinking, answer


REPLY = "so a</END>so b c\n\nd"


@splits_text
@pytest.mark.parametrize(
    ("stop", "answer"),
    [
        (["so"], ""),  # right behind the marker
        (["so b"], ""),
        (["a</"], "so b c\n\nd"),
        ([">so"], "so b c\n\nd"),  # reaches over the marker's end
        (["END", "</END>"], "so b c\n\nd"),
        (["close", "open"], "so b c\n\nd"),
        (["b", "c"], "so "),
        (["c", "b"], "so "),
        (["\n\n"], "so b c"),
        (["\n\nd"], "so b c"),
        (["d\n"], "so b c\n\nd"),
    ],
)
def test_a_marker_is_neither_thinking_nor_answer(model, stop, answer):
    assert exchanged(model[1], REPLY, stop) == ("so a", answer)


@splits_text
@pytest.mark.parametrize(
    ("stop", "thinking", "answer"),
    [
        (["so"], "", ""),
        (["</END>"], "so a", ""),
        (["a</"], "so ", ""),
        (["b"], "so a", "so "),
        (["zzz"], "so a", "so b c\n\nd"),
        (["a</ENDE"], "so a", "so b c\n\nd"),  # held back, and told after all
    ],
)
def test_asked_to_markers_are_searched_as_well(model, stop, thinking, answer):
    found = exchanged(model[1], REPLY, stop, stop_in_thinking=True)
    assert found == (thinking, answer)


@splits_text
@pytest.mark.parametrize("blank", ["\n\n", " \n", "\n"])
def test_white_space_before_the_answer_ends_no_paragraph(model, blank):
    text = f"so a</END>{blank}b{blank}c"
    assert exchanged(model[1], text, [blank]) == ("so a", f"{blank}b")
    assert exchanged(model[1], text, [f"{blank}b"]) == ("so a", "")


def test_stop_words_are_found_across_pieces():
    stops = StopWords(["abc", "bd"])
    assert stops.take("xa") == ("x", False)
    assert stops.take("b") == ("", False)
    assert stops.take("e") == ("abe", False)
    assert stops.take("ab") == ("", False)
    assert stops.take("dc") == ("a", True)
    stops = StopWords(["abc"])
    assert stops.take("ab") == ("", False)
    assert stops.rest() == "ab"
    assert StopWords([]).take("any") == ("any", False)


def test_white_space_that_leads_an_answer_may_come_in_pieces():
    stops = StopWords(["\n\n", "\n\nd"])
    stops.begin_answer()
    pieces = [*"\n\na\nb\n", "\nc"]
    found = [stops.take(piece) for piece in pieces]
    assert "".join(text for text, _ in found) == "\n\na\nb"
    assert [is_over for _, is_over in found] == [False] * (len(pieces) - 1) + [True]
    stops = StopWords(["\n\n"])
    assert stops.take("\n\na") == ("", True)  # which follows no marker
