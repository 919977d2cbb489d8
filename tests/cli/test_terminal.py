"""What a person sees while a reply comes, on an emulated terminal."""

import io

import pyte
import pytest

from mlx_budget.cli.terminal import ReplyPrinter, meter_line
from mlx_budget.engine.generate import BudgetResponse

COLUMNS, LINES = 40, 8


class Terminal(io.StringIO):
    """A stream that draws on an emulated terminal."""

    def __init__(self):
        super().__init__()
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.Stream(self.screen)
        self.raw = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        # The terminal driver turns a newline into carriage return and newline.
        self.raw += text
        self._stream.feed(text.replace("\n", "\r\n"))
        return len(text)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]


@pytest.mark.parametrize("tokens_per_second", [13, 50, 300])
@pytest.mark.parametrize("hide", [False, True])
def test_the_meter_is_there_at_any_speed(monkeypatch, tokens_per_second, hide):
    monkeypatch.setattr("mlx_budget.cli.terminal._SECONDS_BETWEEN_UPDATES", 0.1)
    clock = iter(n / tokens_per_second for n in range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    terminal = Terminal()
    printer = ReplyPrinter(terminal, terminal, hide_thinking=hide)
    visible = 0
    for n in range(100):
        printer.update(response("ab ", True, n))
        visible += any("of 20 tokens" in line for line in terminal.lines)
    # At the right edge of the terminal it is not drawn.
    assert visible >= 90


@pytest.fixture(autouse=True)
def meter_is_drawn_at_every_token(monkeypatch):
    monkeypatch.setattr("mlx_budget.cli.terminal._SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def response(text: str, is_thinking: bool, n: int = 0, closed_by=None):
    return BudgetResponse(
        text=text,
        token=0,
        logprobs=None,
        from_draft=False,
        prompt_tokens=1,
        prompt_tps=1.0,
        generation_tokens=1,
        generation_tps=1.0,
        peak_memory=0.0,
        is_thinking=is_thinking,
        thinking_tokens=n,
        thinking_budget=20,
        closed_by=closed_by,
    )


def reply(printer: ReplyPrinter, pieces: list[str], answer: list[str]) -> None:
    for n, text in enumerate(pieces, 1):
        printer.update(response(text, True, n))
    printer.update(response("</think>", True, len(pieces), "model"))
    for text in answer:
        printer.update(response(text, False, len(pieces), "model"))


def test_the_meter_stands_below_the_text_while_the_model_thinks():
    terminal = Terminal()
    printer = ReplyPrinter(terminal, terminal)
    printer.update(response("First, let me", True, 1))
    assert terminal.lines[:3] == ["First, let me", meter_line(1, 20)[: COLUMNS - 1], ""]
    printer.update(response(" see.\n", True, 2))
    printer.update(response("So 5", True, 3))
    assert terminal.lines[:2] == ["First, let me see.", "So 5"]
    assert terminal.lines[2].startswith("Thinking: 3 of 20 tokens [###-")
    assert [line for line in terminal.lines[3:] if line] == []


@pytest.mark.parametrize("start", range(LINES))
@pytest.mark.parametrize("width", [COLUMNS - 1, COLUMNS, COLUMNS + 7])
def test_the_meter_leaves_no_trace(start, width):
    pieces = ["x" * width, "\n", "a b c", "\n\n", *("word " * 12).split(" "), "\n"]
    answer = ["\n", "The answer", " is 5."]
    shown, plain = Terminal(), Terminal()
    for terminal in (shown, plain):
        terminal.write("$ command\n" * start)
    printer = ReplyPrinter(shown, shown)
    reply(printer, pieces, answer)
    printer.end()
    plain.write("".join(pieces) + "</think>" + "".join(answer) + "\n")
    assert shown.lines == plain.lines
    assert shown.screen.cursor.x == plain.screen.cursor.x


def test_thinking_is_dimmed_and_the_answer_plain():
    out = Terminal()
    printer = ReplyPrinter(out, io.StringIO())
    reply(printer, ["Hmm."], ["5"])
    printer.end()
    assert out.raw == "\x1b[2mHmm.</think>\x1b[0m5\n"


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    reply(ReplyPrinter(out, io.StringIO()), ["Hmm."], ["5"])
    assert out.raw == "Hmm.</think>5"


def test_a_pipe_gets_the_text_alone():
    out, err = io.StringIO(), io.StringIO()
    printer = ReplyPrinter(out, err)
    reply(printer, ["Hmm."], ["5"])
    printer.end()
    assert (out.getvalue(), err.getvalue()) == ("Hmm.</think>5\n", "")


def test_hidden_thinking_leaves_the_answer_and_the_meter():
    out, terminal = io.StringIO(), Terminal()
    printer = ReplyPrinter(out, terminal, hide_thinking=True)
    printer.update(response("Hmm.", True, 7))
    assert terminal.lines[0] == meter_line(7, 20)[: COLUMNS - 1]
    reply(printer, [" So"], ["\n\n", "5", "\n", "6"])
    printer.end()
    assert out.getvalue() == "5\n6\n"
    assert terminal.lines == [""] * LINES


def test_an_interrupted_reply_leaves_the_terminal_as_it_was():
    terminal = Terminal()
    printer = ReplyPrinter(terminal, terminal)
    printer.update(response("Hmm", True, 1))
    printer.end()
    terminal.write("$ ")
    assert terminal.lines[:3] == ["Hmm", "$", ""]
    assert terminal.raw.count("\x1b[0m") >= 1


def test_the_meter_line():
    assert meter_line(5, 20) == "Thinking: 5 of 20 tokens [######------------------]"
    assert "[" + "#" * 24 + "]" in meter_line(25, 20)
    assert meter_line(5, None) == "Thinking: 5 tokens"
    assert meter_line(5, 0) == "Thinking: 5 tokens"
