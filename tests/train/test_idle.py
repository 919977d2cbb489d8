"""Learning in idle time: the replies of `learn`, token by token."""

import json

import pytest

from mlx_budget import load
from mlx_budget.engine.settings import ModelSource, Sampling
from mlx_budget.method.table import TablePredictor
from mlx_budget.train import idle
from mlx_budget.train.idle import IdleLearner
from mlx_budget.train.learn import learn
from mlx_budget.train.learn_options import LearnOptions

OPTIONS = LearnOptions(sampling=Sampling(temp=1.0, seed=3), num_prompts=50)
DEMO = ModelSource("demo")


@pytest.fixture(scope="module")
def demo_model():
    return load("demo")[:2]


def records(output) -> list[dict]:
    file = output / "learning" / "traces.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_until(learner: IdleLearner, output, count: int) -> None:
    while len(records(output)) < count:
        for _ in range(40):
            assert learner.step()


def test_replies_are_written_one_by_one_and_a_table_is_made(
    demo_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(idle, "FIRST_TABLE", 3)
    learner = IdleLearner(*demo_model, DEMO, tmp_path / "p", OPTIONS)
    assert learner.step() and not records(tmp_path / "p")
    run_until(learner, tmp_path / "p", 4)
    assert isinstance(learner.table, TablePredictor)
    *_, predictor = load("demo", predictor=tmp_path / "p")
    assert predictor.counts.number >= 3
    learner.close()


def test_a_reply_that_was_not_finished_is_made_again_the_same(demo_model, tmp_path):
    whole = IdleLearner(*demo_model, DEMO, tmp_path / "whole", OPTIONS)
    run_until(whole, tmp_path / "whole", 2)
    whole.close()
    first = IdleLearner(*demo_model, DEMO, tmp_path / "parts", OPTIONS)
    run_until(first, tmp_path / "parts", 1)
    for _ in range(5):
        first.step()
    first.close()
    second = IdleLearner(*demo_model, DEMO, tmp_path / "parts", OPTIONS)
    run_until(second, tmp_path / "parts", 2)
    second.close()
    assert records(tmp_path / "parts")[:2] == records(tmp_path / "whole")[:2]


def test_the_command_goes_on_with_what_idle_time_has_made(demo_model, tmp_path):
    learner = IdleLearner(*demo_model, DEMO, tmp_path / "p", OPTIONS)
    run_until(learner, tmp_path / "p", 2)
    learner.close()
    made = records(tmp_path / "p")
    # An instant is enough for the replies that end first, and too little to learn from.
    options = {"sizes": "table", "num_prompts": 50, "seed": 3, "hours": 1e-9}
    with pytest.raises(ValueError, match="too few to learn from"):
        learn(DEMO, tmp_path / "p", **options)
    assert records(tmp_path / "p")[:2] == made and len(records(tmp_path / "p")) > 2


def test_a_folder_that_is_in_use_is_refused(demo_model, tmp_path):
    one = IdleLearner(*demo_model, DEMO, tmp_path / "p", OPTIONS)
    one.step()
    other = IdleLearner(*demo_model, DEMO, tmp_path / "p", OPTIONS)
    with pytest.raises(ValueError, match="Another program is at work in"):
        other.step()
    one.close()
