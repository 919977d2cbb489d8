"""What the tests of `chat` share: questions, a changed demo, a terminal of its own."""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_budget import demo, load, stream_generate
from mlx_budget.engine.prompts import encode_chat
from terminals import ProgramTerminal

FIRST, SECOND = "What is 7 + 1 + 5 - 9 + 8?", "What is 6 - 2?"


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


class Terminal(ProgramTerminal):
    """The command in a terminal of its own.

    Attributes:
        cache: The folder that the command has for the user's cache.
    """

    def __init__(self, *args, stdout=None, term="xterm", folder=None):
        self._cache = TemporaryDirectory()
        self.cache = Path(self._cache.name)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TERM": term,
            "MLX_BUDGET_CACHE": self._cache.name,
        }
        command = [sys.executable, "-m", "mlx_budget", "chat", *map(str, args)]
        super().__init__(command, environment, folder, stdout)

    def __exit__(self, *_) -> None:
        super().__exit__()
        self._cache.cleanup()
