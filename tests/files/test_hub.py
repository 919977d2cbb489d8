"""Names on the Hub become folders here, and what goes wrong becomes one line.

The client reads its address when it is imported: each test runs it in a child process,
against a fake Hub on loopback.
"""

import os
import subprocess
import sys

import pytest

from fake_hub import FakeHub
from mlx_budget.files import hub as hub_module

CALLS = """
import sys
from pathlib import Path
from mlx_budget.files import hub
for call in sys.argv[1:]:
    try:
        print(eval(call))
    except ValueError as e:
        print(f"ValueError: {e}")
"""
NAME = "owner/name"


@pytest.fixture
def hub(tmp_path):
    for revision in ("main", "v1"):
        (tmp_path / revision).mkdir()
        (tmp_path / revision / "config.json").write_text(f'{{"from": "{revision}"}}')
    (tmp_path / "main" / "model.safetensors").write_bytes(b"weights")
    folders = {NAME: tmp_path / "main"}
    with FakeHub(folders, {NAME: {"v1": tmp_path / "v1"}}) as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Evaluates calls in a child process, each of which prints one line."""

    def run(*calls: str, **environment: str) -> list[str]:
        child = subprocess.run(
            [sys.executable, "-c", CALLS, *calls],
            env={**os.environ, **hub.environment(tmp_path / "home"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert child.stderr == ""
        return child.stdout.splitlines()

    return run


@pytest.mark.parametrize("name", ["./a", "/a/b", "~/a", "a/b/c", "..", "~nobody/a"])
def test_some_names_can_only_be_paths(name):
    assert hub_module.is_local(name)


def test_other_names_are_paths_if_they_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not hub_module.is_local("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub_module.is_local("owner/name")
    assert not hub_module.is_local("x" * 5000)


def test_a_local_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    assert hub_module.fetch(tmp_path, ()) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert hub_module.fetch("~/model", ()) == tmp_path / "model"


def test_a_missing_local_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*/none\. Check"):
        hub_module.fetch(tmp_path / "none", ())
    with pytest.raises(ValueError, match="There is no folder ~nobody/none"):
        hub_module.fetch("~nobody/none", ())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name the folder"):
        hub_module.fetch(tmp_path / "file", ())
    with pytest.raises(ValueError, match="--revision is for names on the Hub"):
        hub_module.fetch(tmp_path, (), "main")


def test_only_the_files_asked_for_are_downloaded(hub, run):
    text = "(hub.fetch('owner/name', ['*.json'], {!r}) / 'config.json').read_text()"
    lines = {
        text.format("v1"): '{"from": "v1"}',
        text.format(None): '{"from": "main"}',
        "hub.list_files('owner/name')": "['config.json', 'model.safetensors']",
    }
    assert run(*lines) == list(lines.values())
    assert hub.downloaded(NAME) == {"config.json"}


def test_a_refusal_is_one_line(run):
    not_found = (
        "ValueError: There is no folder owner/none here and no such name on the Hub "
        "(or it is private: log in with `hf auth login`)."
    )
    not_a_name = "is neither a local folder nor a Hub name (owner/name)."
    lines = {
        "hub.fetch('owner/none', ['*.json'])": not_found,
        "hub.list_files('owner/none')": not_found,
        "hub.fetch('owner/name', ['*.json'], 'v2')": "ValueError: owner/name has no "
        "revision 'v2' on the Hub. Check --revision.",
        "hub.fetch('a b', ['*.json'])": f"ValueError: 'a b' {not_a_name}",
        "hub.check_name('owner/-name')": f"ValueError: 'owner/-name' {not_a_name}",
        "hub.check_name('owner/name')": "None",
        # Nothing matches, which is no error here, and no warning either.
        "len(hub.fetch('owner/name', ['*.md']).name)": "40",
    }
    assert run(*lines) == list(lines.values())


def test_an_interrupted_download_is_one_line_and_goes_on_later(hub, run):
    hub.cut_after(NAME, "model.safetensors", 3, times=1, reset=True)
    fetch = "(hub.fetch('owner/name', ['*']) / 'model.safetensors').read_text()"
    line, text = run(fetch, fetch)
    assert line.startswith("ValueError: The transfer of owner/name from or to the Hub")
    assert "try again" in line
    assert text == "weights"


def test_without_a_network_what_was_downloaded_serves(run):
    with FakeHub() as closed:
        pass
    fetch = "(hub.fetch('owner/name', ['*.json']) / 'config.json').read_text()"
    others = "hub.fetch('owner/none', ['*'])", "hub.fetch('owner/name', ['*'])"
    assert run(fetch) == ['{"from": "main"}']
    for without in {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": closed.url}:
        text, *lines = run(fetch, *others, **without)
        assert text == '{"from": "main"}'
        for line in lines:
            assert "the Hub cannot be reached to look it up. Check the path" in line


def test_a_repository_is_made_and_filled(hub, run):
    *_, name = run(
        "hub.upload(Path('v1'), hub.create('me/new'))", "hub.create('me/new')"
    )
    assert name == "me/new"
    assert hub.uploaded == {"me/new": {"config.json": b'{"from": "v1"}'}}


def test_without_the_right_token_nothing_is_made(hub, run):
    (line,) = run("hub.create('me/new')", HF_TOKEN="other")
    assert line.startswith("ValueError: The Hub refused me/new (")
    assert line.endswith(" log in with `hf auth login`.")
    assert hub.uploaded == {}


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("Data processing error:\n..."), "(Data processing error:)"),
        (KeyError(), "(KeyError())"),
    ],
)
def test_whatever_the_client_raises_is_one_line(raised, line):
    with pytest.raises(ValueError, match="The transfer of owner/name") as caught:
        with hub_module.one_line_errors(NAME):
            raise raised
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
