"""What the tests of `chat` share: questions, a changed demo, a terminal of its own."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

from mlx_budget import demo, load, stream_generate
from mlx_budget.engine.prompts import encode_chat

FIRST, SECOND = "What is 7 + 1 + 5 - 9 + 8?", "What is 6 - 2?"
PATIENCE = 120  # seconds


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
    """The command in a terminal of its own."""

    def __init__(self, *args, stdout=None):
        self._fd, theirs = pty.openpty()

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
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

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
            self.seen += piece.decode("utf-8", "replace")
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def interrupt(self) -> None:
        """Presses Ctrl-C once the program waits: just before, Python misses it."""
        while select.select([self._fd], [], [], 0.5)[0]:
            self.seen += os.read(self._fd, 4096).decode("utf-8", "replace")
        self.type("\x03")

    def exit_code(self) -> int:
        self.seen = ""
        try:
            while os.read(self._fd, 4096):
                pass
        except OSError:
            pass
        return self._process.wait(PATIENCE)
