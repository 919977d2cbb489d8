"""Where the messages of a chat come from: a terminal, or lines of standard input.

Knows keys and streams; nothing of models or of what a message says.
"""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TextIO

import click

from .chat_commands import COMMANDS, completions

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

_SIGN, _SIGN_OF_LINE = ">> ", ".. "
_STYLE = "ansigreen"


class Prompt(Protocol):
    """What a chat reads messages from.

    Attributes:
        is_interactive: Whether a person types there.
        was_touched: Whether the last `read` was of a person who had typed something
            before what ended it.
    """

    is_interactive: bool
    was_touched: bool

    def read(self) -> str | None:
        """The next message, of one line or more, or None at the end of the input.

        Raises:
            KeyboardInterrupt: If the user pressed Ctrl-C, with nothing typed.
            ValueError: If it is not UTF-8 text.
        """

    def close(self) -> None:
        """Leaves the terminal as it was found."""


def open_prompt(has_history: bool = True) -> Prompt:
    """The prompt that suits standard input.

    Args:
        has_history (bool): Whether a terminal remembers what is typed.
    """
    stream = next((s for s in (sys.stdout, sys.stderr) if s and s.isatty()), None)
    if sys.stdin.isatty() and stream is not None and not _is_dumb():
        from .chat_history import PrivateHistory

        history = PrivateHistory() if has_history else None
        return TerminalPrompt(history, output=terminal_output(stream))
    return LinePrompt()


def terminal_output(stream: TextIO) -> "Output":
    """What draws on a terminal without asking it where the cursor is.

    Some terminals do not answer, and those far away answer late, in what is typed.
    """
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(stream, term=os.environ.get("TERM"))
    output.enable_cpr = False
    return output


class LinePrompt:
    """Lines of standard input as they come, be it a pipe, a file or a plain terminal.

    A terminal gets a sign to type at, on standard error.
    """

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty()
        self.was_touched = False

    def read(self) -> str | None:
        """The next line."""
        if self.is_interactive:
            click.echo(_SIGN, nl=False, err=True)
        read = sys.stdin.buffer.readline()
        return _checked(read.decode("utf-8", "surrogateescape")) if read else None

    def close(self) -> None:
        """Does nothing: it changes nothing in the terminal."""


class TerminalPrompt:
    """A line editor: several lines, pasted ones too, history and completion.

    Args:
        history (History, optional): What was typed before; nothing is kept without.
        input, output (optional): The terminal, if not that of standard input.
    """

    is_interactive = True

    def __init__(
        self,
        history: "History | None" = None,
        input: "Input | None" = None,
        output: "Output | None" = None,
    ):
        from prompt_toolkit import PromptSession

        self.was_touched = False
        self._session = PromptSession[str](
            [(_STYLE, _SIGN)],
            multiline=True,
            prompt_continuation=[(_STYLE, _SIGN_OF_LINE)],
            completer=_completer(),
            complete_while_typing=False,
            reserve_space_for_menu=len(COMMANDS) + 1,
            key_bindings=self._keys(),
            enable_suspend=True,
            include_default_pygments_style=False,
            history=history,
            input=input,
            output=output,
        )
        self._session.default_buffer.on_text_changed += self._touch

    def read(self) -> str | None:
        """The next message."""
        self.was_touched = False
        try:
            return _checked(self._session.prompt())
        except EOFError:
            return None
        finally:
            # Lines that are pasted while a reply comes are one message too.
            self._session.output.enable_bracketed_paste()
            self._session.output.flush()

    def close(self) -> None:
        """Has the terminal paste as usual again."""
        self._session.output.disable_bracketed_paste()
        self._session.output.flush()

    def _touch(self, _: object) -> None:
        self.was_touched = True

    def _keys(self) -> "KeyBindings":
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_completions, has_focus
        from prompt_toolkit.key_binding import KeyBindings

        keys, is_typing = KeyBindings(), has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=is_typing)
        def send(event: "KeyPressEvent") -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=is_typing)
        def begin_line(event: "KeyPressEvent") -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("tab", filter=is_typing & ~has_completions)
        def complete(event: "KeyPressEvent") -> None:
            _complete(event.current_buffer)

        @keys.add("c-c", filter=is_typing)
        @keys.add("<sigint>", filter=is_typing)
        def clear_or_leave(event: "KeyPressEvent") -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
                self._touch(event)
            else:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

        return keys


def _complete(buffer: "Buffer") -> None:
    """Puts in what all completions have in common, and lists them if they are many.

    This is done before the next key is looked at: who types fast gets the same.
    """
    found = list(completions(buffer.document.text_before_cursor))
    if not found:
        return
    common = os.path.commonprefix([c.text for c in found])
    buffer.insert_text(common[found[0].replaced :])
    if len(found) > 1:
        buffer.start_completion()


def _completer() -> "Completer":
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            for found in completions(document.text_before_cursor):
                yield Completion(
                    found.text,
                    -found.replaced,
                    display=found.shown,
                    display_meta=found.does,
                )

    return Commands()


def _is_dumb() -> bool:
    return os.environ.get("TERM", "dumb").lower() in ("", "dumb", "unknown")


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeError:
        raise ValueError("That line is not UTF-8 text.") from None
    return text
