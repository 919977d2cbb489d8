"""The command `chat` as a user meets it, through a pipe."""

import re

import pytest
from click.testing import CliRunner

from chat_terminal import FIRST, SECOND, copy_demo, first_reply
from mlx_budget import demo, estimate, generate, load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.cli.chat_session import run_chat
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import (
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from recipes.demo.chat import TEMPLATE


def chat(lines, *args, **kwargs):
    """Runs the command on some lines of standard input, as through a pipe."""
    text = lines if isinstance(lines, bytes) else "".join(f"{x}\n" for x in lines)
    return CliRunner().invoke(cli, ["chat", *map(str, args)], input=text, **kwargs)


def said(*lines, args=()) -> list[str]:
    """What a chat that is no error says on standard error, statistics left out."""
    result = chat(lines, *args)
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()[1:]  # the first is the notice of the demo
    return [x for x in lines if not re.match(r"Answer: |Thinking: \d", x)]


@pytest.fixture(scope="module")
def reply():
    return first_reply()


@pytest.fixture(scope="module")
def answer(reply) -> str:
    return reply.partition("</think>")[2].strip()


@pytest.fixture(scope="module")
def demo_model():
    return load("demo")


def test_a_seed_repeats_a_chat_from_its_first_turn_on(demo_model):
    def said(seed: int, *lines: str) -> str:
        args = ("--temp", 2, "--thinking-budget", 0, "-m", 8, "--seed", seed)
        return chat(lines, *args).stdout

    options = {"temp": 2.0, "thinking_budget": 0, "max_tokens": 8, "seed": 2**40}
    config = {"enable_thinking": False}
    ids = encode_chat(demo_model[1], FIRST, chat_template_config=config)
    alone = generate(*demo_model[:2], ids, predictor=demo_model[2], **options) + "\n"
    two = said(2**40, FIRST, FIRST)
    assert two.startswith(alone)
    assert said(2**40, FIRST, FIRST, "/reset", FIRST) == two + alone
    assert said(2**40 + 1, FIRST) != alone


def test_the_statistics_say_when_the_template_leaves_thinking_out():
    lines = said(FIRST, "/budget 20", FIRST, "/budget 0", FIRST)
    told = 'Left out by the chat template: {"enable_thinking": false}'
    budgets = ["Thinking budget: 20 tokens", "Thinking budget: 0 tokens"]
    assert lines == [*budgets, told]
    lines = said(FIRST, args=("--thinking-budget", 0))
    assert lines == [told]


def test_a_pipe_gets_the_replies_alone(demo_model, reply):
    ids = encode_chat(demo_model[1], FIRST)
    options = {"predictor": demo_model[2], "thinking_budget": 60}
    said = list(stream_generate(*demo_model[:2], ids, **options))
    answer_tokens = sum(not r.is_thinking for r in said[:-1])  # the last ends it
    result = chat([FIRST, "/quit", SECOND], "--thinking-budget", 60)
    assert result.exit_code == 0
    assert result.stdout == reply + "\n"
    assert reply == "".join(r.text for r in said)
    notice, thinking, answer = result.stderr.splitlines()
    assert notice == demo.NOTICE
    last = said[-1]
    assert thinking == (
        f"Thinking: {last.thinking_tokens} of 60 tokens, closed by the {last.closed_by}"
    )
    n = len(ids)
    pattern = f"Answer: {answer_tokens} tokens; prompt: {n} tokens, {n} of them new; "
    assert re.fullmatch(pattern + ".* tokens-per-sec", answer)


def test_the_statistics_say_why_something_is_read_again():
    options = ("--thinking-budget", 20, "--max-kv-size", 60)
    result = chat([FIRST, SECOND, FIRST], *options)
    first, second, third = re.findall("prompt: .*(?=; )", result.stderr)
    assert first == "prompt: 22 tokens, 22 of them new"
    assert re.fullmatch(r"prompt: \d+ tokens, \d\d of them new", second)
    found = re.fullmatch(
        r"prompt: (\d+) tokens, (\d+) of them read, (\d+) not for the first time "
        r"\(the prompt does not fit into 60 tokens of cache\)",
        third,
    )
    whole, read, again = map(int, found.groups())
    assert 60 < whole == read > again > 20


def test_the_end_of_the_input_ends_the_chat(reply):
    text = FIRST.encode()  # not even a newline
    assert chat(text, "--thinking-budget", 60).stdout == reply + "\n"
    assert chat(b"").exit_code == 0


def test_a_budget_holds_from_the_next_turn_on():
    result = chat(["/budget 0", FIRST, "/budget 60", FIRST, "/budget off", FIRST])
    used = re.findall(r"Thinking: (\d+)(?: of (\d+))? tokens", result.stderr)
    assert [budget for _, budget in used] == ["0", "60", ""]
    assert used[0][0] == "0"
    assert 20 < int(used[1][0]) <= 66 < int(used[2][0])


def test_budgets_are_set_and_shown():
    budgets = ["60", "auto", "auto:0.63", "off", "0", "-1"]
    lines = [line for b in budgets for line in (f"/budget {b}", "/budget")]
    shown = ["60 tokens", "auto", "auto:0.63", "off", "0 tokens", "off"]
    expected = [f"Thinking budget: {x}" for x in shown for _ in range(2)]
    assert said(*lines) == expected


def test_an_automatic_budget_comes_from_the_question(demo_model):
    for question in (FIRST, SECOND):
        ids = encode_chat(demo_model[1], question)
        budget = round(0.5 * estimate(*demo_model, ids).median)
        result = chat(["/budget auto:0.5", question])
        assert f" of {budget} tokens, closed by " in result.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/budget abc", "/budget must be an integer number of tokens"),
        ("/budget -2", "not -2"),
        ("/budget auto:0", "The share of an automatic budget"),
        ("/budget " + "9" * 5000, "/budget must be"),
        ("/thinking maybe", "/thinking takes show or hide, not 'maybe'"),
        ("/stats 1", "/stats takes on or off, not '1'"),
        ("/nope", "There is no command '/nope': /help lists them"),
        ("/", "There is no command '/'"),
        ("/QUIT", "There is no command '/QUIT'"),
        ("/nope\0\x1b[2J", r"There is no command '/nope\x00\x1b[2J'"),
    ],
)
def test_a_bad_command_is_one_line_and_changes_nothing(command, message):
    before, error, after = said("/budget 60", command, "/budget")
    assert error.startswith("Error: ") and message in error
    assert before == after == "Thinking budget: 60 tokens"


def test_a_budget_that_cannot_be_honoured_leaves_the_old_one():
    args = ["--predictor", "none", "--thinking-budget", 7]
    error, budget = said("/budget auto", "/budget", args=args)
    assert "there is none: name one" in error
    assert budget == "Thinking budget: 7 tokens"
    args = ["--predictor", "none", "--no-hard-stop"]
    error, budget = said("/budget 9", "/budget", args=args)
    assert "nothing would hold thinking" in error
    assert budget == "Thinking budget: off"


def test_a_model_without_markers_takes_no_budget(tmp_path):
    folder = copy_demo(tmp_path / "plain")
    for file in demo.FOLDER.glob("tokenizer*"):
        (folder / file.name).unlink()
        text = file.read_text().replace("think>", "other>")
        (folder / file.name).write_text(text)
    result = chat(["/budget 9", "/budget"], "--model", folder)
    error, budget = result.stderr.splitlines()
    assert "no thinking markers" in error
    assert budget == "Thinking budget: off"


def test_thinking_is_hidden_and_shown(reply, answer):
    lines = ["/budget 60", "/thinking hide", FIRST, "/reset", "/thinking show", FIRST]
    result = chat(lines)
    assert result.stdout == f"{answer}\n{reply}\n"
    assert chat(lines[::2], "--hide-thinking").stdout == f"{answer}\n"
    assert said("/thinking", args=["--hide-thinking"]) == ["Thinking: hidden"]


def test_statistics_are_turned_off_and_on():
    def printed(*lines) -> list[str]:
        result = chat(["/budget 9", *lines])
        return re.findall("^Answer: ", result.stderr, re.MULTILINE)

    assert printed("/stats off", FIRST, "/stats") == []
    assert len(printed("/stats off", FIRST, "/stats on", FIRST)) == 1


@pytest.mark.parametrize("reset", ["/reset", "r"])
def test_a_reset_forgets_the_history(reply, reset):
    result = chat(["/budget 60", FIRST, reset, FIRST])
    assert result.stdout == f"{reply}\n" * 2
    assert result.stderr.count("prompt: 22 tokens, 22 of them new") == 2
    assert "The history is forgotten." in result.stderr


def test_the_letters_do_as_in_mlx_lm():
    result = chat(["q", FIRST])
    assert (result.exit_code, result.stdout) == (0, "")
    (text,) = {chat([x]).stderr for x in ("h", "/help", "h  ")}
    for command in (
        "/budget auto",
        "/thinking",
        "/stats",
        "/system",
        "/reset",
        "/quit",
    ):
        assert command in text


def test_a_space_makes_a_message_of_a_command():
    for line in (" q", " /budget 5"):
        result = chat([line], "--thinking-budget", 0, "-m", 4)
        assert result.stderr.count("Answer: ") == 1


def test_a_system_prompt_goes_before_the_history():
    def tokens(*lines, args=()) -> list[int]:
        result = chat(["/budget 0", *lines], "-m", 4, *args)
        return [int(n) for n in re.findall(r"prompt: (\d+) tokens", result.stderr)]

    (plain,) = tokens(FIRST)
    (given,) = tokens(FIRST, args=["--system-prompt", "Be terse."])
    assert tokens(FIRST, "/system Be terse.", "r", FIRST) == [plain, given]
    assert tokens("/system Be terse.", "/system off", FIRST) == [plain]
    assert given > plain
    expected = ["System prompt: none", "System prompt: Be  terse."]
    assert said("/system", "/system Be  terse.") == expected


def test_empty_lines_are_passed_over():
    assert said("", "   ", "\t", "/budget", "") == ["Thinking budget: off"]


def test_an_invalid_line_is_one_error():
    result = chat(b"\xff\xfe\n/budget\n")
    assert result.stderr.splitlines()[1:] == [
        "Error: That line is not UTF-8 text.",
        "Thinking budget: off",
    ]


def test_any_text_can_be_said():
    lines = ["a\0b", "\x1b[31m\x07", "<|im_end|><think>", "x" * 1200, "é" * 50]
    result = chat(lines, "--thinking-budget", 0, "-m", 4)
    assert result.exit_code == 0
    assert "Error" not in result.stderr
    assert result.stderr.count("Answer: ") == len(lines)


def test_chat_needs_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="no standard input"):
        run_chat(ModelSource(), ThinkingBudget(), Sampling(), PromptOptions())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--thinking-budget", "abc"], "not 'abc'"),
        (["--hard-stop", "2", "--no-hard-stop"], "not both"),
        (["--max-tokens", "0"], "--max-tokens must be 1 or more"),
        (["--model", "./nope"], "There is no folder ./nope"),
        (["--thinking-budget", "auto", "--predictor", "none"], "name one"),
        (["--thinking-end-token", "x", "--thinking-start-token", "x"], "same marker"),
    ],
)
def test_bad_options_end_in_one_line(args, message):
    result = chat([FIRST], *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr.splitlines()[-1]


def test_a_model_without_a_chat_template_cannot_chat(tmp_path):
    folder = copy_demo(tmp_path / "plain", tokenizer_config={"chat_template": None})
    result = chat([FIRST], "--model", folder)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: The model has no chat template")


def test_a_turn_that_cannot_be_rendered_is_one_line(tmp_path, answer):
    refusal = "{%- if 'no' in messages[-1].content %}{{ raise_exception('Never') }}"
    template = refusal + "{%- endif %}" + TEMPLATE
    folder = copy_demo(tmp_path / "prim", tokenizer_config={"chat_template": template})
    result = chat(["no", FIRST], "--model", folder, "--thinking-budget", 60)
    assert result.exit_code == 0
    first, *others = result.stderr.splitlines()
    assert first.startswith("Error: The model's chat template cannot render")
    assert "prompt: 22 tokens" in others[-1]
    assert result.stdout.endswith(f"{answer}\n")
