"""What CI runs is what the README and pyproject.toml promise.

Reads those files and the workflows; knows nothing of the package.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

RELEASING = {"publish": {"id-token": "write"}, "announce": {"contents": "write"}}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def workflow(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def lines_run(job: dict) -> list[str]:
    """What the steps of a job run, in their order."""
    return [step["run"] for step in job["steps"] if "run" in step]


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"^```bash\n(.*pytest.*)\n```$", read("README.md"), re.M)
    assert f"({command})" in read(".ci/run").splitlines()


def test_the_oldest_versions_are_those_that_pyproject_allows():
    lists = re.findall(
        r"^(?:dependencies|eval|serve|structured|train) = (\[.*?\n?\])$",
        read("pyproject.toml"),
        re.M | re.S,
    )
    assert len(lists) == 5
    floors = re.findall(r"\"([\w-]+)[^\">]*>=([\d.]+)", "".join(lists))
    oldest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", read(".ci/oldest.txt"), re.M))
    assert {name for name, _ in floors} == set(oldest)
    for name, floor in floors:
        # 15 and 15.0.0 are the same version.
        assert re.fullmatch(re.escape(floor) + r"(\.0)*", oldest[name]), name


def test_the_oldest_and_the_newest_python_are_tested():
    versions = re.findall(r"Python :: (3\.\d+)", read("pyproject.toml"))
    jobs = workflow(ROOT / ".github/workflows/tests.yml")["jobs"]
    both = {versions[0], versions[-1]}
    assert set(jobs["macos"]["strategy"]["matrix"]["python"]) == both
    tested = [
        step["with"]["python-version"]
        for name in ("linux-oldest", "linux-newest")
        for step in jobs[name]["steps"]
        if "python-version" in step.get("with", {})
    ]
    assert tested == [versions[0], versions[-1]]
    assert f'requires-python = ">={versions[0]}"' in read("pyproject.toml")


def test_on_a_mac_the_tests_of_metal_come_first_and_hide_nothing():
    job = workflow(ROOT / ".github/workflows/tests.yml")["jobs"]["macos"]
    tests = [line for line in lines_run(job) if line.startswith("pytest")]
    assert tests == ["pytest -m metal", 'pytest -m "not metal"']
    (rest,) = [step for step in job["steps"] if step.get("run") == tests[1]]
    assert rest["if"] == "${{ !cancelled() }}"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_may_only_read_and_end_in_time(file):
    found = workflow(file)
    assert found["permissions"] == {"contents": "read"}
    assert "concurrency" in found
    for name, job in found["jobs"].items():
        # What publishes must say who it is, and what announces writes a release.
        allowed = RELEASING.get(name) if file.stem == "release" else None
        assert job.get("permissions") == allowed
        assert job["timeout-minutes"] <= 60


@pytest.fixture
def package():
    """The script that builds the package."""
    spec = importlib.util.spec_from_file_location(
        "package", ROOT / ".ci" / "package.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_release_is_what_its_tag_and_the_changelog_say(package):
    wheel = Path("mlx_budget-1.2.0-py3-none-any.whl")
    assert package.check_tag("v1.2.0", wheel) == "1.2.0"
    for tag in "1.2.0", "v1.2", "v1.2.0rc1", "v":
        with pytest.raises(SystemExit, match=f"The tag {tag} does not name"):
            package.check_tag(tag, wheel)
    log = "# C\n\n## Unreleased\n\n- b\n\n## 1.2.0 - 2026-01-02\n\n- a\n\n## 1.1.0\n"
    assert package.notes_of("1.2.0", log) == "- a\n"
    for version in "1.2", "1.1.0", "1.2.0 - 2026", "Unreleased":
        with pytest.raises(SystemExit, match="CHANGELOG.md has no section"):
            package.notes_of(version, log)


def test_a_copy_without_a_repository_comes_behind_the_last_release(package):
    log = read("CHANGELOG.md")
    last = re.findall(r"^## ([0-9]\S*) - ", log, re.M)[0]
    assert package.notes_of(last, log)
    major, minor, patch = map(int, last.split("."))
    version = f"{major}.{minor}.{patch + 1}.dev0"
    assert f'fallback-version = "{version}"' in read("pyproject.toml")


def test_the_release_publishes_what_was_checked_and_no_more():
    jobs = workflow(ROOT / ".github/workflows/release.yml")["jobs"]
    (script,) = [line for line in lines_run(jobs["build"]) if ".ci/package.py" in line]
    assert '--tag "$GITHUB_REF_NAME" --output dist' in script
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == "pypi"
    assert lines_run(jobs["publish"]) == []
    assert jobs["announce"]["needs"] == "publish"
    checkout = jobs["build"]["steps"][0]
    assert checkout["with"]["fetch-depth"] == 0


def test_nothing_sends_users_to_an_index_where_the_name_is_not_ours():
    files = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "mlx_budget").rglob("*.py"),
        *(ROOT / "mlx_budget").rglob("*.html"),
    ]
    asks = re.compile(
        # An upgrade takes what the installation was made from.
        r"(?:pipx?|uv(?: pip| tool)?|uvx)(?!(?: tool)? upgrade)\s+"
        r"(?:install|add|run)?[^\n]*?"
        r"['\" ]mlx-budget(?:\[[\w,-]+\])?(?=['\"`\s]|$)(?! @ git)",
        re.M,
    )
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if found := asks.search(line):
                assert "git clone" in line, f"{file}: {found[0]}"
