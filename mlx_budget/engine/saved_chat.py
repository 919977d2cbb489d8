"""A chat as a file: its turns with their thinking, its budget, model and settings.

Knows the format and what may be in it; nothing of models or of who asks for it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import appearing_file, full_disk_in_one_line
from .context import check_unicode
from .settings import Budget, check_budget
from .turns import Turn

FORMAT = "mlx-budget chat"
VERSION = 1
# A chat that fills a context of a million tokens is some megabytes of text.
MOST_BYTES = 64 << 20

# Fields of a turn that stand in the message of the reply, and their types there.
_OF_REPLY: dict[str, tuple[type, ...]] = {
    "thinking": (str,),
    "text": (str, type(None)),
    "thinking_budget": (int, type(None)),
    "thinking_tokens": (int, type(None)),
    "closed_by": (str, type(None)),
}


@dataclass(frozen=True)
class SavedChat:
    """What a file of a chat holds.

    Attributes:
        turns: The history.
        source: Where the model comes from: "model", and "predictor", "adapter_path" and
            "revision" where they were given.
        budget: The thinking budget of the next turn.
        asked: Turns that were asked for, forgotten ones too.
        system_prompt: Put before the history, if any.
        settings: Options of the replies, by keyword, that are not as usual.
    """

    turns: list[Turn]
    source: dict[str, Any]
    budget: Budget = None
    asked: int = 0
    system_prompt: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def write_chat(path: Path, chat: SavedChat) -> None:
    """Writes a chat, whole or not at all, for the user's eyes alone.

    Raises:
        ValueError: If it cannot be written, saying why.
    """
    budget = chat.budget
    value = {
        "format": FORMAT,
        "format_version": VERSION,
        **chat.source,
        "thinking_budget": budget if isinstance(budget, int | None) else str(budget),
        "system_prompt": chat.system_prompt,
        "settings": chat.settings,
        "turns_asked": chat.asked,
        "messages": [message for turn in chat.turns for message in _messages(turn)],
    }
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A link stays one, and what it leads to is written.
    path = Path(os.path.realpath(path))
    try:
        with (
            full_disk_in_one_line(path, "or save the chat elsewhere"),
            appearing_file(path, is_private=True) as f,
        ):
            f.write(text.encode("utf-8"))
    except OSError as e:
        raise ValueError(f"{path} cannot be written: {e.strerror}.") from None


def read_chat(path: Path) -> SavedChat:
    """Reads what `write_chat` wrote.

    Raises:
        ValueError: If it is not there or cannot be read, or is damaged or no such file,
            saying what is wrong.
    """
    try:
        if not path.is_file():
            kind = "is not a file" if path.exists() else "is not there"
            raise ValueError(f"{path} {kind}.")
        with path.open("rb") as f:
            data = f.read(MOST_BYTES + 1)
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}.") from None
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
        return _chat_of(_parsed(data))
    except ValueError as e:
        text = str(e).removesuffix(".")
        raise ValueError(f"{path} is no chat that can be loaded: {text}.") from None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as e:
        where = f" ({e})" if isinstance(e, json.JSONDecodeError) else ""
        raise ValueError(f"it is not valid JSON{where}") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f'it does not say "format": "{FORMAT}", as those of /save do')
    version = value.get("format_version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(
            f"it has the format version {version!r:.60}, and this mlx-budget knows "
            f"{VERSION}"
        )
    return value


def _chat_of(value: dict[str, Any]) -> SavedChat:
    source = {"model": _take(value, "model", str)}
    for name, kinds in (
        ("predictor", (str, bool)),
        ("adapter_path", (str,)),
        ("revision", (str,)),
    ):
        if (given := _take(value, name, *kinds, type(None))) is not None:
            source[name] = given
    if source.get("predictor") is True:
        raise ValueError(
            "it has true for its predictor, which is a name, false or null"
        )
    settings = _take(value, "settings", dict)
    if "thinking_budget" in settings or "system_prompt" in settings:
        raise ValueError("it has its budget or system prompt among its settings")
    asked = _take(value, "turns_asked", int)
    if asked < 0:
        raise ValueError(f"it has turns_asked {asked}, which is below 0")
    turns = _turns(_take(value, "messages", list))
    return SavedChat(
        turns=turns,
        source=source,
        budget=check_budget(_take(value, "thinking_budget", int, str, type(None))),
        asked=max(asked, len(turns)),
        system_prompt=_text(value, "system_prompt", str, type(None)),
        settings=settings,
    )


def _messages(turn: Turn) -> list[dict[str, Any]]:
    known = {name: getattr(turn, name) for name in _OF_REPLY}
    return [
        {"role": "user", "content": turn.question},
        {"role": "assistant", "content": turn.answer, **known},
    ]


def _turns(messages: list[Any]) -> list[Turn]:
    for number, message in enumerate(messages, 1):
        role = "user" if number % 2 else "assistant"
        if not isinstance(message, dict) or message.get("role") != role:
            raise ValueError(
                f"it has a message {number} that is not of the role {role}: questions "
                "and replies take turns"
            )
    if len(messages) % 2:
        raise ValueError("it ends with a question that has no reply")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return [_turn(question, reply) for question, reply in pairs]


def _turn(question: dict[str, Any], reply: dict[str, Any]) -> Turn:
    texts = [_text(message, "content", str) for message in (question, reply)]
    if not all(text.strip() for text in texts):
        raise ValueError("it has a message without a text")
    known = {
        name: _text(reply, name, *kinds)
        for name, kinds in _OF_REPLY.items()
        if name in reply
    }
    turn = Turn(*texts, **known)
    lines = f"{turn.thinking}\n{turn.answer}".splitlines()
    if turn.text is None or all(line in turn.text for line in lines):
        return turn
    # A person has changed the file: that is no longer what the model wrote.
    return turn.without_text()


def _take(value: dict[str, Any], name: str, *kinds: type) -> Any:
    found = value.get(name)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise ValueError(f"it has no {name} that can be read, but {found!r:.60}")
    return found


def _text(value: dict[str, Any], name: str, *kinds: type) -> Any:
    found = _take(value, name, *kinds)
    if isinstance(found, str):
        check_unicode(found, name)
    return found
