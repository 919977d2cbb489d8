"""A program in a terminal of its own, as somebody sits before it.

Knows pseudo-terminals and screens; nothing of what the program is.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pyte

PATIENCE = 120  # seconds
COLUMNS, LINES = 120, 60


class ProgramTerminal:
    """A program that runs as long as the block lasts.

    Args:
        command: The program and its arguments.
        environment: Its variables.
        folder: Where it stands.
        stdout: Where its output goes, if not to the terminal.

    Attributes:
        seen: What came and `until` did not take.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        folder: Path | None = None,
        stdout=None,
    ):
        self._fd, theirs = pty.openpty()
        size = struct.pack("HHHH", LINES, COLUMNS, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # A shell's background jobs, and what they start, ignore interrupts.
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=stdout or theirs,
            stderr=theirs,
            env=environment,
            cwd=folder,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self.seen = self._all = ""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, pattern: str) -> str:
        """What comes up to some text, taken off `seen`."""
        return self._taken(self._wait_for(pattern))

    def screen(self) -> list[str]:
        """The lines that a person sees by now."""
        screen = pyte.Screen(COLUMNS, LINES)
        pyte.Stream(screen).feed(self._all)
        return screen.display

    def exit_code(self) -> int:
        try:
            while piece := os.read(self._fd, 4096):
                self._take(piece)
        except OSError:
            pass
        return self._process.wait(PATIENCE)

    def _wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.seen)) is None:
            ready, _, _ = select.select([self._fd], [], [], end - time.monotonic())
            piece = b""
            if ready:
                try:
                    piece = os.read(self._fd, 4096)
                except OSError:  # it has ended
                    pass
            assert piece, f"{pattern!r} did not come: {self.seen[-500:]}"
            self._take(piece)
        return found

    def _taken(self, found: re.Match[str]) -> str:
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def _take(self, piece: bytes) -> None:
        text = piece.decode("utf-8", "replace")
        self.seen += text
        self._all += text
