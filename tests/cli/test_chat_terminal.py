"""The command `chat` in a terminal: what is typed and shown, interrupts, a file."""

import re
import stat

import pytest

from chat_terminal import FIRST, SECOND, Terminal, copy_demo, first_reply
from mlx_budget import load
from mlx_budget.engine.prompts import encode_chat


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """The built-in model, but no token ends its replies."""
    return copy_demo(
        tmp_path_factory.mktemp("models") / "endless",
        config={"eos_token_id": 0},
        tokenizer_config={"eos_token": "<|endoftext|>"},
    )


def test_a_chat_in_a_terminal(tmp_path):
    with Terminal(folder=tmp_path) as terminal:
        terminal.until("/quit ends it")
        for question, budget in ((FIRST, 60), (SECOND, 20)):
            terminal.until(">> ")
            terminal.type(f"/budg\t{budget}\r")
            terminal.until(f"Thinking budget: {budget} tokens.*\n(.*\n)*?.*>> ")
            terminal.type(f"{question}\r")
            reply = terminal.until(
                rf"Thinking: \d+ of {budget} tokens, closed by the .*\n"
            )
            assert "\x1b[2m" in reply
            said = reply.split("\x1b[0m")[-1]
            assert "The answer is " in said or "My guess is " in said
            terminal.until("tokens-per-sec")
        # Pasted lines are one question, whatever is in them.
        terminal.until(">> ")
        terminal.type("/budget 0\r")
        terminal.until(r"Thinking budget: 0 tokens(.*\n)*?.*>> ")
        pasted = "\x1b[200~What is\r/quit\rq\r6 - 2?\x1b[201~\r"
        terminal.type(pasted)
        # While a reply comes as well.
        terminal.until("I can only|My guess")
        terminal.type(pasted)
        for _ in range(2):
            terminal.until(r"Answer: \d+ tokens(.*\n)*?.*>> ")
        terminal.type("/save chats.json\r")
        terminal.until(r"Saved in chats.json: 4 turns\.(.*\n)*?.*>> ")
        terminal.type("/load ch\t\r")
        terminal.until(r"Loaded chats.json: 4 turns\.(.*\n)*?.*>> ")
        terminal.type("/quit\r")
        assert terminal.exit_code() == 0
        screen = terminal.screen()
        assert any(line.startswith(".. /quit") for line in screen)
        (history,) = terminal.cache.rglob("chat_history")
        assert stat.S_IMODE(history.stat().st_mode) == 0o600
        assert FIRST in history.read_text()


def test_interrupts_end_replies_and_at_the_empty_prompt_the_chat(endless):
    with Terminal("--model", endless, "--thinking-budget", 20) as terminal:
        for question in (FIRST, SECOND):
            terminal.until(">> ")
            terminal.type(f"{question}\n")
            terminal.until("The answer is")
            terminal.type("\x03")
            terminal.until("Interrupted: the answer so far is kept.")
            found = terminal.until(r"prompt: \d+ tokens, \d+ of them new")
        whole, new = map(int, re.findall(r"prompt: (\d+) tokens, (\d+)", found)[0])
        tokenizer = load("demo")[1]
        kept = {"role": "assistant", "content": "The answer is"}
        first, second = ({"role": "user", "content": x} for x in (FIRST, SECOND))
        assert whole >= len(encode_chat(tokenizer, [first, kept, second]))
        assert new < whole
        # A half-typed word is cleared and counts for nothing.
        terminal.until(">> ")
        terminal.type("\x03")
        terminal.until(r"Ctrl-C once more ends the chat.(.*\n)*?.*>> ")
        terminal.type("half a wo\x03\x03")
        terminal.until(r"Ctrl-C once more ends the chat.(.*\n)*?.*>> ")
        terminal.type("/stats\r")
        terminal.until(r"Statistics: on(.*\n)*?.*>> ")
        terminal.type("\x03")
        terminal.until(r"Ctrl-C once more ends the chat.(.*\n)*?.*>> ")
        terminal.type("\x03")
        assert terminal.exit_code() == 0


def test_an_interrupt_while_it_thinks_forgets_the_turn(endless):
    # A marker that the model never writes leaves time to interrupt its thinking.
    args = "--model", endless, "--thinking-end-token", "@@@@"
    with Terminal(*args, term="dumb") as terminal:
        for _ in range(2):
            terminal.until(">> ")
            terminal.type(f"{FIRST}\n")
            terminal.until(r"Thinking: \d\d tokens")
            terminal.type("\x03")
            terminal.until("Interrupted: this turn is forgotten.")
            terminal.until(r"Thinking: \d+ tokens, interrupted")
            terminal.until("Answer: 0 tokens; prompt: 22 tokens")
        terminal.until(">> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
        assert not list(terminal.cache.iterdir())


def test_replies_may_go_to_a_file(tmp_path):
    with (tmp_path / "replies").open("wb") as file:
        args = "--thinking-budget", 60, "--no-history"
        with Terminal(*args, stdout=file) as terminal:
            terminal.until(">> ")
            terminal.type(f"{FIRST}\n")
            terminal.until("tokens-per-sec(.*\n)*?.*>> ")
            terminal.type("\x04")
            assert terminal.exit_code() == 0
            assert not list(terminal.cache.iterdir())
    assert (tmp_path / "replies").read_text() == first_reply() + "\n"
