"""What holds for any reply under any budget, tried on replies written by chance.

The replies are made of words, line ends, markers meant, quoted and spelt, tool calls,
characters of several bytes and ends of turn, in random order; the same in every run.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from replies import Markers, Said, Script, encode, say, stream, write_script
from scripted import indifferent_predictor
from vocabularies import bytes_of, make_tokenizer, tiny_vocabulary

MESSAGES = (None, None, " Time is up.", "No é.")
SEEDS = range(20)
_PROMPT = "{{- messages[0].content }}"
_IN_LINES = (
    f"{_PROMPT}{{%- if enable_thinking is defined and not enable_thinking %}}"
    "{{- '<think>\n\n</think>\n\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """A way of writing the markers.

    Attributes:
        markers: Their texts.
        added, special: Tokens of their own.
        is_named: Whether they must be named, since mlx-lm does not know them.
        header: Opens an answer without thinking before it.
        template: The chat template.
    """

    markers: Markers = Markers()
    added: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    is_named: bool = False
    header: str = ""
    template: str = _PROMPT
    config: tuple[tuple[str, str], ...] = (("tool_parser_type", "json_tools"),)

    @property
    def is_spelt(self) -> bool:
        """Whether ordinary tokens may be markers."""
        return not {self.markers.start, self.markers.end} <= {*self.added}


_CALLS = ("<tool_call>", "</tool_call>")
KINDS = {
    "tokens": Kind(added=("<think>", "</think>", *_CALLS)),
    "tokens in lines": Kind(added=("<think>", "</think>", *_CALLS), template=_IN_LINES),
    "spelt": Kind(added=_CALLS, is_named=True),
    "channels": Kind(
        Markers("<|channel>thought", "<channel|>", "<|tool_call>", "<tool_call|>"),
        special=("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
        config=(("tool_parser_type", "gemma4"),),
    ),
    "harmony": Kind(
        Markers(
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
            "<|end|><|start|>assistant<|channel|>commentary to=f<|message|>",
            "<|call|>",
            "<|return|>",
        ),
        special=("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
        header="<|channel|>final<|message|>",
        config=(),
    ),
}


@dataclass(frozen=True, repr=False)
class Run:
    """One reply, and all that it takes to have it again.

    Attributes:
        kind: How the markers are written.
        tokenizer: Of that kind.
        prompt: The prompt.
        script: What the model wants to say.
        is_opened: Whether the prompt opens thinking.
        options: Of `stream_generate`.
        said: What came of it.
    """

    kind: Kind
    tokenizer: TokenizerWrapper
    prompt: list[int]
    script: Script
    is_opened: bool
    options: dict
    said: Said

    def __repr__(self) -> str:
        shown = {k: v for k, v in self.options.items() if k != "predictor"}
        return f"{self.script}, opened {self.is_opened}, {shown}: {self.said.text!r}"

    def text_of(self, token: int) -> str:
        """Its text; "<" is something else in a token that cannot be a marker."""
        text = self.tokenizer.decode([token])
        may_be = self.kind.is_spelt or token in self.tokenizer.added_tokens_decoder
        return text if may_be else text.replace("<", "(")

    def markers_in(self, text: str) -> int:
        """How often markers are in a text."""
        return text.count(self.kind.markers.start) + text.count(self.kind.markers.end)


@cache
def make(name: str) -> TokenizerWrapper:
    kind = KINDS[name]
    with TemporaryDirectory() as folder:
        return make_tokenizer(
            Path(folder),
            tiny_vocabulary(),
            template=kind.template,
            eos=kind.markers.eos,
            added=kind.added,
            special=kind.special,
            **dict(kind.config),
        )


@cache
def runs(name: str) -> list[Run]:
    """Scripts with budgets: none, 0, a few tokens, up to 40; some have a floor."""
    kind, tokenizer = KINDS[name], make(name)
    start, end = kind.markers.start, kind.markers.end
    predictor = indifferent_predictor(len(tokenizer.get_vocab()))
    found = []
    for seed in SEEDS:
        rng, low = random.Random(f"{name} {seed}"), random.Random(f"{name} {seed} low")
        script, is_opened = write_script(rng, kind.markers), rng.random() < 0.5
        prompt = f"What is 2 + 3?{start if is_opened else ''}"
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        for budget in (None, 0, rng.randint(1, 4), rng.randint(1, 40)):
            options = {"thinking_budget": budget}
            if kind.is_named:
                options |= {"thinking_start": start, "thinking_end": end}
            if budget is not None:
                options["hard_stop"] = rng.choice([None, 1, 1.1, 2])
                if options["hard_stop"] is None:
                    options["predictor"] = predictor
                options["thinking_budget_message"] = rng.choice(MESSAGES)
                options["answer_anyway"] = rng.random() < 0.3
            if low.random() < 0.5:
                most = 12 if budget is None else budget
                options["min_thinking_tokens"] = low.randint(0, most)
            said = say(tokenizer, ids, encode(tokenizer, script), **options)
            found.append(Run(kind, tokenizer, ids, script, is_opened, options, said))
    return found


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """The name of one."""
    return request.param


def test_the_replies_are_of_all_sorts(kind):
    replies = [run.said.last.reply for run in runs(kind)]
    assert {reply.closed_by for reply in replies} == {None, "model", "budget"}
    assert any(reply.after_close_tokens for reply in replies)
    assert any(KINDS[kind].markers.call in reply.split()[1] for reply in replies)
    assert any(run.said.forced for run in runs(kind))
    assert any(reply.is_in_thinking for reply in replies)


def without_space(text: str) -> str:
    return "".join(text.split())


def markers_of(run: Run) -> list[str]:
    """The texts that belong to no part."""
    texts = (run.kind.markers.start, run.kind.markers.end, run.kind.header)
    return [text for text in texts if text]


def is_made_of(text: str, thinking: str, answer: str, markers: Sequence[str]) -> bool:
    """Whether a text is thinking and answer, in pieces, with markers between them."""
    text, thinking, answer = map(without_space, (text, thinking, answer))
    # How far both may have been read, by how far the text was.
    reached = {0: {(0, 0)}}
    for i in range(len(text)):
        for j, k in reached.get(i, ()):
            if thinking[j : j + 1] == text[i]:
                reached.setdefault(i + 1, set()).add((j + 1, k))
            if answer[k : k + 1] == text[i]:
                reached.setdefault(i + 1, set()).add((j, k + 1))
            for marker in markers:
                if text.startswith(marker, i):
                    reached.setdefault(i + len(marker), set()).add((j, k))
    return (len(thinking), len(answer)) in reached.get(len(text), ())


def test_the_parts_and_the_markers_are_the_whole_reply(kind):
    for run in runs(kind):
        reply = run.said.last.reply
        text = run.tokenizer.decode(run.said.tokens)
        assert run.said.text == reply.text, run
        # mlx-lm leaves out a space at the very beginning.
        assert reply.text.lstrip(" ") == text.lstrip(" "), run
        assert is_made_of(reply.text, *reply.split(), markers_of(run)), run


def test_the_stream_tells_the_parts_apart_as_the_reply_does(kind):
    """But for what is known to be thinking when it is closed again."""
    for run in runs(kind):
        reply = run.said.last.reply
        if reply.after_close_tokens == 0:
            told = {True: "", False: ""}
            for response in run.said.responses:
                told[response.is_thinking] += response.text
            thinking, answer = reply.split()
            assert is_made_of(told[True], thinking, "", markers_of(run)), run
            assert without_space(told[False]) == without_space(answer), run


def test_every_token_is_counted_once(kind):
    """Thinking, after the close, answer; put in; or part of a marker."""
    for run in runs(kind):
        reply = run.said.last.reply
        counted = reply.thinking_tokens + reply.after_close_tokens + reply.answer_tokens
        uncounted = len(reply.tokens) - counted - len(run.said.forced)
        assert uncounted in tokens_of_markers(run), (run, reply.split())


def tokens_of_markers(run: Run) -> range:
    """How many of the model's own tokens can make up markers that neither part shows.

    White space before an opening marker is part of it. A reply's first token may repeat
    the opening marker of the prompt, and count as thinking.
    """
    start, end = run.kind.markers.start, run.kind.markers.end
    texts = [run.text_of(token) for token in run.said.tokens]
    own = [t for i, t in enumerate(texts) if i not in run.said.forced]
    blank = sum(not text.strip() for text in own) if start in run.said.text else 0
    shown = sum(run.markers_in(part) for part in run.said.last.reply.split())
    if run.kind.is_spelt:
        hidden = run.markers_in(run.said.text) - shown
        headers = run.said.text.count(run.kind.header) if run.kind.header else 0
        return range((hidden + headers) * (len(end) + 2) + blank + 1)
    spelt = run.markers_in(run.said.text) - sum(t in (start, end) for t in texts)
    hidden = sum(t in (start, end) for t in own) - (shown - spelt)
    repeats = run.is_opened and "".join(own).lstrip().startswith(start)
    return range(hidden - repeats, hidden + blank + 1)


def test_nothing_is_put_in_outside_of_thinking(kind):
    for run in runs(kind):
        inside = list(insides(run))
        for index in run.said.forced:
            assert inside[index] or index - 1 in run.said.forced, run


def insides(run: Run) -> Iterator[bool]:
    """Whether each token comes inside thinking, by a reading of the text.

    White space alone may stand before an opening marker: from the beginning of the
    reply, or from a closing marker.
    """
    markers, added = run.kind.markers, {*run.kind.added, *run.kind.special}
    inside, may_open, text = run.is_opened, not run.is_opened, ""
    for token in run.said.tokens:
        yield inside
        last = run.tokenizer.decode([token])
        text += last

        def has_come(marker: str, last: str = last, text: str = text) -> bool:
            return last == marker if marker in added else text.endswith(marker)

        if has_come(markers.end):
            inside, may_open, text = False, True, ""
        elif inside and has_come(markers.call):
            inside, may_open = False, False
        elif may_open and has_come(markers.start) and text.strip() == markers.start:
            inside, text = True, ""
        elif may_open and not markers.start.startswith(text.strip()):
            may_open = False


def test_thinking_never_passes_the_hard_stop(kind):
    for run in runs(kind):
        budget, hard_stop = run.options["thinking_budget"], run.options.get("hard_stop")
        if hard_stop is not None:
            most = floor(budget * hard_stop + 1e-6)
            assert run.said.last.thinking_tokens <= most, run


def test_the_model_closes_no_block_before_the_floor(kind):
    """A tool call may end thinking before it, and a character at the hard stop."""
    assert sum("min_thinking_tokens" in run.options for run in runs(kind)) > 10
    for run in runs(kind):
        least, text = run.options.get("min_thinking_tokens", 0), ""
        for response in run.said.responses:
            text += response.text
            if response.closed_by is not None:
                is_marker = text.rstrip().endswith(run.kind.markers.end)
                if is_marker and response.closed_by == "model":
                    assert response.thinking_tokens >= least, run
                break
            if response.thinking_tokens < least and response.is_thinking:
                assert response.finish_reason != "stop", run


def test_no_character_is_broken_by_a_close(kind):
    for run in runs(kind):
        said = b""
        for index, token in enumerate(run.said.tokens):
            if index in run.said.forced and index - 1 not in run.said.forced:
                assert not is_incomplete(said), run
            said += bytes_of(run.tokenizer, token)


def is_incomplete(text: bytes) -> bool:
    """Whether more bytes of a character of UTF-8 may follow."""
    for length in (1, 2, 3):
        try:
            text[-length:].decode()
        except UnicodeDecodeError as error:
            if error.start == 0 and error.reason == "unexpected end of data":
                return True
    return False


def test_a_batch_gives_what_the_stream_gives(kind):
    for run in runs(kind):
        reply, batch = run.said.last.reply, run.said.batch
        assert (batch.tokens, batch.text) == (reply.tokens, reply.text), run
        assert (batch.thinking, batch.answer) == reply.split(), run
        for name in (
            "thinking_tokens",
            "after_close_tokens",
            "answer_tokens",
            "thinking_budget",
            "closed_by",
            "guided_tokens",
        ):
            assert getattr(batch, name) == getattr(reply, name), run
        assert batch.finish_reason == run.said.last.finish_reason, run
        assert batch.is_thinking == reply.is_in_thinking, run
        assert batch.no_answer == run.said.last.no_answer, run


def test_asking_in_mid_reply_changes_nothing(kind):
    for run in runs(kind)[::5]:
        texts = []
        script = encode(run.tokenizer, run.script)
        for response in stream(run.tokenizer, run.prompt, script, **run.options):
            texts.append(response.text)
            assert response.reply.text is not None
            thinking, answer = response.reply.split()
        assert texts == [response.text for response in run.said.responses], run
        assert (thinking, answer) == run.said.last.reply.split(), run
