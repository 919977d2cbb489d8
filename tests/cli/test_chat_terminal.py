"""The command `chat` in a terminal: budgets, interrupts, where the output goes."""

import re

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


def test_two_turns_in_a_terminal_with_a_budget_each():
    with Terminal() as terminal:
        terminal.until("/quit ends it")
        for question, budget in ((FIRST, 60), (SECOND, 20)):
            terminal.until(">> ")
            terminal.type(f"/budget {budget}\n")
            terminal.until(f"Thinking budget: {budget} tokens.*\n(.*\n)*?.*>> ")
            terminal.type(f"{question}\n")
            reply = terminal.until(
                rf"Thinking: \d+ of {budget} tokens, closed by the .*\n"
            )
            assert "\x1b[2m" in reply
            assert "The answer is " in reply.split("\x1b[0m")[-1]
            terminal.until("tokens-per-sec")
        terminal.until(">> ")
        terminal.type("/quit\n")
        assert terminal.exit_code() == 0


def test_an_interrupt_while_it_thinks_forgets_the_turn(endless):
    # A marker that the model never writes leaves time to interrupt its thinking.
    with Terminal("--model", endless, "--thinking-end-token", "@@@@") as terminal:
        for _ in range(2):
            terminal.until(">> ")
            terminal.type(f"{FIRST}\n")
            terminal.until(r"Thinking: \d\d tokens")
            terminal.type("\x03")
            terminal.until("Interrupted: this turn is forgotten.")
            terminal.until(r"Thinking: \d+ tokens, interrupted")
            terminal.until("Answer: 0 tokens; prompt: 22 tokens")
        terminal.until(">> ")
        terminal.type("/quit\n")
        assert terminal.exit_code() == 0


def test_an_interrupted_answer_is_kept(endless):
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
        terminal.until(">> ")
        terminal.type("/quit\n")
        assert terminal.exit_code() == 0


def test_interrupts_at_the_prompt(endless):
    with Terminal("--model", endless) as terminal:
        terminal.until(">> ")
        terminal.type("What is")
        terminal.interrupt()
        terminal.until("Ctrl-C once more ends the chat.(.*\n)*?.*>> ")
        terminal.type("/stats\n")
        terminal.until("Statistics: on(.*\n)*?.*>> ")
        terminal.interrupt()
        terminal.until("Ctrl-C once more ends the chat.(.*\n)*?.*>> ")
        terminal.interrupt()
        assert terminal.exit_code() == 0


def test_ctrl_d_ends_the_chat(endless):
    with Terminal("--model", endless) as terminal:
        terminal.until(">> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_replies_may_go_to_a_file(tmp_path):
    with (tmp_path / "replies").open("wb") as file:
        with Terminal("--thinking-budget", 60, stdout=file) as terminal:
            terminal.until(">> ")
            terminal.type(f"{FIRST}\n")
            terminal.until("tokens-per-sec(.*\n)*?.*>> ")
            terminal.type("\x04")
            assert terminal.exit_code() == 0
    assert (tmp_path / "replies").read_text() == first_reply() + "\n"
