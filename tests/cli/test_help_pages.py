"""The help pages in the documentation are those that the commands print."""

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_budget.cli import cli

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_help_pages_are_up_to_date(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    made = runpy.run_path(str(DOCS / "make_cli.py"))["text"]()
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == made, "run `python docs/make_cli.py`"


@pytest.mark.parametrize("command", [(), *((name,) for name in cli.commands)])
def test_a_page_is_what_its_command_prints(command):
    wide = {"terminal_width": 88, "max_content_width": 88, "prog_name": "mlx-budget"}
    printed = CliRunner().invoke(cli, [*command, "--help"], **wide).stdout
    title = " ".join(("mlx-budget", *command))
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert f"\n## {title}\n\n```text\n{printed}```\n" in written
