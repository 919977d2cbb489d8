"""A zsh in a terminal of its own, as somebody sits before it who pastes commands.

Knows nothing of our commands. Its prompt tells the status of the last command.
"""

import re
from pathlib import Path

from terminals import ProgramTerminal


class Zsh(ProgramTerminal):
    """An interactive shell without anybody's settings (`zsh -f`).

    Args:
        folder: Where it stands.
        environment: Its variables.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        super().__init__(["zsh", "-f", "-i"], {**environment, "TERM": "xterm"}, folder)

    def __enter__(self) -> "Zsh":
        # Split, so that the line as it is typed does not look like a prompt.
        assert self.run("PROMPT='[status' PROMPT+=' %?]'; PROMPT2='' RPROMPT=''") == 0
        return self

    def status(self) -> int:
        """Waits for the prompt, and tells the status of the command before it."""
        found = self._wait_for(r"\[status (\d+)\]")
        self._taken(found)
        return int(found[1])

    def run(self, command: str) -> int:
        """Types a command and tells its status."""
        self.type(command if command.endswith("\n") else command + "\n")
        return self.status()

    def waits_for(self, text: str) -> None:
        """Waits for a text; what came before it is done with."""
        self.until(re.escape(text))
