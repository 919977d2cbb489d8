"""Serving that learns in idle time, and answers first."""

import json
import time

from click.testing import CliRunner

from mlx_budget.cli import cli
from served import ask, serving


def test_requests_come_first_and_idle_time_is_used(tmp_path, server):
    output = tmp_path / "p"
    file = output / "learning" / "traces.jsonl"
    with serving("--learn", output) as learning, learning.client() as client:
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().count("\n"):
            assert time.monotonic() < deadline
            reply = ask(client, thinking_budget=20).choices[0]
            assert reply.thinking["tokens"] <= 22
        reply = ask(client, thinking_budget=60, seed=1).choices[0]
        assert learning.stop() == 0
    for line in file.read_text().splitlines():
        assert json.loads(line)["closed_by"] == "model"
    with server.client() as client:
        assert ask(client, thinking_budget=60, seed=1).choices[0] == reply


def test_a_folder_of_something_else_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    result = CliRunner().invoke(cli, ["serve", "--learn", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not empty, and holds no run of learn" in result.stderr
