"""What coding agents send to the server, and whether they come to an end with it.

Starts a server with a stand-in for a model (agent_model.py), and Claude Code or Codex,
which are to write a file by a tool and answer. Their requests are written down. Both
are on npm; nothing but loopback is needed while they run:

    npm install @anthropic-ai/claude-code @openai/codex
    unshare -rn sh -c 'ip link set lo up && python benchmarks/serve_agents.py ...'
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from recorder import SECONDS, recording

QUESTION = "Write 12 into the file result.txt, and tell me what is in it."
COMMAND = "echo 12 > result.txt && cat result.txt"
CODEX = """\
model = "demo"
model_provider = "local"
web_search = "disabled"
[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
"""


@dataclass(frozen=True)
class Agent:
    """A program that is to be tried.

    Attributes:
        call: The call of its tool that writes the file.
        arguments: Of its command line.
        variables: Of its environment, in which {url} is the server's.
        files: In its home folder, likewise.
    """

    call: dict[str, Any]
    arguments: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


AGENTS = {
    "claude": Agent(
        {"name": "Bash", "arguments": {"command": COMMAND, "description": "Write"}},
        ("--model", "demo", "--dangerously-skip-permissions", "-p", QUESTION),
        {
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_AUTH_TOKEN": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1",
        },
    ),
    "codex": Agent(
        {"name": "exec_command", "arguments": {"cmd": COMMAND}},
        (
            "exec",
            "--skip-git-repo-check",
            "--sandbox",
            "danger-full-access",
            QUESTION,
        ),
        files={".codex/config.toml": CODEX},
    ),
}


@click.command()
@click.option("--agent", type=click.Choice([*AGENTS]), required=True)
@click.option("--program", required=True, help="Path of its program.")
@click.option("--output", type=click.Path(path_type=Path), help="For the requests.")
@click.argument("options", nargs=-1)
def main(
    agent: str, program: str, output: Path | None, options: tuple[str, ...]
) -> None:
    """Tries an agent against a server with OPTIONS of `mlx-budget serve`."""
    chosen = AGENTS[agent]
    requests: list[dict[str, Any]] = []
    with serving(chosen.call, options) as port, recording(port, requests) as url:
        told, code, is_written = run(chosen, program, url)
    for request in requests:
        print(summary(request))
    print(f"{agent} ended with {code}, the file was written: {is_written}")
    print(f"It said: {told.strip().splitlines()[-1:]}")
    if output is not None:
        output.write_text("".join(json.dumps(r) + "\n" for r in requests))


def run(agent: Agent, program: str, url: str) -> tuple[str, int, bool]:
    """Runs an agent: what it said, its exit code, and whether it wrote the file."""
    with tempfile.TemporaryDirectory() as folder:
        home, work = Path(folder, "home"), Path(folder, "work")
        work.mkdir()
        for name, text in agent.files.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text.format(url=url))
        home.mkdir(exist_ok=True)
        own = {name: value.format(url=url) for name, value in agent.variables.items()}
        done = subprocess.run(
            [program, *agent.arguments],
            cwd=work,
            env={**os.environ, "HOME": str(home), **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
        )
        file = work / "result.txt"
        is_written = file.exists() and file.read_text().strip() == "12"
        return done.stdout, done.returncode, is_written


def summary(request: dict[str, Any]) -> str:
    """One line about a request and its reply."""
    fields = sorted(json.loads(request["body"] or "{}"))
    kinds = re.findall(r"^event: (\S+)$", request["reply"], re.M)
    events = f"{len(kinds)} events, the last {kinds[-1]}" if kinds else ""
    line = f"{request['path']} {request['status']} {events} {', '.join(fields)}"
    return line if request["status"] < 400 else f"{line}: {request['reply']}"


@contextmanager
def serving(call: dict[str, Any], options: tuple[str, ...]) -> Iterator[int]:
    """Serves the stand-in as long as the block lasts, at the port that it gives."""
    script = str(Path(__file__).parent / "agent_model.py")
    process = subprocess.Popen(
        [sys.executable, script, "--call", json.dumps(call), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                break
        else:
            raise SystemExit("".join(lines))
        reader = threading.Thread(target=lines.extend, args=(process.stderr,))
        reader.start()
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
