"""A zsh in a terminal of its own, as somebody sits before it who pastes commands.

Knows nothing of our commands. Its prompt tells the status of the last command.
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


class Zsh:
    """An interactive shell without anybody's settings (`zsh -f`).

    Args:
        folder: Where it stands.
        environment: Its variables.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def __enter__(self) -> "Zsh":
        self._fd, theirs = pty.openpty()
        size = struct.pack("HHHH", LINES, COLUMNS, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # A job in the background ignores it, and so would what it starts.
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self._process = subprocess.Popen(
            ["zsh", "-f", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.folder,
            env={**self.environment, "TERM": "xterm"},
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._seen = ""
        # Split, so that the line as it is typed does not look like a prompt.
        self.type("PROMPT='[status' PROMPT+=' %?]'; PROMPT2='' RPROMPT=''\n")
        assert self.status() == 0
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    @property
    def screen(self) -> str:
        """What the terminal shows."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, text: str) -> None:
        """Waits for a text; what came before it is done with."""
        self._wait_for(re.escape(text))

    def status(self) -> int:
        """Waits for the prompt, and tells the status of the command before it."""
        return int(self._wait_for(r"\[status (\d+)\]")[1])

    def run(self, command: str) -> int:
        """Types a command and tells its status."""
        self.type(command if command.endswith("\n") else command + "\n")
        return self.status()

    def _wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self._seen)) is None:
            ready, _, _ = select.select([self._fd], [], [], end - time.monotonic())
            piece = b""
            if ready:
                try:
                    piece = os.read(self._fd, 4096)
                except OSError:  # it has ended
                    pass
            assert piece, f"{pattern!r} did not come: {self._seen[-500:]}"
            self._stream.feed(piece)
            self._seen += piece.decode("utf-8", "replace")
        self._seen = self._seen[found.end() :]
        return found
