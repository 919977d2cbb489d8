"""The command `plan`, as a user runs it."""

import json
import re

import pytest
from click.testing import CliRunner

from mlx_budget.cli import cli

QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
# It was not taught to follow a plan, and may take one for something else than a sum.
ANSWER = r"(The answer|My guess) is \d+\.\n|I can only add and subtract .*\.\n"
GIVEN = {"parts": ["What is 7 + 1 + 5?", {"question": "- 9 + 8?", "hint": "go on"}]}


@pytest.fixture
def given(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(GIVEN))
    return file


def run(*args):
    return CliRunner().invoke(cli, ["plan", "--model", "demo", "-p", *map(str, args)])


def test_the_plan_the_reply_and_what_each_part_used_are_shown(given):
    found = run(QUESTION, "--plan", given, "--thinking-budget", 100)
    assert found.exit_code == 0
    assert "Part 2 of 2: - 9 + 8? (go on)" in found.stdout
    assert re.fullmatch(ANSWER, found.stdout.rpartition("</think>\n\n")[2])
    assert "Plan: 100 tokens, difficulty 3 of 5" in found.stderr
    assert "  2. 50 tokens: - 9 + 8? (go on)" in found.stderr
    assert "Part 1: " in found.stderr
    assert " of 50 tokens, closed by the " in found.stderr
    assert "Planning: 0 tokens" in found.stderr


def test_json_has_all_of_it_and_is_a_plan_to_follow_again(given, tmp_path):
    options = ["--thinking-budget", 100, "--seed", 1, "--json"]
    found = run(QUESTION, "--plan", given, *options)
    told = json.loads(found.stdout)
    assert found.stderr == ""
    assert [part["share"] for part in told["parts"]] == [50, 50]
    assert {"used", "closed_by", "hint_tokens"} <= told["parts"][0].keys()
    again = tmp_path / "again.json"
    again.write_text(found.stdout)
    assert json.loads(run(QUESTION, "--plan", again, *options).stdout) == told


def test_thinking_can_be_hidden(given):
    found = run(QUESTION, "--plan", given, "--thinking-budget", 60, "--hide-thinking")
    assert re.fullmatch(ANSWER, found.stdout)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--levels", "1,2"], "levels must be five numbers"),
        (["--levels", "low"], "--levels must be five numbers"),
        (["--thinking-budget", "0"], "above 0"),
        (["--schedule", "square"], "schedule"),
        (["--plan", "nowhere.json"], "nowhere.json cannot be read"),
        (["--rollover", "--keep", "words"], "--rollover"),
    ],
)
def test_bad_input_is_one_line(args, message):
    found = run(QUESTION, *args)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert message in found.stderr.splitlines()[-1]


@pytest.mark.parametrize("text", ["{", "[]", '{"parts": []}', "\xff"])
def test_a_file_that_is_no_plan_is_named(tmp_path, text):
    file = tmp_path / "plan.json"
    file.write_bytes(text.encode("latin-1"))
    found = run(QUESTION, "--plan", file)
    assert found.exit_code == 2
    assert str(file) in found.stderr
