"""What CI runs is what the README and pyproject.toml promise.

Reads those files and the workflows; knows nothing of the package.
"""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


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
    for job in found["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
