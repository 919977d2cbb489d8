"""What the tests of `chat` share: questions, a changed demo, a terminal of its own."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyte

from mlx_budget import demo, load, stream_generate
from mlx_budget.engine.prompts import encode_chat

FIRST, SECOND = "What is 7 + 1 + 5 - 9 + 8?", "What is 6 - 2?"
PATIENCE = 120  # seconds
COLUMNS, LINES = 120, 60


def first_reply() -> str:
    """The reply to the first question with a budget of 60 tokens, as it is shown."""
    model, tokenizer, predictor = load("demo")
    ids = encode_chat(tokenizer, FIRST)
    options = {"predictor": predictor, "thinking_budget": 60}
    return "".join(r.text for r in stream_generate(model, tokenizer, ids, **options))


def copy_demo(folder: Path, **changes: dict) -> Path:
    """A copy of the built-in model with changes to its JSON files."""
    folder.mkdir()
    for file in demo.FOLDER.iterdir():
        if file.stem in changes:
            config = json.loads(file.read_text()) | changes[file.stem]
            (folder / file.name).write_text(json.dumps(config))
        else:
            (folder / file.name).symlink_to(file)
    return folder


class Terminal:
    """The command in a terminal of its own.

    Attributes:
        seen: What came and `until` did not take.
        cache: The folder that the command has for the user's cache.
    """

    def __init__(self, *args, stdout=None, term="xterm", folder=None):
        self._fd, theirs = pty.openpty()
        self._cache = TemporaryDirectory()
        self.cache = Path(self._cache.name)
        size = struct.pack("HHHH", LINES, COLUMNS, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            # A shell's background jobs, and what they start, ignore interrupts.
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlx_budget", "chat", *map(str, args)],
            stdin=theirs,
            stdout=stdout or theirs,
            stderr=theirs,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "TERM": term,
                "MLX_BUDGET_CACHE": self._cache.name,
            },
            cwd=folder,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self.seen = self._all = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)
        self._cache.cleanup()

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, pattern: str) -> str:
        """What comes up to some text, taken off `seen`."""
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
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def exit_code(self) -> int:
        try:
            while piece := os.read(self._fd, 4096):
                self._take(piece)
        except OSError:
            pass
        return self._process.wait(PATIENCE)

    def screen(self) -> list[str]:
        """The lines that a person sees by now."""
        screen = pyte.Screen(COLUMNS, LINES)
        pyte.Stream(screen).feed(self._all)
        return screen.display

    def _take(self, piece: bytes) -> None:
        text = piece.decode("utf-8", "replace")
        self.seen += text
        self._all += text
