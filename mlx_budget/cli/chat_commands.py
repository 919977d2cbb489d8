"""The commands of a chat: their names, what they take and how Tab completes them.

Knows words and paths; nothing of what a command does.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..engine.budgets import EFFORTS

LETTERS = {"q": "/quit", "r": "/reset", "h": "/help"}


@dataclass(frozen=True)
class Command:
    """A command as help and completion show it.

    Attributes:
        does: What it does, in a few words.
        words: Arguments that Tab completes.
        takes_file: Whether its argument is the name of a file.
    """

    does: str
    words: tuple[str, ...] = ()
    takes_file: bool = False


COMMANDS = {
    "/budget": Command("how long to think", (*EFFORTS, "50%", "auto", "off")),
    "/thinking": Command("show or hide the thinking", ("show", "hide")),
    "/stats": Command("statistics after each reply", ("on", "off")),
    "/system": Command("the system prompt", ("off",)),
    "/save": Command("write the chat to a file", takes_file=True),
    "/load": Command("go on with a saved chat", takes_file=True),
    "/reset": Command("forget the history"),
    "/help": Command("list the commands"),
    "/quit": Command("end the chat"),
}

HELP = """\
/budget N          think for N tokens at most; 0 answers at once
/budget 80-100     for 80 to 100 tokens
/budget low        for little; minimal, medium, high and xhigh for less or more
/budget 50%        for half of what the predictor expects of each question
/budget auto       for all of it; auto:0.63 for 63 % of it
/budget off        without a budget
/thinking show     show the thinking; /thinking hide leaves it out
/stats on          statistics after each reply; /stats off leaves them out
/system TEXT       set the system prompt; /system off leaves it out
/save FILE         write the chat to a file; without FILE to that of the last time
/load FILE         go on with a saved chat
/reset or r        forget the history
/help or h         show this list
/quit or q         end the chat, as Ctrl-D does
Alone, /budget, /thinking, /stats and /system tell how they are set. A message that
begins with a slash, or is one of those letters, needs a space before it.
Enter sends a message; Alt-Enter, or Esc and then Enter, begins a new line in it. Pasted
lines are one message. Tab completes commands and names of files. Ctrl-C ends a reply:
what came of its answer stays in the history, and a turn without an answer is forgotten,
its question too. At the prompt Ctrl-C clears what is typed; at an empty one, pressed
twice, it ends the chat."""


@dataclass(frozen=True)
class Completion:
    """What Tab may put at the cursor.

    Attributes:
        text: What comes in place of the characters before the cursor.
        replaced: How many of those.
        shown: How the list of completions names it.
        does: What it is, in a few words.
    """

    text: str
    replaced: int
    shown: str
    does: str = ""


def completions(text: str) -> Iterator[Completion]:
    """What can follow a text that begins a command; nothing follows any other.

    Args:
        text (str): What is before the cursor.
    """
    name, space, argument = text.partition(" ")
    if not space:
        if not text.startswith("/"):
            return
        for command, its in COMMANDS.items():
            if command.startswith(text):
                space = " " if its.words or its.takes_file else ""
                yield Completion(command + space, len(text), command, its.does)
    elif (found := COMMANDS.get(name)) is not None:
        argument = argument.lstrip()
        for word in found.words:
            if word.startswith(argument):
                yield Completion(word, len(argument), word)
        if found.takes_file and "\n" not in argument:
            yield from _files(argument)


def _files(beginning: str) -> Iterator[Completion]:
    """Files and folders whose paths begin so; hidden ones only if a dot is typed."""
    folder, name = os.path.split(beginning)
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            found = sorted(
                entry.name + ("/" if entry.is_dir() else "") for entry in entries
            )
    except (OSError, ValueError):  # not there, not to be read, or no path at all
        return
    for entry in found:
        is_hidden = entry.startswith(".") and not name.startswith(".")
        if entry.startswith(name) and not is_hidden and entry.isprintable():
            yield Completion(entry, len(name), entry)
