"""Thinking in a loop is led to its end, else closed, and the reply says so."""

import json

import pytest
from click.testing import CliRunner

from mlx_budget import batch_generate, load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.generate import thinking_line
from mlx_budget.engine.loops import LoopFinder, Repetition
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.models import loading
from replies import say
from scripted import ScriptedBatch, ScriptedModel, indifferent_predictor

BEFORE, LINE = "I count on.\n", "Wait, let me check that again.\n"


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture(scope="module")
def encode(demo):
    return lambda text: demo[1].encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def prompt(demo) -> list[int]:
    messages = [{"role": "user", "content": "Hi"}]
    return demo[1].apply_chat_template(messages, add_generation_prompt=True)


@pytest.fixture
def reply_of(demo, encode, prompt):
    """What becomes of a text, alone and in a batch."""

    def reply(text: str, **options):
        options = {"thinking_budget": 700, "max_tokens": 800, **options}
        said = say(demo[1], prompt, encode(text), **options)
        assert said.batch.tokens == said.tokens
        assert said.batch.closed_by == said.last.closed_by
        return said

    return reply


def ends(tokens: list[int]) -> tuple[int, int]:
    """After how many tokens a text is in a loop, and when it does not leave it."""
    finder, said = LoopFinder(), []
    for token in tokens:
        finder.take(token)
        said.append(finder.repetition)
    return said.index(Repetition.LOOP) + 1, said.index(Repetition.STUCK) + 1


def test_guidance_leads_out_of_a_loop_at_a_line(reply_of, encode):
    """A prior does: at the first line of which it is known."""
    said = reply_of(BEFORE + LINE * 60, predictor=None)
    loop, _ = ends(encode(BEFORE + LINE * 60))
    line = len(encode(LINE))
    assert loop <= said.last.thinking_tokens <= loop + line
    assert said.text.endswith(f"{LINE}</think>") or "</think>" in said.text
    assert said.last.closed_by == "loop"
    assert said.forced == frozenset()


@pytest.mark.parametrize("is_guided", [False, True])
def test_a_loop_that_goes_on_is_closed_at_the_end_of_a_line(
    demo, reply_of, encode, is_guided
):
    """Without guidance, and under one that favours nothing."""
    predictor = indifferent_predictor(len(demo[1].get_vocab())) if is_guided else False
    said = reply_of(BEFORE + LINE * 60, predictor=predictor)
    _, stuck = ends(encode(BEFORE + LINE * 60))
    used = said.last.thinking_tokens
    assert stuck <= used < stuck + len(encode(LINE))
    assert said.last.reply.split()[0].endswith(LINE.strip())
    assert min(said.forced) == used
    assert said.last.closed_by == "loop"
    assert thinking_line(said.last).startswith(
        f"Thinking: {used} of 700 tokens, closed because it was in a loop"
    )


def test_a_loop_without_lines_is_closed_where_it_is(reply_of, encode):
    text = BEFORE + "so it is five and then " * 60
    said = reply_of(text)
    assert said.last.thinking_tokens == ends(encode(text))[1]
    assert said.last.closed_by == "loop"


def test_no_character_is_broken(reply_of, encode):
    text = BEFORE + "日本語で考えると、" * 60
    said = reply_of(text)
    assert said.last.closed_by == "loop"
    assert "\ufffd" not in said.text.partition("</think>")[0]


def test_a_message_is_put_before_the_marker(reply_of):
    said = reply_of(BEFORE + LINE * 60, thinking_budget_message="Enough.\n")
    assert f"{LINE}Enough.\n" in said.text
    assert said.last.closed_by == "loop"


def test_the_hard_stop_comes_first_where_it_does(reply_of):
    said = reply_of(BEFORE + LINE * 60, thinking_budget=100)
    assert said.last.closed_by == "budget"
    assert said.last.thinking_tokens <= 110


def test_a_floor_is_no_reason_to_go_on_in_a_loop(reply_of):
    said = reply_of(BEFORE + LINE * 60, min_thinking_tokens=600)
    assert said.last.closed_by == "loop"
    assert said.last.thinking_tokens < 600


def test_a_model_that_leaves_its_loop_is_left_alone(reply_of, encode):
    loop, _ = ends(encode(BEFORE + LINE * 60))
    count = loop // len(encode(LINE)) + 1
    text = BEFORE + LINE * count + "So it is five.\n</think>\n\nIt is 5."
    said = reply_of(text)
    assert (said.last.closed_by, said.text) == ("model", text)


def test_it_is_on_with_a_budget_and_off_without(reply_of):
    """And with guidance alone, as published; each unless it is said otherwise."""
    text = BEFORE + LINE * 35
    # Time for a loop to be found, and little more.
    budget = {"thinking_budget": 340, "predictor": False}
    alone = {"hard_stop": None, "predictor": None}
    for options, is_on in (
        (budget, True),
        ({"thinking_budget": "auto"}, True),
        ({"thinking_budget": None, "min_thinking_tokens": 9}, True),
        ({"thinking_budget": None}, False),
        ({**budget, **alone}, False),
    ):
        assert (
            ThinkingBudget(
                tokens=options["thinking_budget"],
                least=options.get("min_thinking_tokens", 0),
                hard_stop=options.get("hard_stop", 1.1),
            ).watches_loops
            is is_on
        )
        if options["thinking_budget"] == "auto":
            continue
        for stop_loops in (None, True, False):
            said = reply_of(text, **options, stop_loops=stop_loops)
            is_stopped = is_on if stop_loops is None else stop_loops
            assert (said.last.closed_by == "loop") is is_stopped, (options, stop_loops)


def test_lists_tables_and_code_are_thought_to_their_end(reply_of):
    rows = "".join(f"| {i} | {i * i} |\n" for i in range(20))
    steps = "".join(f"{i}. Then comes the next step.\n" for i in range(20))
    text = f"{rows}{'...' * 5}\n{'}' * 4}\n{steps}{'| | |' * 9}\n\n\n</think>\n\n5."
    said = reply_of(text)
    assert (said.last.closed_by, said.text) == ("model", text)


class Wavering:
    """Makes a scripted model say other things now and then."""

    def __call__(self, inputs, cache=None):
        return super().__call__(inputs, cache) * 0.9


class Looping(Wavering, ScriptedModel):
    pass


class LoopingBatch(Wavering, ScriptedBatch):
    pass


@pytest.mark.parametrize("temp", [0.0, 0.7])
def test_a_seeded_batch_of_loops_is_what_each_is_alone(demo, encode, prompt, temp):
    _, tokenizer, _ = demo
    script = encode(BEFORE + LINE * 60)
    options = {"temp": temp, "thinking_budget": 700, "max_tokens": 500}
    seeds, alone = [3, 4, 5], []
    for seed in seeds:
        model = Looping(script, len(prompt), len(tokenizer.get_vocab()))
        last = list(stream_generate(model, tokenizer, prompt, seed=seed, **options))[-1]
        alone.append((last.reply.tokens, last.closed_by))
    model = LoopingBatch(script, len(prompt), len(tokenizer.get_vocab()))
    replies = batch_generate(
        model, tokenizer, [prompt] * 3, seed=seeds, **options
    ).replies
    assert [(r.tokens, r.closed_by) for r in replies] == alone
    assert "loop" in {closed_by for _, closed_by in alone}


def test_json_and_statistics_say_so(demo, encode, prompt, monkeypatch):
    _, tokenizer, _ = demo
    script = encode(BEFORE + LINE * 60)
    model = ScriptedModel(script, len(prompt), len(tokenizer.get_vocab()))
    monkeypatch.setattr(
        loading, "load_source", lambda *a, **k: (model, tokenizer, False)
    )
    common = [
        "generate",
        "--model",
        "x",
        "-p",
        "Hi",
        "--predictor",
        "none",
        "-m",
        "600",
    ]
    run = CliRunner().invoke
    told = run(cli, [*common, "--thinking-budget", "500", "--json"])
    assert json.loads(told.stdout)["closed_by"] == "loop"
    told = run(cli, [*common, "--thinking-budget", "500"])
    assert "closed because it was in a loop" in told.stderr
    told = run(cli, [*common, "--stop-loops", "--json"])
    assert json.loads(told.stdout)["closed_by"] == "loop"
    told = run(cli, [*common, "--thinking-budget", "500", "--no-stop-loops", "--json"])
    assert json.loads(told.stdout)["closed_by"] == "budget"


def test_a_turn_of_a_chat_says_so(demo, encode, prompt):
    script = encode(BEFORE + LINE * 60)
    model = ScriptedModel(script, len(prompt), len(demo[1].get_vocab()))
    conversation = Conversation(model, demo[1], False, max_tokens=400)
    last = list(conversation.ask("Hi", 500))[-1]
    assert last.closed_by == "loop"
    conversation.reset()
    assert list(conversation.ask("Hi"))[-1].closed_by is None


def test_a_value_that_is_no_answer_is_refused():
    with pytest.raises(ValueError, match="stop_loops must be True, False or None"):
        ThinkingBudget(stop_loops="yes")
