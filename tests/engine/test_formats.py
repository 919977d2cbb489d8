"""Budgets in reasoning models' formats: opened, counted, closed, split, next turn.

What is right is written by hand, in tests/formats.
"""

import json

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from formats import ANSWER, FORMATS, THOUGHT, Format
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.fields import keywords_of, take
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import PromptOptions, ThinkingBudget
from mlx_budget.engine.template import ask_template
from mlx_budget.engine.thinking import find_markers
from replies import Said, say
from scripted import ScriptedModel

QUESTION = "What is 2 + 3?"
LARGE = 40


@pytest.fixture(scope="module", params=FORMATS, ids=lambda f: f.name)
def format(request) -> Format:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(format: Format, tmp_path_factory) -> TokenizerWrapper:
    try:
        tokenizer = format.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    except ModuleNotFoundError as e:
        pytest.skip(f"This release of mlx-lm does not know the format: {e}.")
    if not format.template:
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}])
        except TypeError:
            pytest.skip("mlx-lm's renderer cannot render a prompt in this release.")
    return tokenizer


@pytest.fixture
def reply_to(format: Format, tokenizer: TokenizerWrapper):
    """Lets a model answer a question with texts, each of them encoded by itself."""

    def answer(*texts: str, question: str = QUESTION, off: bool = False, **options):
        config = format.off if off else format.on
        prompt = encode_chat(tokenizer, question, chat_template_config=config)
        script = ids(tokenizer, *texts)
        said = say(tokenizer, prompt, script, **format.markers, **options)
        assert_same_in_a_batch(said)
        return said

    return answer


def ids(tokenizer: TokenizerWrapper, *texts: str) -> list[int]:
    return [
        token
        for text in texts
        for token in tokenizer.encode(text, add_special_tokens=False)
    ]


def with_close(tokenizer: TokenizerWrapper, written: str) -> tuple[str, int, str]:
    """What a model says before a forced close, that close's length, what it says then.

    Args:
        written (str): A reply with the forced part between "«" and "»".
    """
    before, _, rest = written.partition("«")
    close, _, after = rest.partition("»")
    return before, len(ids(tokenizer, close)), after


def assert_same_in_a_batch(said: Said) -> None:
    reply, batch = said.last.reply, said.batch
    assert batch.tokens == reply.tokens
    assert (batch.thinking, batch.answer) == reply.split()
    for name in ("thinking_tokens", "answer_tokens", "closed_by", "text"):
        assert getattr(batch, name) == getattr(reply, name)


def test_the_prompt_ends_as_the_family_has_it(format, tokenizer):
    for config, tail in ((format.on, format.tail), (format.off, format.off_tail)):
        if config is not None:
            prompt = encode_chat(tokenizer, QUESTION, chat_template_config=config)
            assert tokenizer.decode(prompt).endswith(QUESTION + tail)


def test_a_budget_is_asked_of_the_template(format, tokenizer):
    """Thinking where there is one, and none for 0, without any other argument."""

    def tail(budget: int, **given) -> tuple[str, dict | None]:
        options = {"thinking_budget": budget, **format.markers}
        thinking = take(ThinkingBudget, options)
        template = PromptOptions(chat_template_config=given)
        template, switch = ask_template(tokenizer, thinking, template)
        prompt = encode_chat(tokenizer, QUESTION, **keywords_of(template))
        return tokenizer.decode(prompt).rpartition(QUESTION)[2], switch

    assert tail(LARGE)[0] == format.tail
    assert tail(0)[0] == (format.off_tail if format.off else format.tail)
    # What the user says to the template is left as it is.
    for arguments in filter(None, (format.on, format.off)):
        for budget in (0, LARGE):
            assert tail(budget, **arguments)[1] is None


@pytest.mark.parametrize("budget", [None, LARGE])
def test_a_reply_that_closes_by_itself_is_left_alone(format, reply_to, budget):
    said = reply_to(format.text(format.says), thinking_budget=budget)
    assert said.text == format.text(format.says)
    assert said.forced == frozenset()
    assert (said.last.thinking_tokens, said.last.closed_by) == (format.tokens, "model")
    thinking, answer = said.last.reply.split()
    assert (thinking, answer.strip()) == (THOUGHT, ANSWER)


@pytest.mark.parametrize(
    ("budget", "thought"), [(4, ("I add the", "I add the two")), (0, ("",))]
)
def test_a_budget_closes_as_the_format_closes(
    format, tokenizer, reply_to, budget, thought
):
    written = format.text(format.at_4 if budget else format.at_0)
    before, length, after = with_close(tokenizer, written)
    # Whatever the model says in the places of the close, it is not heard.
    said = reply_to(before, *["."] * length, after, thinking_budget=budget, hard_stop=1)
    assert said.text == written.replace("«", "").replace("»", "")
    start = len(ids(tokenizer, before))
    assert said.forced == frozenset(range(start, start + length))
    assert (said.last.thinking_tokens, said.last.closed_by) == (budget, "budget")
    thinking, answer = said.last.reply.split()
    assert thinking in thought
    assert answer == ANSWER


def test_a_message_that_would_break_a_reply_is_refused(format, reply_to):
    for message, why in (
        (f" So. {format.eos}", "control token"),
        (f" So.{format.end} It is 5.{format.end}", "twice"),
    ):
        with pytest.raises(ValueError, match=why):
            reply_to("So", thinking_budget=4, thinking_budget_message=message)


def test_a_message_may_end_with_the_marker_and_mention_others(
    format, tokenizer, reply_to
):
    before = format.text(format.at_4).partition("«")[0]
    called = format.call or "no call"
    message = f" Leave {format.start} now, and {called[:40]}."
    fill = "." * 200
    said = reply_to(
        before,
        *fill,
        thinking_budget=4,
        hard_stop=1,
        thinking_budget_message=message + format.end,
    )
    thinking, answer = said.last.reply.split()
    assert thinking.endswith(message.strip())
    assert set(answer) <= {".", "\n"}
    assert said.text.count(format.end) == 1
    assert (said.last.closed_by, said.last.thinking_tokens) == ("budget", 4)


def test_a_message_that_goes_on_behind_the_marker_begins_the_answer(
    format, tokenizer, reply_to
):
    before, _, _ = format.text(format.at_4).partition("«")
    message = f" Enough.{format.end}\nFinal Answer:"
    options = {"thinking_budget_message": message, "hard_stop": 1}
    cut = len(reply_to(before, *"." * 60, thinking_budget=4, **options).forced)
    said = reply_to(before, *"." * cut, ANSWER, thinking_budget=4, **options)
    thinking, answer = said.last.reply.split()
    assert thinking.endswith("Enough.")
    assert answer == f"Final Answer:{ANSWER}"
    start = len(ids(tokenizer, before))
    assert said.forced == frozenset(range(start, start + cut))
    assert (said.last.thinking_tokens, said.last.closed_by) == (4, "budget")
    assert said.last.answer_tokens == len(ids(tokenizer, ANSWER))
    shown = "".join(r.text for r in said.responses if not r.is_thinking)
    assert shown.strip() == answer


def test_the_close_without_thinking_is_the_templates_own(format, tokenizer):
    if format.off is None or format.end not in format.off_tail:
        pytest.skip("The template closes no block to leave thinking out.")
    at_0 = format.at_0.replace("«", "").replace("»", "").replace("@", "")
    assert format.off_tail.endswith((at_0, at_0.strip()))


def test_what_stands_around_an_answer_is_no_part_of_it(format, tokenizer, reply_to):
    """In the stream and in counts, too; quoted it is text."""
    frames = find_markers(tokenizer, *format.markers.values()).frames
    if not frames:
        pytest.skip("There is nothing around an answer.")
    said = reply_to(format.text(format.says), thinking_budget=LARGE)
    assert all(frame in said.text for frame in frames)
    shown = "".join(r.text for r in said.responses if not r.is_thinking)
    assert shown.strip() == ANSWER
    spaces = len(ids(tokenizer, *(c for c in shown if c.isspace())))
    assert 6 <= said.last.answer_tokens <= 6 + spaces
    quoting = f" It is `{frames[0]}` that opens it, and `{frames[-1]}` closes it."
    before = format.says.partition("@")[0]
    said = reply_to(format.text(before), ANSWER + quoting, thinking_budget=LARGE)
    assert said.last.reply.split()[1].strip() == ANSWER + quoting


def test_a_model_that_answers_at_once_is_left_alone(format, reply_to):
    """Of the formats that leave it to the model to open thinking."""
    if format.is_opened:
        pytest.skip("The template opens thinking.")
    for budget in (None, 0, 2, LARGE):
        said = reply_to(ANSWER, thinking_budget=budget)
        assert said.text == ANSWER
        assert said.forced == frozenset()
        assert (said.last.thinking_tokens, said.last.closed_by) == (0, None)
        assert said.last.reply.split() == ("", ANSWER)
        assert said.last.answer_tokens == 6


@pytest.mark.parametrize("budget", [0, 2, LARGE])
def test_a_prompt_without_thinking_is_answered_at_once(format, reply_to, budget):
    if format.off is None:
        pytest.skip("The template cannot leave thinking out.")
    said = reply_to(ANSWER, off=True, thinking_budget=budget)
    assert said.text == ANSWER
    assert said.forced == frozenset()
    assert said.last.reply.split() == ("", ANSWER)
    assert said.last.thinking_tokens == 0


@pytest.mark.parametrize("budget", [None, 0, 3])
def test_markers_that_a_question_quotes_do_nothing(format, reply_to, budget):
    question = f"What is the role of {format.start} and of {format.end}?"
    is_off = format.is_opened
    if is_off and format.off is None:
        question = f"What is the role of {format.end}?"
        said = reply_to(format.text(format.says), question=question)
        assert said.last.thinking_tokens == format.tokens
        return
    said = reply_to(ANSWER, question=question, off=is_off, thinking_budget=budget)
    assert said.forced == frozenset()
    assert said.last.reply.split() == ("", ANSWER)
    assert (said.last.thinking_tokens, said.last.answer_tokens) == (0, 6)


QUOTING = (
    " `{0}` opens it, and `{1}` closes it. That is all.",
    "\n```xml\n{0}\nso\n{1}\n```\nThat is all.",
    '\n{{"tags": ["{0}", "{1}"], "text": "It ends. {1}"}}',
    " Its tags ({0}, {1}) are two.",
    " **{0}** opens it, and **{1}** closes it.",
    " Write `x = '{0} so. {1}'` then.",
)


@pytest.mark.parametrize("quoting", QUOTING)
@pytest.mark.parametrize("budget", [None, LARGE])
def test_markers_that_an_answer_quotes_are_text(format, reply_to, budget, quoting):
    quoting = quoting.format(format.start, format.end)
    said = reply_to(format.text(format.says), quoting, thinking_budget=budget)
    assert said.forced == frozenset()
    assert said.last.thinking_tokens == format.tokens
    assert said.last.after_close_tokens == 0
    thinking, answer = said.last.reply.split()
    assert thinking == THOUGHT
    # A text around the answer may have been on a line of its own.
    assert answer.split() == (ANSWER + quoting).split()


def test_what_is_reasoned_behind_the_close_is_thinking(format, reply_to):
    """Though it speaks of tags, and counts in code and quotes that have ended."""
    more = (
        f' So "{format.start}" it is.\n```\nx = "`"\n```\nIt is `five`.\n{format.end}'
    )
    said = reply_to(format.text(format.says), more, ANSWER, thinking_budget=LARGE)
    assert said.last.after_close_tokens > 0
    thinking, answer = said.last.reply.split()
    assert thinking.startswith(THOUGHT) and thinking.endswith("It is `five`.")
    assert answer.strip() == ANSWER


def test_an_opening_marker_that_thinking_quotes_is_text(format, reply_to):
    before, _, after = format.says.partition("~")
    thought = f"The tag `{format.start}` opens it."
    said = reply_to(
        before + thought + after.replace("@", ANSWER), thinking_budget=LARGE
    )
    thinking, answer = said.last.reply.split()
    assert thinking == thought
    assert answer.strip() == ANSWER


@pytest.mark.parametrize("budget", [None, LARGE])
def test_an_opening_marker_that_repeats_the_prompts_counts_and_is_not_shown(
    format, tokenizer, reply_to, budget
):
    if not format.is_opened:
        pytest.skip("The template does not open thinking.")
    said = reply_to(format.start, format.text(format.says), thinking_budget=budget)
    assert said.text == format.start + format.text(format.says)
    thinking, answer = said.last.reply.split()
    assert (thinking, answer.strip()) == (THOUGHT, ANSWER)
    repeated = len(ids(tokenizer, format.start))
    assert said.last.thinking_tokens == repeated + format.tokens
    others = said.last.thinking_tokens + said.last.answer_tokens
    frames = find_markers(tokenizer, *format.markers.values()).frames
    assert len(said.tokens) == others + len(ids(tokenizer, format.end, *frames))


@pytest.mark.parametrize("budget", [None, 12, LARGE])
def test_a_tool_call_ends_thinking(format, tokenizer, reply_to, budget):
    if format.call is None:
        pytest.skip("mlx-lm does not know how the format calls tools.")
    opening = format.says.partition("~")[0]
    said = reply_to(opening, "So\n", format.call, thinking_budget=budget, hard_stop=1)
    assert said.text == f"{opening}So\n{format.call}"
    assert said.forced == frozenset()
    assert said.last.reply.split() == ("So", format.call)
    assert said.last.closed_by == "model"
    assert said.last.answer_tokens == len(ids(tokenizer, format.call))


def test_a_hard_stop_in_the_start_of_a_tool_call_breaks_none(
    format, tokenizer, reply_to
):
    """It is completed, or thinking is closed as if it were not there."""
    tools = find_markers(tokenizer, *format.markers.values()).tool_formats
    starts = [t.start for t in tools if t.anywhere and len(ids(tokenizer, t.start)) > 1]
    if not starts:
        pytest.skip("A tool call begins with one token, or in an unknown way.")
    opening, thought = format.says.partition("~")[0], "So\n"
    used = len(ids(tokenizer, opening.removeprefix(format.start), thought))
    was_completed = set()
    for start in starts:
        header = ids(tokenizer, start)
        for n in range(1, len(header)):
            begun = [tokenizer.decode([token]) for token in header[:n]]
            said = reply_to(
                *(opening, thought, *begun, *"." * 30),
                thinking_budget=used + n,
                hard_stop=1,
                max_tokens=60,
            )
            assert said.last.closed_by == "budget"
            assert said.last.thinking_tokens <= used + n
            thinking, answer = said.last.reply.split()
            was_completed.add(start in said.text)
            if start in said.text:
                assert (thinking, answer[: len(start) + 1]) == ("So", f"{start}.")
            else:
                assert set(answer) == {"."}
    assert True in was_completed


@pytest.mark.parametrize("temp", [0.0, 0.5])
def test_a_model_that_ends_in_its_thinking_answers_anyway(
    format, tokenizer, reply_to, temp
):
    opening, ends = format.says.partition("~")[0], format.eos
    # The closing marker takes the places of the end and of what the model says next.
    rest = len(ids(tokenizer, format.end)) - 1
    said = reply_to(
        *(opening, "So it", ends, *["."] * rest, ANSWER),
        thinking_budget=LARGE,
        answer_anyway=True,
        temp=temp,
        seed=1,
    )
    assert said.text == f"{opening}So it{format.end}{ANSWER}"
    assert said.forced == frozenset()
    assert said.last.reply.split() == ("So it", ANSWER)
    assert (said.last.closed_by, said.last.no_answer) == ("model", None)
    said = reply_to(opening, "So it", ends, thinking_budget=LARGE)
    assert said.text == f"{opening}So it"
    assert said.last.no_answer is not None


def test_a_model_that_ends_behind_its_thinking_answers_anyway(
    format, tokenizer, reply_to
):
    opening = format.says.partition("~")[0]
    close = (opening, "So it", format.end)
    said = reply_to(*close, format.eos, thinking_budget=LARGE)
    assert said.text == "".join(close)
    # The script ends, so that the model would end its reply at every step.
    said = reply_to(
        *close, format.eos, thinking_budget=LARGE, answer_anyway=True, max_tokens=40
    )
    assert len(said.tokens) > len(ids(tokenizer, *close))
    assert said.last.answer_tokens > 0


@pytest.mark.parametrize("budget", [None, 4])
def test_the_next_turn_has_the_reply_as_the_family_has_it(format, tokenizer, budget):
    written = format.text(format.says if budget is None else format.at_4)
    before, length, after = with_close(tokenizer, written)
    prompt = encode_chat(tokenizer, QUESTION, chat_template_config=format.on)
    script = ids(tokenizer, before, *["."] * length, after)
    script += [tokenizer.eos_token_id] * 9
    conversation = Conversation(
        ScriptedModel(script, len(prompt), len(tokenizer.get_vocab())),
        tokenizer,
        False,
        chat_template_config=format.on,
        hard_stop=1,
        **format.markers,
    )
    list(conversation.ask(QUESTION, budget))
    messages = [*conversation.messages, {"role": "user", "content": QUESTION}]
    prompt = encode_chat(tokenizer, messages, chat_template_config=format.on)
    text = tokenizer.decode(prompt)
    past = text.split(QUESTION)[1]
    kept = format.past if budget is None else format.past_at_4 or format.past
    assert format.text(kept) in past


@pytest.fixture
def command(format: Format, tokenizer: TokenizerWrapper, monkeypatch):
    """Runs the command `generate` on a model that says a script."""
    from click.testing import CliRunner

    from mlx_budget.cli import cli
    from mlx_budget.models import loading

    def run(script: list[int], prompt: list[int], *arguments: str):
        model = ScriptedModel(
            [*script, tokenizer.eos_token_id], len(prompt), len(tokenizer.get_vocab())
        )
        monkeypatch.setattr(
            loading, "load_source", lambda *a, **k: (model, tokenizer, False)
        )
        named = [
            text
            for name, marker in format.markers.items()
            for text in (f"--{name.replace('_', '-')}-token", marker)
        ]
        common = ["generate", "--model", "x", "-p", QUESTION, "--predictor", "none"]
        result = CliRunner().invoke(cli, [*common, *named, *arguments])
        assert result.exit_code == 0, result.output
        return result

    return run


def test_json_tells_thinking_and_answer(format, tokenizer, command):
    prompt = encode_chat(tokenizer, QUESTION, chat_template_config=format.on)
    script = ids(tokenizer, format.text(format.says))
    result = command(script, prompt, "--json", "--thinking-budget", str(LARGE))
    told = json.loads(result.stdout)
    assert told["thinking"] == THOUGHT
    assert told["answer"] == ANSWER
    assert told["thinking_tokens"] == format.tokens
    assert told["text"] == format.text(format.says)
    assert told["left_out_by_template"] is None


def test_it_is_told_what_the_template_did_for_a_budget(format, tokenizer, command):
    script = ids(tokenizer, ANSWER)
    if format.off is not None and not format.on:
        prompt = encode_chat(tokenizer, QUESTION, chat_template_config=format.off)
        result = command(script, prompt, "--no-thinking", "--json")
        assert json.loads(result.stdout)["left_out_by_template"] == format.off
        result = command(script, prompt, "--no-thinking")
        assert f"Left out by the chat template: {json.dumps(format.off)}" in (
            result.stderr.splitlines()
        )
        off = ("--chat-template-config", json.dumps(format.off))
        result = command(script, prompt, "--thinking-budget", "9", *off)
        assert "0 of 9 tokens, the prompt leaves it out" in result.stderr
    elif format.on:
        prompt = encode_chat(tokenizer, QUESTION, chat_template_config=format.on)
        result = command(script, prompt, "--thinking-budget", "9")
        line = f"Thinking let in by the chat template: {json.dumps(format.on)}"
        assert line in result.stderr.splitlines()
    else:
        prompt = encode_chat(tokenizer, QUESTION)
        for budget in ("0", "9"):
            result = command(script, prompt, "--thinking-budget", budget)
            assert "by the chat template" not in result.stderr
