"""/save and /load: a chat in a file, and going on from it.

Knows what a user names and is told; nothing of the format.
"""

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import demo
from ..engine.conversation import Conversation
from ..engine.fields import keywords_of
from ..engine.saved_chat import SavedChat, read_chat, write_chat
from ..engine.settings import Budget, ModelSource, Sampling, ThinkingBudget

# Settings of a chat for which nothing was asked.
_USUAL: dict[str, Any] = {
    **keywords_of(ThinkingBudget(answer_anyway=True)),
    **keywords_of(Sampling()),
    "chat_template_config": {},
    "max_tokens": None,
}
del _USUAL["thinking_budget"]


class ChatFiles:
    """Saves a conversation and goes on with saved ones.

    A file is only written over if it is the one that this chat was saved to, or came
    from, the last time.

    Args:
        conversation (Conversation): The chat.
        source (ModelSource): Its model.
        given (Collection): Keywords of the options that the user gave for this chat,
            which what was saved does not change.
    """

    def __init__(
        self,
        conversation: Conversation,
        source: ModelSource,
        given: Collection[str] = (),
    ):
        self._conversation = conversation
        self._source = _shown_source(source)
        self._given = given
        self._file: Path | None = None

    def forget(self) -> None:
        """Lets go of the file: what comes now is another chat."""
        self._file = None

    def save(self, name: str, budget: Budget) -> str:
        """Saves the chat with the budget of its next turn.

        Args:
            name (str): The file; empty for that of the last time.
            budget (Budget): The budget.

        Returns:
            str: A line that says what was saved.

        Raises:
            ValueError: If there is no such name, the file is another one's or it cannot
                be written.
        """
        file = _path(name) if name else self._file
        if file is None:
            raise ValueError("/save needs the name of a file: /save FILE.")
        if os.path.lexists(file) and not _is_same(file, self._file):
            what = "a folder" if file.is_dir() else "there already, and not this chat"
            raise ValueError(
                f"{file} is {what}: name another file, or remove it first."
            )
        chat = self._conversation
        write_chat(
            file,
            SavedChat(
                turns=chat.turns,
                source=self._source,
                budget=budget,
                asked=chat.asked,
                system_prompt=chat.system_prompt,
                settings=_unusual(chat.options),
            ),
        )
        self._file = file
        return f"Saved in {file}: {_turns(len(chat.turns))}."

    def load(self, name: str, budget: Budget) -> tuple[Budget, str]:
        """Goes on with a saved chat in place of this one.

        Args:
            name (str): The file.
            budget (Budget): The budget of this chat.

        Returns:
            tuple: The budget of the next turn, and a line that says what was loaded.

        Raises:
            ValueError: If it cannot be loaded. The chat stays as it was.
        """
        if not name:
            raise ValueError("/load needs the name of a file: /load FILE.")
        file, chat = _path(name), self._conversation
        saved = read_chat(file)
        is_same = saved.source["model"] == self._source["model"]
        now = chat.options
        kept = {key: now[key] for key in self._given if key in now}
        prompt = saved.system_prompt
        if "system_prompt" in self._given:
            prompt = chat.system_prompt
        if "thinking_budget" not in self._given:
            budget = saved.budget
        turns = saved.turns if is_same else [t.without_text() for t in saved.turns]
        try:
            _check_kinds(saved.settings)
            budget = chat.check_budget(budget)
            chat.go_on_from(turns, saved.asked, prompt, _USUAL | saved.settings | kept)
        except (TypeError, ValueError) as e:
            raise ValueError(f"This chat cannot go on from {file}: {e}") from None
        self._file = file
        told = f"Loaded {file}: {_turns(len(saved.turns))}."
        if not is_same:
            told += f" It was a chat with {saved.source['model']}."
        return budget, told


def saved_source(name: str, source: ModelSource, given: Collection[str]) -> ModelSource:
    """Where the model comes from with which a saved chat goes on.

    Args:
        name (str): The file.
        source (ModelSource): What the options say.
        given (Collection): Keywords of those that the user gave. With a model among
            them nothing is taken from the file.

    Raises:
        ValueError: If the file cannot be read.
    """
    saved = read_chat(_path(name)).source
    if "model" in given:
        return source
    return replace(source, **{k: v for k, v in saved.items() if k not in given})


def _path(name: str) -> Path:
    """The path that a user typed, in quotes or not."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    if "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file.")
    return Path(os.path.expanduser(name))


def _is_same(file: Path, other: Path | None) -> bool:
    try:
        return other is not None and os.path.samefile(file, other)
    except OSError:
        return False


def _shown_source(source: ModelSource) -> dict[str, Any]:
    """The model and what comes with it, so that it is found from other folders too."""
    named = {
        "model": source.model,
        "predictor": source.predictor,
        "adapter_path": source.adapter_path,
        "revision": source.revision,
    }
    return {key: _absolute(value) for key, value in named.items() if value is not None}


def _absolute(name: Any) -> Any:
    """The full path of a folder; any other name, and False, as it is."""
    if not isinstance(name, str | os.PathLike) or name == demo.NAME:
        return name
    path = os.path.expanduser(name)
    return os.path.realpath(path) if os.path.isdir(path) else str(name)


def _unusual(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value != _USUAL[key]}


def _check_kinds(settings: dict[str, Any]) -> None:
    """Checks what settings do not check themselves: that yes or no is one of them."""
    for key, value in settings.items():
        if isinstance(_USUAL.get(key), bool) and not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, not {value!r:.60}.")


def _turns(count: int) -> str:
    return f"{count} {'turn' if count == 1 else 'turns'}"
