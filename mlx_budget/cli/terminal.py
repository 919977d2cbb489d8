"""Shows a reply as it comes: thinking dimmed, the answer plain, a live meter.

Knows terminals and responses; nothing of models or of how tokens are chosen.
"""

import os
import shutil
import time
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from ..engine.generate import BudgetResponse


_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_SECONDS_BETWEEN_UPDATES = 0.1
_METER_WIDTH = 24


class ReplyPrinter:
    """Writes a reply's text to one stream and a meter of its thinking to another.

    The meter is drawn only where its stream is a terminal. Where the text goes to a
    terminal too, it takes the line below the text.
    """

    def __init__(self, out: TextIO, meter: TextIO, hide_thinking: bool = False):
        self._out = out
        self._meter = meter
        self._hide = hide_thinking
        self._colour = out.isatty() and not os.environ.get("NO_COLOR")
        self._below = out.isatty() and not hide_thinking
        self._shown = False
        self._next_update = 0.0
        self._column = 0
        self._dimmed = False
        self._answered = False

    def update(self, response: "BudgetResponse") -> None:
        """Takes the next response of the reply."""
        live = response.is_thinking and response.closed_by is None
        if not live:
            self._clear_meter()
        self._print(response)
        if live and self._meter.isatty():
            self._draw_meter(response)

    def end(self) -> None:
        """Leaves the terminal as it was, whatever was being shown."""
        self._clear_meter()
        self._set_dim(False)
        self._out.write("\n")
        self._out.flush()

    def _print(self, response: "BudgetResponse") -> None:
        text = response.text
        if self._hide:
            if response.is_thinking:
                return
            if not self._answered:
                text = text.lstrip()
                self._answered = bool(text)
        if not text:
            return
        self._clear_meter()
        self._set_dim(response.is_thinking)
        self._out.write(text)
        self._out.flush()
        self._column = _column_after(text, self._column, _columns())

    def _set_dim(self, dim: bool) -> None:
        if self._colour and dim != self._dimmed:
            self._out.write(_DIM if dim else _PLAIN)
            self._dimmed = dim

    def _draw_meter(self, response: "BudgetResponse") -> None:
        columns, now = _columns(), time.monotonic()
        # At the right edge a terminal holds back the cursor's move to the next line;
        # moving it then would lose a character of the text.
        at_edge = self._below and self._column and self._column % columns == 0
        if at_edge or (self._shown and now < self._next_update):
            return
        self._next_update = now + _SECONDS_BETWEEN_UPDATES
        line = meter_line(response.thinking_tokens, response.thinking_budget)
        line = line[: columns - 1]
        if self._below:
            # Make room for a line below without losing the column, then draw there
            # and come back (DEC save and restore cursor).
            self._meter.write(f"\x1bD\x1b[A\x1b7\x1b[B\r\x1b[2K{_PLAIN}{line}\x1b8")
        else:
            self._meter.write(f"\r\x1b[2K{line}")
        self._meter.flush()
        self._shown = True

    def _clear_meter(self) -> None:
        if self._shown:
            self._meter.write("\x1b[J" if self._below else "\r\x1b[2K")
            self._meter.flush()
            self._shown = False


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, 2)


def _column_after(text: str, column: int, columns: int) -> int:
    """Cells since the last newline once ``text`` is written, wrapped cells counted."""
    for c in text:
        if c == "\n":
            column = 0
        elif c == "\t":
            column += 8 - column % 8
        elif not unicodedata.combining(c):
            wide = unicodedata.east_asian_width(c) in "WF"
            # A wide character does not fit into the last cell of a line.
            column += wide and column % columns == columns - 1
            column += 1 + wide
    return column


def meter_line(used: int, budget: int | None) -> str:
    """One line that shows thinking tokens used against the budget."""
    if not budget:
        return f"Thinking: {used} tokens"
    filled = min(_METER_WIDTH, used * _METER_WIDTH // budget)
    bar = "#" * filled + "-" * (_METER_WIDTH - filled)
    return f"Thinking: {used} of {budget} tokens [{bar}]"
