"""The file of a chat: it holds what was said, and a damaged one is refused."""

import json
import os
import stat

import pytest

from mlx_budget.engine.saved_chat import SavedChat, read_chat, write_chat
from mlx_budget.engine.settings import check_budget
from mlx_budget.engine.turns import Turn

TURNS = [
    Turn(
        "Héllo\n\tyou 🤔",
        "Fine.\n",
        "hm\nhm",
        "<think>\nhm\nhm\n</think>\n\nFine.\n",
        9,
        5,
    ),
    Turn("And \x00 now?", "No.", closed_by="model"),
]
CHAT = SavedChat(
    turns=TURNS,
    source={"model": "owner/name", "predictor": False, "revision": "main"},
    budget=60,
    asked=3,
    system_prompt="Be terse.",
    settings={"temp": 0.5, "chat_template_config": {"deep": [1, None]}},
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "chat.json"


@pytest.mark.parametrize("budget", [None, 0, 60, "auto", "auto:0.63", "80-100", "low"])
def test_a_chat_comes_back_as_it_was(file, budget):
    chat = SavedChat(**{**vars(CHAT), "budget": check_budget(budget)})
    write_chat(file, chat)
    again = read_chat(file)
    assert again == chat
    assert str(again.budget) == str(chat.budget)


def test_the_file_is_private_and_tells_what_was_said(file):
    write_chat(file, CHAT)
    write_chat(file, CHAT)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    value = json.loads(file.read_text(encoding="utf-8"))
    assert (value["model"], value["thinking_budget"]) == ("owner/name", 60)
    assert value["messages"][:2] == [
        {"role": "user", "content": "Héllo\n\tyou 🤔"},
        {
            "role": "assistant",
            "content": "Fine.\n",
            "thinking": "hm\nhm",
            "text": "<think>\nhm\nhm\n</think>\n\nFine.\n",
            "thinking_budget": 9,
            "thinking_tokens": 5,
            "closed_by": None,
        },
    ]
    assert "Héllo" in file.read_text(encoding="utf-8")


def test_a_link_stays_a_link(tmp_path, file):
    (tmp_path / "link").symlink_to(file)
    write_chat(tmp_path / "link", CHAT)
    assert (tmp_path / "link").is_symlink() and read_chat(file) == CHAT


def test_a_write_that_fails_leaves_the_old_file(file, monkeypatch):
    write_chat(file, CHAT)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ValueError, match="No space left.*save the chat elsewhere"):
        write_chat(file, SavedChat([], {"model": "x"}))
    assert read_chat(file) == CHAT
    assert os.listdir(file.parent) == [file.name]
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        write_chat(file.parent / "nope" / "x", CHAT)


def test_what_a_person_changed_counts(file):
    write_chat(file, CHAT)
    file.write_text(file.read_text().replace('"content": "Fine.', '"content": "Bad.'))
    first, second = read_chat(file).turns
    assert (first.answer, first.text) == ("Bad.\n", None)
    assert second == TURNS[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not UTF-8 text"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", 'does not say "format"'),
        (b'{"messages": []}', 'does not say "format"'),
    ],
)
def test_what_is_no_chat_is_refused(file, data, message):
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as e:
        read_chat(file)
    assert str(file) in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"format_version": True}, "format version True"),
        ({"model": None}, "no model"),
        ({"predictor": True}, "true for its predictor"),
        ({"adapter_path": 3}, "no adapter_path"),
        ({"thinking_budget": "much"}, "thinking_budget must be"),
        ({"thinking_budget": -5}, "thinking_budget must be"),
        ({"thinking_budget": True}, "no thinking_budget"),
        ({"turns_asked": -1}, "below 0"),
        ({"turns_asked": 1.5}, "no turns_asked"),
        ({"settings": []}, "no settings"),
        ({"settings": {"thinking_budget": 5}}, "among its settings"),
        ({"system_prompt": "\ud800"}, "half of a character"),
        ({"messages": "hello"}, "no messages"),
        ({"messages": ["hello"]}, "message 1 .* not of the role user"),
        ({"messages": [{"role": "system", "content": "x"}]}, "message 1"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no reply"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "message 2"),
        ({"reply": {"content": " "}}, "without a text"),
        ({"reply": {"content": ["x"]}}, "no content"),
        ({"reply": {"thinking": 5}}, "no thinking"),
        ({"reply": {"thinking_tokens": "5"}}, "no thinking_tokens"),
        ({"reply": {"text": "\udc00"}}, "half of a character"),
    ],
)
def test_a_damaged_chat_is_refused_by_what_is_wrong(file, changes, message):
    write_chat(file, CHAT)
    value = json.loads(file.read_text())
    value["messages"][1] |= changes.pop("reply", {})
    file.write_text(json.dumps(value | changes))
    with pytest.raises(ValueError, match=message) as e:
        read_chat(file)
    assert str(e.value).startswith(f"{file} is no chat that can be loaded: ")
    assert not str(e.value).endswith("..")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        read_chat(tmp_path / "nope")
    with pytest.raises(ValueError, match="is not a file"):
        read_chat(tmp_path)
    with (tmp_path / "huge").open("wb") as f:
        f.truncate(65 << 20)
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_chat(tmp_path / "huge")
