"""What is typed at the prompt of a chat: keys, pasted lines, completion, history."""

import os
import stat

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from mlx_budget.cli import chat_history
from mlx_budget.cli.chat_commands import COMMANDS, HELP, LETTERS, completions
from mlx_budget.cli.chat_history import PrivateHistory
from mlx_budget.cli.chat_prompt import TerminalPrompt

PASTE = "\x1b[200~{}\x1b[201~".format


def read(*keys: str, history=None):
    """What a prompt reads at last when these keys are pressed, and the prompt.

    Args:
        keys: One text for each message.
        history: Of the prompt.
    """
    with create_pipe_input() as keyboard:
        prompt = TerminalPrompt(history, keyboard, DummyOutput())
        for text in keys:
            keyboard.send_text(text)
            message = prompt.read()
    return message, prompt


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("What is 2 + 2?\r", "What is 2 + 2?"),
        ("typed while a reply came\n", "typed while a reply came"),
        (PASTE("one\ntwo\r\nthree") + "\r", "one\ntwo\nthree"),
        (
            "Why?\x1b\r" + PASTE("x = 1\n\n    y = 2\n") + "\r",
            "Why?\nx = 1\n\n    y = 2\n",
        ),
        (PASTE("/budget 5\nq\n\x03") + "\r", "/budget 5\nq\n\x03"),
        ("first\x1b\rsecond\r", "first\nsecond"),
        ("\r", ""),
    ],
)
def test_enter_sends_what_is_typed_or_pasted(keys, message):
    assert read(keys)[0] == message


def test_ctrl_c_clears_what_is_typed_and_ctrl_d_ends():
    assert read("half a wo\x03the whole\r")[0] == "the whole"
    assert read(PASTE("a\nb") + "\x03\x04")[0] is None
    message, prompt = read("\x04")
    assert message is None and not prompt.was_touched


def test_ctrl_c_at_an_empty_prompt_is_an_interrupt_that_says_if_something_was_typed():
    for keys, was_touched in (
        ("\x03", False),
        ("wo\x03\x03", True),
        ("w\x7f\x03", True),
    ):
        with create_pipe_input() as keyboard:
            keyboard.send_text(keys)
            prompt = TerminalPrompt(None, keyboard, DummyOutput())
            with pytest.raises(KeyboardInterrupt):
                prompt.read()
            assert prompt.was_touched == was_touched


def test_what_is_no_text_is_refused_and_the_next_message_taken():
    with create_pipe_input() as keyboard:
        keyboard.send_bytes(b"\xff\xfe\r/budget\r")
        prompt = TerminalPrompt(InMemoryHistory(), keyboard, DummyOutput())
        with pytest.raises(ValueError, match="not UTF-8 text"):
            prompt.read()
        assert prompt.read() == "/budget"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("/bu\t50%", "/budget 50%"),
        ("/q\t", "/quit"),
        ("/budget me\t", "/budget medium"),
        ("/thinking h\t", "/thinking hide"),
        ("no command /bu\t", "no command /bu"),
        ("/nope \t", "/nope "),
    ],
)
def test_tab_completes_commands_and_what_they_take(keys, line):
    assert read(f"{keys}\r")[0] == line


def texts(beginning: str) -> list[str]:
    return [found.text for found in completions(beginning)]


def test_every_command_and_argument_is_offered_and_helped_with():
    assert [x.strip() for x in texts("/")] == list(COMMANDS)
    for name, command in COMMANDS.items():
        assert f"\n{name} " in f"\n{HELP}"
        assert texts(f"{name} ")[: len(command.words)] == list(command.words)
    assert set(LETTERS.values()) <= set(COMMANDS)


def test_names_of_files_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "my chats"))
    (tmp_path / "my chats").mkdir()
    (tmp_path / "my chats" / "sums of today.json").touch()
    (tmp_path / ".hidden").touch()
    for command in ("/save", "/load"):
        assert texts(f"{command} ") == ["my chats/"]
        assert texts(f"{command} .") == [".hidden"]
        assert texts(f"{command} my chats/su") == ["sums of today.json"]
        assert texts(f"{command} ~/") == ["sums of today.json"]
    for other in ("/load nope/", "/load \0", "/system ", "/budget my"):
        assert "my chats/" not in texts(other)


def test_the_history_is_private_and_goes_on_in_the_next_chat(tmp_path):
    file = tmp_path / "cache" / "history"
    read("first\r", PASTE("a\nb") + "\r", history=PrivateHistory(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    up = "\x1b[A"
    assert read(f"{up}\r", history=PrivateHistory(file))[0] == "a\nb"
    assert read(f"{up * 3}\r", history=PrivateHistory(file))[0] == "first"


def test_a_history_that_cannot_be_kept_is_no_error(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "damaged").write_bytes(b"+\xff\xfe\0\n\n+x")
    for file in (folder, folder / "file" / "x", tmp_path / "damaged"):
        (folder / "file").touch()
        assert read("said\r", "\x1b[A\r", history=PrivateHistory(file))[0] == "said"


def test_a_history_is_cut_when_it_has_grown(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_history, "MOST_BYTES_IN_FILE", 1000)
    monkeypatch.setattr(chat_history, "MOST_BYTES", 200)
    history = PrivateHistory(tmp_path / "history")
    for n in range(40):
        history.store_string(f"message {n}")
    history.store_string("x" * 300)
    latest = [f"message {n}" for n in reversed(range(40))]
    assert list(history.load_history_strings()) == latest
    kept = list(PrivateHistory(tmp_path / "history").load_history_strings())
    assert 5 < len(kept) < 20 and kept == latest[: len(kept)]
    assert os.stat(tmp_path / "history").st_size <= 500
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
