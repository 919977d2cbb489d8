"""Making the demo goes on where it was killed, and with what it was begun with."""

from pathlib import Path

import pytest

from recipes.demo import make
from recipes.demo.sequences import Stage

STAGES = tuple(Stage(2, 1e-3, seed=seed) for seed in range(len(make.STAGES)))


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The stages that are run; the first time each is killed before its last file."""
    calls: list[str] = []

    def run(name: str, folder: Path, *files: str) -> None:
        is_first = name not in calls
        calls.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        *some, last = files
        for file in some:
            (folder / file).write_text("{}")
        if is_first:
            raise KeyboardInterrupt
        (folder / last).write_text("{}")

    def pretrain(folder: Path, work: Path, *_, **options) -> None:
        run(work.name, folder, "model.safetensors", "config.json")

    def predict(model: Path, work: Path, count: int) -> Path:
        run("predictor", work / "predictor", *reversed(make.PREDICTOR_FILES))
        return work / "predictor"

    def quantise(source: Path, predictor: Path, output: Path) -> None:
        assert (predictor / "predictor_config.json").exists()
        run("quantise", output, "model.safetensors", "config.json")

    files = "tokenizer.json", "tokenizer_config.json"
    monkeypatch.setattr(make, "make_tokenizer", lambda f: run("tokenizer", f, *files))
    monkeypatch.setattr(make, "pretrain", pretrain)
    monkeypatch.setattr(make, "train_predictor", predict)
    monkeypatch.setattr(make, "quantise", quantise)
    return calls


def test_a_stage_that_was_killed_is_run_again_and_one_that_ended_is_not(
    tmp_path, calls
):
    names = "tokenizer", *make.STAGES, "predictor", "quantise"
    for _ in names:
        with pytest.raises(KeyboardInterrupt):
            make.make_demo(tmp_path, STAGES, traces=4)
    model = make.make_demo(tmp_path, STAGES, traces=4)
    # `train_predictor` itself looks whether there is one.
    made = [name for name in calls if name != "predictor"]
    assert made == [n for n in names if n != "predictor" for _ in range(2)]
    assert (model / "config.json").exists()
    make.make_demo(tmp_path, STAGES, traces=4)
    assert [name for name in calls if name != "predictor"] == made


def test_a_predictor_that_is_there_is_not_trained_again(tmp_path):
    (tmp_path / "predictor").mkdir()
    (tmp_path / "predictor" / "predictor_config.json").write_text("{}")
    found = make.train_predictor(tmp_path / "no model", tmp_path, 4)
    assert found == tmp_path / "predictor"


@pytest.mark.parametrize("other", [{"traces": 5}, {"stages": STAGES[::-1]}])
def test_a_folder_that_was_begun_otherwise_is_refused(tmp_path, calls, other):
    with pytest.raises(KeyboardInterrupt):
        make.make_demo(tmp_path, STAGES, traces=4)
    with pytest.raises(ValueError, match="begun with other stages or traces"):
        make.make_demo(tmp_path, **{"stages": STAGES, "traces": 4, **other})
