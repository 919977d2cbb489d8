"""Makes the pictures of the terminal: `docs/thinking.svg`, `meter.svg` and `chat.svg`.

    python docs/make_terminal.py [--output FOLDER]

They show real runs of the built-in model at the speed that they had; only where nothing
happens, the time is cut to 0.7 seconds. Needs pyte.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import click
from terminal_pictures import Terminal, animation, frames, still

DOCS = Path(__file__).parent
ASK = (
    "mlx-budget generate --model demo -p 'What is 7 + 1 + 5 - 9 + 8?' --temp 1 --seed 7"
)
BUDGETS = (150, 50)
PASTED = "What is\n7 + 1 + 5 - 9 + 8?"
COLUMNS, LINES = 86, 34


def _shell(folder: Path) -> Terminal:
    """A shell in which our command is found, with a short sign."""
    bash = shutil.which("bash") or "/bin/bash"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PS1": "$ ", "PATH": path, "MLX_BUDGET_CACHE": str(folder)}
    command = [bash, "--norc", "--noprofile", "-i"]
    return Terminal(command, COLUMNS, LINES, environment, folder)


def _film(folder: Path, output: Path) -> None:
    """The same question with a budget that is enough and with a small one."""
    with _shell(folder) as terminal:
        terminal.until(r"\$ ")
        for budget in BUDGETS:
            terminal.type(f"{ASK} \\\r    --thinking-budget {budget}\r")
            terminal.until(rf"of {budget} tokens, closed by")
            terminal.until(r"\$ ")
            terminal.wait(1.5)
        found = frames(terminal)
        title = "The same question with a budget of 150 tokens of thinking and of 50"
        (output / "thinking.svg").write_text(
            animation(found, terminal, title), encoding="utf-8"
        )
        # In the middle of the first reply: the meter is below the thinking.
        with_meter = [f for f in found if any("of 150 tokens [" in r for r in f.rows)]
        title = "A reply as it comes: thinking dimmed, the meter below it"
        (output / "meter.svg").write_text(
            still(with_meter[len(with_meter) * 3 // 4], terminal, title),
            encoding="utf-8",
        )


def _chat(folder: Path, output: Path) -> None:
    """A chat: a budget, lines that are pasted, a file, and Tab."""
    with _shell(folder) as terminal:
        terminal.until(r"\$ ")
        terminal.type("mlx-budget chat --model demo\r")
        terminal.until(">> ")
        for line, told in (
            ("/budget 60", "60 tokens"),
            (PASTED, "tokens-per-sec"),
            ("/budget 50%", "budget: 50%"),
            ("/save sums.json", "1 turn"),
        ):
            (terminal.paste if line == PASTED else terminal.type)(line)
            terminal.type("\r")
            terminal.until(told)
            terminal.until(">> ")
        terminal.type("/\t")
        terminal.wait(1.0)
        title = "A chat with budgets, pasted lines, and the commands that Tab shows"
        (output / "chat.svg").write_text(
            still(frames(terminal)[-1], terminal, title), encoding="utf-8"
        )


@click.command()
@click.option("--output", type=Path, default=DOCS)
def main(output: Path) -> None:
    """Runs the built-in model in a terminal and draws what is seen."""
    for make in (_film, _chat):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), output)


if __name__ == "__main__":
    main()
