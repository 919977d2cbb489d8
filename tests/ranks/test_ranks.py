"""One model on several processes, over MLX's ring on this machine.

A set of processes is started once for many cases. What they give is compared with what
this process gives alone.
"""

import json
from pathlib import Path

import pytest
from groups import HERE, Ended, start
from jobs import CASES, JOBS, run

TENSOR_JOBS = [*JOBS]
END = 2
# What goes another way in a pipeline: hidden states, in single passes and in batches.
PIPELINE_JOBS = ["golden", "batch", "kinds", "lengths", "talk", "states"]


@pytest.fixture(scope="module")
def alone(loaded) -> dict:
    """What comes of all jobs in one process."""
    return run(loaded, [*JOBS])


def made_by(
    folder: Path, model: Path, size: int, kind: str, led: str, jobs: list[str]
) -> list[Ended]:
    command = [str(HERE / "jobs.py"), str(model), kind, led, *jobs]
    return start(folder, *[command] * size).wait()


def results(ended: list[Ended]) -> list[dict]:
    assert [(e.code, e.err) for e in ended] == [(0, "")] * len(ended)
    return [json.loads(e.out) for e in ended if e.out]


@pytest.fixture(scope="module")
def tensor(converted, tmp_path_factory) -> dict:
    """Of two ranks that have a part of every layer, where rank 0 leads."""
    folder = tmp_path_factory.mktemp("tensor")
    ended = made_by(folder, converted, 2, "tensor", "led", TENSOR_JOBS)
    (made,) = results(ended)  # rank 0 alone prints
    return made


@pytest.fixture(scope="module")
def pipeline(converted, tmp_path_factory) -> list[dict]:
    """Of two ranks that have some of the layers, and run the same script."""
    folder = tmp_path_factory.mktemp("pipeline")
    ended = made_by(folder, converted, 2, "pipeline", "alike", PIPELINE_JOBS)
    made = results(ended)
    assert len(made) == 2
    return made


def is_golden(replies: list[list[int]]) -> list[bool]:
    # A batch leaves out the token that ends a reply.
    expected = [[t for t in c["guided_tokens"] if t != END] for c in CASES]
    return [made == right for made, right in zip(replies, expected, strict=True)]


def test_the_golden_cases_come_out_on_two_ranks(tensor) -> None:
    assert is_golden(tensor["golden"]) == [True] * 12


@pytest.mark.parametrize("job", [name for name in TENSOR_JOBS if name != "golden"])
def test_two_ranks_give_what_one_process_gives(job, tensor, alone) -> None:
    assert tensor[job] == alone[job]


def test_the_golden_cases_come_out_of_a_pipeline_of_two(pipeline) -> None:
    assert [is_golden(made["golden"]) for made in pipeline] == [[True] * 12] * 2


@pytest.mark.parametrize("job", [n for n in PIPELINE_JOBS if n != "golden"])
def test_a_pipeline_gives_what_one_process_gives(job, pipeline, alone) -> None:
    assert [made[job] for made in pipeline] == [alone[job]] * 2


@pytest.mark.parametrize("size", [3, 4])
def test_the_golden_cases_come_out_of_longer_pipelines(
    size, converted, tmp_path
) -> None:
    (made,) = results(made_by(tmp_path, converted, size, "pipeline", "led", ["golden"]))
    assert is_golden(made["golden"]) == [True] * 12
