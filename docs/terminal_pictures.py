"""A program in a terminal of its own, and what a person sees there, as SVG.

Knows keys, screens and time; nothing of what is run. Needs pyte.
"""

import fcntl
import html
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyte

PATIENCE = 120  # seconds
# How long a key takes, and the longest wait that an animation shows, in seconds.
_KEY, _IDLE, _FRAME = 0.03, 0.7, 0.04
_CELL, _ROW, _SIZE, _EDGE, _BAR = 8.4, 19, 14, 16, 34
_PAPER, _INK, _DIM = "#0d1117", "#e6edf3", "#8b949e"
_COLOURS = {
    "default": _INK,
    "black": "#484f58",
    "red": "#ff7b72",
    "green": "#3fb950",
    "brown": "#d29922",
    "blue": "#58a6ff",
    "magenta": "#bc8cff",
    "cyan": "#39c5cf",
    "white": "#b1bac4",
    "brightblack": _DIM,
}


class Terminal:
    """A program in a terminal, and all that it writes, with its time.

    Args:
        command (Sequence): The program and its arguments.
        columns, lines (int): The size of the terminal.
        environment (Mapping): Variables beside those that there are.

    Attributes:
        events: Seconds since the start, and what was written then.
    """

    def __init__(
        self,
        command: Sequence[str],
        columns: int,
        lines: int,
        environment: Mapping[str, str],
        folder: Path,
    ):
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # Background jobs of a shell, and what they start, ignore interrupts.
            signal.signal(signal.SIGINT, signal.default_int_handler)

        variables = {
            k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")
        }
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**variables, "TERM": "xterm-256color", **environment},
            cwd=folder,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self._start = time.monotonic()
        self._seen = ""
        self.columns, self.lines = columns, lines
        self.events: list[tuple[float, str]] = []

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def type(self, text: str) -> None:
        """Presses keys, as fast as a person does."""
        for key in text:
            os.write(self._fd, key.encode())
            self.wait(_KEY)

    def paste(self, text: str) -> None:
        """Pastes a text, as a terminal does that tells what is pasted."""
        os.write(self._fd, f"\x1b[200~{text}\x1b[201~".encode())
        self.wait(0.5)

    def until(self, pattern: str) -> None:
        """Waits for some text."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self._seen)) is None:
            if time.monotonic() > end or not self._read(1.0):
                raise RuntimeError(f"{pattern!r} did not come: {self._seen[-300:]!r}")
        self._seen = self._seen[found.end() :]

    def wait(self, seconds: float) -> None:
        """Waits, whatever comes."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(left)

    def _read(self, seconds: float) -> bool:
        """Reads what comes within some seconds; False at the end of it all."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self._fd, 65536).decode("utf-8", "replace")
        except OSError:
            return False
        self._seen += piece
        self.events.append((time.monotonic() - self._start, piece))
        return True


class Frame(NamedTuple):
    """What is on the screen from some second on: a line of SVG for each row."""

    second: float
    rows: list[str]


def frames(terminal: Terminal) -> list[Frame]:
    """The screens that a person sees one after another; long waits are cut."""
    screen = pyte.Screen(terminal.columns, terminal.lines)
    stream = pyte.Stream(screen)
    found: list[Frame] = []
    second = last = 0.0
    for at, piece in terminal.events:
        second += min(at - last, _IDLE)
        last = at
        # pyte knows no dim text: it gets a colour of its own.
        stream.feed(piece.replace("\x1b[2m", "\x1b[90m"))
        rows = [_row(screen, number) for number in range(terminal.lines)]
        if found and second - found[-1].second < _FRAME:
            found[-1] = Frame(found[-1].second, rows)
        elif not found or rows != found[-1].rows:
            found.append(Frame(second, rows))
    return found


def still(frame: Frame, terminal: Terminal, title: str) -> str:
    """One screen as SVG, cut below its last line."""
    lines = max(i for i, row in enumerate(frame.rows) if row) + 1
    body = (_placed(row, i) for i, row in enumerate(frame.rows[:lines]))
    return _window("".join(body), terminal.columns, lines, title)


def animation(
    found: Sequence[Frame], terminal: Terminal, title: str, hold: float = 5.0
) -> str:
    """Screens as an SVG that plays them again and again, each as long as it was there.

    Each state of a row is drawn once and shown from when to when it was there. Viewers
    that play nothing show the last screen.
    """
    whole = found[-1].second + hold
    last = found[-1].rows
    lines = (
        max((i for f in found for i, row in enumerate(f.rows) if row), default=0) + 1
    )
    drawn = ""
    for number in range(lines):
        begin, row = 0.0, ""
        for frame in [*found, None]:
            now = None if frame is None else frame.rows[number]
            if now == row:
                continue
            end = whole if frame is None else frame.second
            if row:
                is_last = row == last[number] and frame is None
                drawn += _shown(
                    _placed(row, number), begin / whole, end / whole, whole, is_last
                )
            begin, row = end, now or ""
    return _window(drawn, terminal.columns, lines, title)


def _shown(body: str, begin: float, end: float, whole: float, is_last: bool) -> str:
    times, values = ["0"], ["hidden" if begin > 0 else "visible"]
    if begin > 0:
        times.append(f"{begin:.4f}")
        values.append("visible")
    if end < 1:
        times.append(f"{end:.4f}")
        values.append("hidden")
    if len(times) == 1:
        return body
    play = (
        '<animate attributeName="visibility" calcMode="discrete" '
        f'values="{";".join(values)}" keyTimes="{";".join(times)}" '
        f'dur="{whole:.2f}s" repeatCount="indefinite"/>'
    )
    return f'<g visibility="{"visible" if is_last else "hidden"}">{play}{body}</g>\n'


def _placed(row: str, number: int) -> str:
    return (
        f'<g transform="translate({_EDGE} {_BAR + number * _ROW})">{row}</g>\n'
        if row
        else ""
    )


def _row(screen: Any, number: int) -> str:
    """A row of a screen: its texts, each with its place and colour."""
    cells = [screen.buffer[number][x] for x in range(screen.columns)]
    runs: list[tuple[int, str, tuple[str, str, bool]]] = []
    for x, cell in enumerate(cells):
        ink, paper = _colour(cell.fg, _INK), _colour(cell.bg, "")
        if cell.reverse:
            ink, paper = paper or _PAPER, ink
        style = ink, paper, cell.bold
        if runs and runs[-1][2] == style:
            runs[-1] = runs[-1][0], runs[-1][1] + cell.data, style
        else:
            runs.append((x, cell.data, style))
    drawn = ""
    for x, text, (ink, paper, is_bold) in runs:
        at = round(x * _CELL, 1)
        if paper:
            width = round(len(text) * _CELL, 1)
            drawn += (
                f'<rect x="{at}" y="0" width="{width}" height="{_ROW}" fill="{paper}"/>'
            )
        # Viewers make one of many spaces: what stands behind them has its own place.
        for word in re.finditer(r"\S+(?: \S+)*", text):
            at = round((x + word.start()) * _CELL, 1)
            of = f'x="{at}" y="{_ROW - 5}"'
            of += f' fill="{ink}"' if ink != _INK else ""
            of += ' font-weight="bold"' if is_bold else ""
            # Whatever the font, the text is as wide as its cells.
            of += f' textLength="{round(len(word[0]) * _CELL, 1)}"'
            drawn += f"<text {of}>{html.escape(word[0])}</text>"
    return drawn


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return _COLOURS.get(name) or (
        f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else _INK
    )


def _window(body: str, columns: int, lines: int, title: str) -> str:
    width = round(columns * _CELL + 2 * _EDGE)
    height = lines * _ROW + _BAR + _EDGE
    dots = "".join(
        f'<circle cx="{18 + 18 * i}" cy="17" r="5.5" fill="{colour}"/>'
        for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    fonts = (
        "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" font-family="{fonts}" '
        f'font-size="{_SIZE}" fill="{_INK}">\n'
        f"<title>{html.escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="9" fill="{_PAPER}"/>{dots}\n'
        f"{body}</svg>\n"
    )
