"""/save and /load of the command `chat`, through a pipe."""

import json
import re

import pytest
from click.testing import CliRunner

from chat_terminal import FIRST, SECOND, copy_demo
from mlx_budget import demo
from mlx_budget.cli import cli

FORMER = ["--temp", 0.8, "--seed", 3, "--thinking-budget", 9, "--no-hard-stop"]


def chat(*lines, args=(), exit_code=0):
    """Runs the command on some lines of standard input, as through a pipe."""
    text = "".join(f"{x}\n" for x in lines)
    result = CliRunner().invoke(cli, ["chat", *map(str, args)], input=text)
    assert result.exit_code == exit_code, result.stderr
    return result


def said(result) -> list[str]:
    """What it says on standard error, statistics and the notice left out."""
    lines = result.stderr.splitlines()
    told = [x for x in lines if not re.match(r"Answer: |Thinking: \d", x)]
    return [x for x in told if x != demo.NOTICE]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of a chat, and what that chat was answered from its second turn on."""
    file = tmp_path_factory.mktemp("chats") / "a chat.json"
    lines = [FIRST, f"/save {file}", SECOND, f"/save  '{file}' "]
    result = chat(*lines, "/quit", args=FORMER)
    assert said(result) == [f"Saved in {file}: {n}." for n in ("1 turn", "2 turns")]
    whole = chat(FIRST, SECOND, FIRST, args=FORMER).stdout
    return file, whole.removeprefix(result.stdout)


def test_a_saved_chat_goes_on_as_if_it_had_never_ended(saved):
    file, rest = saved
    for args, lines in (
        (["--load", file], [FIRST]),
        (["--temp", 0, "--load", file, "--temp", 0.8], [FIRST]),
        ([], ["/budget 0", SECOND, f"/load {file}", FIRST]),
    ):
        result = chat(*lines, "/budget", args=args)
        assert result.stdout.endswith(rest), args
        told = f"Loaded {file}: 2 turns. Thinking budget: 9 tokens"
        assert said(result)[-2:] == [told, "Thinking budget: 9 tokens"], args
    assert json.loads(file.read_text())["settings"] == {
        "temp": 0.8,
        "seed": 3,
        "hard_stop": None,
    }


def test_what_the_options_say_stays(saved):
    file, rest = saved
    args = ["--load", file, "--thinking-budget", "low", "--system-prompt", "Hi."]
    lines = said(chat("/budget", "/system", args=args))
    assert lines[1:] == ["Thinking budget: low", "System prompt: Hi."]
    assert not chat(FIRST, args=["--load", file, "--seed", 4]).stdout.endswith(rest)


def test_a_chat_with_another_model_goes_on_with_this_one(saved, tmp_path):
    file, _ = saved
    folder = copy_demo(tmp_path / "other")
    name = file.parent / "other.json"
    again = ["/load", f"/load {file}", FIRST, f"/save {name}"]
    lines = said(chat(*again, args=["--model", folder, "-m", 3]))
    assert lines[0] == "Error: /load needs the name of a file: /load FILE."
    assert "2 turns. It was a chat with demo. Thinking budget: 9" in lines[1]
    assert json.loads(name.read_text())["model"] == str(folder)
    # The model is the saved one unless it is named.
    assert "chat with" not in said(chat(args=["--load", name]))[0]
    assert f"chat with {folder}" in said(chat(f"/load {name}"))[0]


def test_nothing_else_is_written_over(tmp_path, saved):
    other, mine = tmp_path / "other", tmp_path / "mine.json"
    other.write_text("mine")
    lines = said(
        chat(
            "/save",
            f"/save {other}",
            f"/save {tmp_path}",
            f"/save {tmp_path}/nope/x",
            "/save \0",
            f"/save {mine}",
            "/save",
            "/reset",
            "/save",
            f"/save {mine}",
            f"/load {mine}",
            f"/save {mine}",
        )
    )
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 7 and len(lines) == 12
    assert (
        errors[0] == errors[5] == "Error: /save needs the name of a file: /save FILE."
    )
    assert "other is there already, and not this chat: name another" in errors[1]
    assert "is a folder: name another file" in errors[2]
    assert "cannot be written: No such file" in errors[3]
    assert "is not the name of a file" in errors[4]
    assert "mine.json is there already" in errors[6]
    assert other.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "other"]


def test_a_file_that_cannot_be_loaded_is_one_line_and_changes_nothing(tmp_path, saved):
    value = json.loads(saved[0].read_text())
    files = {
        "no chat": [],
        "no option 'nope'": value | {"settings": {"nope": 1}},
        "answer_anyway must be true or false": value
        | {"settings": {"answer_anyway": "yes"}},
        "seed must be": value | {"settings": {"seed": []}},
        "xtc_special_tokens must be": value | {"settings": {"xtc_special_tokens": 5}},
    }
    lines = ["/budget 7", "/system S"]
    for n, content in enumerate(files.values()):
        (tmp_path / f"{n}").write_text(json.dumps(content))
        lines.append(f"/load {tmp_path}/{n}")
    told = said(
        chat(*lines, f"/load {tmp_path}/nope", "/load \0", "/budget", "/system")
    )
    for message, line in zip(
        [*files, "is not there", "not the name"], told[2:-2], strict=True
    ):
        assert line.startswith("Error: ") and message in line
    assert told[-2:] == ["Thinking budget: 7 tokens", "System prompt: S"]
    result = chat(args=["--load", tmp_path / "0"], exit_code=2)
    assert said(result)[-1].startswith(f"Error: {tmp_path}/0 is no chat")
    assert "is not there" in chat(args=["--load", tmp_path / "no"], exit_code=2).stderr
