"""Evaluations: the same replies however they are run, and no record lost or doubled."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_budget import stream_generate
from mlx_budget.engine.known_prompts import KnownPrompts
from mlx_budget.engine.priors import prior_for
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import Sampling
from mlx_budget.engine.thinking import find_markers
from mlx_budget.evaluate import run as run_module
from mlx_budget.evaluate.arms import parse_budgets
from mlx_budget.evaluate.folder import (
    RECORDS_FILE,
    SETTINGS_FILE,
    check_output,
    read_records,
    read_settings,
)
from mlx_budget.evaluate.lengths import LENGTHS_FILE
from mlx_budget.evaluate.options import EvaluateOptions
from mlx_budget.evaluate.run import Progress, evaluate
from mlx_budget.evaluate.strategies import STRATEGIES
from mlx_budget.evaluate.tasks import Problem, Task

TASK = Task(
    name="sums",
    problems=tuple(
        Problem(str(i), f"What is {a} + {b}?", str(a + b), False)
        for i, (a, b) in enumerate([(14, 7), (3, 9), (20, 5), (8, 8)])
    ),
    instruction="",
)


def run(loaded, output: Path, **options) -> list[dict]:
    defaults = dict(
        strategies=("full", "guidance", "budget-forcing"),
        budgets=parse_budgets("20,50%"),
        max_tokens=90,
        temp=0.0,
        # All questions at a time, the least work.
        batch_size=4,
    )
    return evaluate(*loaded, TASK, output, **{**defaults, **options})


def without_times(records: list[dict]) -> list[dict]:
    return [{**record, "seconds": None} for record in records]


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A run that was never stopped; do not write into it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(loaded, folder, batch_size=3)


def test_every_arm_has_a_record_of_each_question(whole):
    folder, records = whole
    arms = ("full", "guidance@20", "guidance@50%", "budget-forcing@20")
    names = {record["id"] for record in records}
    assert {f"{arm}/{i}-0" for arm in arms for i in range(4)} < names
    assert len(names) == len(records) == 5 * 4
    assert read_records(folder) == records
    lines = (folder / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20


def test_every_token_is_counted_once(loaded, whole):
    parts = "thinking after_close answer forced marker probe".split()
    for record in whole[1]:
        counts = [record[f"{part}_tokens"] for part in parts]
        assert record["total_tokens"] == sum(counts)
        assert min(counts) >= 0
        # The model itself writes its closing marker, or it is put in; behind one that
        # was put in it may write another.
        by = record["closed_by"]
        writes_one = by == "model" or record["after_close_tokens"] > 0
        assert (record["marker_tokens"] > 0) is writes_one
        assert (record["forced_tokens"] > 0) is (by in ("budget", "loop"))


def test_a_question_is_read_once_for_all_arms(loaded, whole, tmp_path, monkeypatch):
    read = []

    class Counted(KnownPrompts):
        def nearest(self, prompt):
            caches, rest = super().nearest(prompt)
            read.append(len(rest))
            return caches, rest

    monkeypatch.setattr(run_module, "KnownPrompts", Counted)
    found = run(loaded, tmp_path / "kept")
    assert without_times(found) == without_times(whole[1])
    # First the predictor reads each of them, to foretell its length.
    questions, others = read[: len(TASK.problems)], read[len(TASK.problems) :]
    assert min(questions) > 1
    assert others == [1] * len(found)
    read.clear()
    none = run(loaded, tmp_path / "none", prompt_cache_bytes=0)
    assert without_times(none) == without_times(found)
    # Nor is what they begin with in common taken from one another.
    assert len(read) == len(questions) + len(found) and min(read) > 1
    assert sum(read[: len(questions)]) > sum(questions)


def test_a_closing_marker_may_open_the_box_of_the_answer(loaded, tmp_path):
    options = dict(thinking_start="", thinking_end="\\boxed{")
    records = run(loaded, tmp_path / "run", strategies=("truncate",), **options)
    forced = [r for r in records if r["closed_by"] == "budget"]
    assert forced
    for record in forced:
        assert "never closed" in record["grading_problem"]


def test_answers_have_one_limit_in_all_arms(loaded, whole, tmp_path):
    options = dict(max_answer_tokens=2)
    capped = {r["id"]: r for r in run(loaded, tmp_path / "run", **options)}
    assert read_settings(tmp_path / "run")["max_answer_tokens"] == 2
    for record in whole[1]:
        reply, behind = capped[record["id"]], record["answer_tokens"]
        assert record["reply"].startswith(reply["reply"])
        if behind > 2:
            assert (reply["answer_tokens"], reply["finish_reason"]) == (2, "length")
        assert reply["thinking_tokens"] == record["thinking_tokens"]
    assert max(r["answer_tokens"] for r in whole[1]) > 2
    with pytest.raises(ValueError, match="max_answer_tokens must be 1 or more, not 0"):
        run(loaded, tmp_path / "other", max_answer_tokens=0)


def test_greedy_replies_are_those_that_each_question_gets_alone(loaded, whole):
    model, tokenizer, predictor = loaded
    for record in whole[1]:
        if record["strategy"] != "guidance":
            continue
        ids = encode_chat(tokenizer, record["question"])
        text, answer_tokens = "", 0
        for response in stream_generate(
            model,
            tokenizer,
            ids,
            predictor=predictor,
            thinking_budget=record["thinking_budget"],
            max_tokens=90,
        ):
            text += response.text
            is_answer = not response.is_thinking and response.finish_reason != "stop"
            answer_tokens += is_answer
        assert record["reply"] == text
        # What the model reasons on behind the close, and closes again, is told apart.
        behind = record["after_close_tokens"]
        assert record["answer_tokens"] + behind == answer_tokens
        assert behind == response.after_close_tokens
        assert record["thinking_tokens"] == response.thinking_tokens
        assert record["closed_by"] == response.closed_by


def test_shares_are_of_the_mean_without_a_budget(whole):
    full = [r["thinking_tokens"] for r in whole[1] if r["strategy"] == "full"]
    budgets = {r["thinking_budget"] for r in whole[1] if r["budget"] == "50%"}
    assert budgets == {round(0.5 * sum(full) / 4)}


def test_a_reply_that_never_ends_its_thinking_has_no_answer(loaded, whole, tmp_path):
    cut = run(loaded, tmp_path / "run", strategies=("full",), budgets=(), max_tokens=9)
    assert {record["closed_by"] for record in cut} == {None}
    for record in [*cut, *whole[1]]:
        if record["closed_by"] is None:
            assert record["answer_tokens"] == 0
            assert not record["correct"]
            assert "never closed" in record["grading_problem"]


@pytest.mark.parametrize(("batch_size", "budgets"), [(1, "20"), (8, "20,50%")])
def test_the_batch_size_changes_nothing(loaded, whole, tmp_path, batch_size, budgets):
    options = dict(batch_size=batch_size, budgets=parse_budgets(budgets))
    records = run(loaded, tmp_path / "run", **options)
    asked = [None, *budgets.split(",")]
    expected = [record for record in whole[1] if record["budget"] in asked]
    assert without_times(records) == without_times(expected)


def test_a_run_stopped_at_any_record_comes_to_the_same(loaded, whole, tmp_path):
    folder = tmp_path / "run"
    options = dict(temp=1.0, seed=3, strategies=("full", "guidance"))
    want = run(loaded, tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    for count in range(1, 14):

        def stop(progress: Progress, left=[count % 3 + 1]) -> None:  # noqa: B006
            left[0] -= progress.done > 0
            if not left[0]:
                raise Stop

        try:
            run(loaded, folder, progress=stop, **options)
        except Stop:
            # As a kill in the middle of a line would leave it.
            folder.mkdir(exist_ok=True)
            with (folder / RECORDS_FILE).open("ab") as file:
                file.write(b'{"id": "guidance@20/3')
    records = run(loaded, folder, **options)
    assert without_times(records) == without_times(want)
    lines = (folder / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(want) == len({json.loads(line)["id"] for line in lines})


def test_predicted_lengths_are_kept_however_a_run_ends(loaded, tmp_path, monkeypatch):
    folder, read = tmp_path / "run", []
    plain = run_module.estimate

    def counted(*args, **options):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(args[3])
        return plain(*args, **options)

    monkeypatch.setattr(run_module, "estimate", counted)
    options = dict(strategies=("full",), budgets=(), max_tokens=20)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, folder, **options)
    # As a kill in the middle of a line would leave it.
    with (folder / LENGTHS_FILE).open("ab") as file:
        file.write(b'{"id": "0')
    monkeypatch.setattr(run_module, "estimate", plain)
    seen = []
    records = run(loaded, folder, progress=seen.append, **options)
    assert [p.done for p in seen if p.arm == "predicted lengths"] == [2, 3]
    assert records == read_records(folder)
    want = run(loaded, tmp_path / "whole", **options)
    assert without_times(records) == without_times(want)


def test_lengths_of_another_model_are_not_taken(loaded, tmp_path):
    folder, options = tmp_path / "run", dict(strategies=("full",), budgets=())
    options |= dict(max_tokens=20)
    want = run(loaded, folder, **options)
    (folder / RECORDS_FILE).unlink()
    kept = (folder / LENGTHS_FILE).read_bytes()
    again = run(loaded, folder, **options)
    assert without_times(again) == without_times(want)
    assert (folder / LENGTHS_FILE).read_bytes() == kept
    (folder / RECORDS_FILE).unlink()
    run(loaded, folder, model_name="another", **options)
    lines = (folder / LENGTHS_FILE).read_bytes().splitlines()
    assert lines[:4] == kept.splitlines() and len(lines) == 8


def test_what_is_no_length_is_named(loaded, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LENGTHS_FILE).write_text('{"id": "a", "predicted_tokens": "long"}\n')
    message = r"lengths\.jsonl, line 1, is no predicted length"
    with pytest.raises(ValueError, match=message):
        run(loaded, folder, strategies=("full",), budgets=())


def test_one_predictor_guides_all_of_a_folder(loaded, tmp_path):
    folder, some = tmp_path / "run", dict(budgets=parse_budgets("20"), max_tokens=30)
    model, tokenizer, predictor = loaded
    none = model, tokenizer, None
    run(none, folder, strategies=("full",), **some)
    # Nothing was guided, so a predictor may come.
    run(loaded, folder, strategies=("full", "guidance"), **some)
    for other in (
        none,
        (model, tokenizer, prior_for(tokenizer, find_markers(tokenizer))),
    ):
        with pytest.raises(ValueError, match="another predictor"):
            run(other, folder, strategies=("full", "guidance"), **some)
    run((model, tokenizer, predictor), folder, strategies=("full",), **some)


def test_a_folder_that_does_not_tell_its_predictor_is_gone_on_with(loaded, tmp_path):
    """As one of an earlier version."""
    options = dict(strategies=("full",), max_tokens=20)
    want = run(loaded, tmp_path / "run", **options)
    file = tmp_path / "run" / SETTINGS_FILE
    settings = json.loads(file.read_text())
    del settings["predictor"]
    file.write_text(json.dumps(settings))
    assert run(loaded, tmp_path / "run", **options) == want


def test_records_without_settings_are_refused(loaded, tmp_path):
    options = dict(strategies=("full",), max_tokens=20)
    run(loaded, tmp_path / "run", **options)
    (tmp_path / "run" / SETTINGS_FILE).unlink()
    with pytest.raises(ValueError, match="no settings.json"):
        run(loaded, tmp_path / "run", **options)


def test_a_share_without_room_is_refused_before_other_arms(loaded, tmp_path):
    options = dict(strategies=("full", "wait"), budgets=parse_budgets("9000%"))
    with pytest.raises(ValueError, match="wait@9000%: max_tokens is 90"):
        run(loaded, tmp_path / "run", **options)


def test_samples_differ_and_the_seed_decides_them(loaded, tmp_path):
    options = dict(strategies=("full",), budgets=(), temp=1.0, num_samples=2)
    options |= dict(batch_size=8)
    one = run(loaded, tmp_path / "a", seed=1, **options)
    assert without_times(run(loaded, tmp_path / "b", seed=1, **options)) == (
        without_times(one)
    )
    other = run(loaded, tmp_path / "c", seed=2, **options)
    replies = [[r["reply"] for r in records] for records in (one, other)]
    assert replies[0] != replies[1]
    assert len(one) == 8
    assert one[0]["reply"] != one[1]["reply"]


def test_all_strategies_run(loaded, tmp_path):
    records = run(
        loaded,
        tmp_path / "run",
        strategies=tuple(STRATEGIES),
        budgets=parse_budgets("25%"),
        max_tokens=60,
        batch_size=12,
    )
    assert {r["strategy"] for r in records} == set(STRATEGIES)
    mean = sum(r["thinking_tokens"] for r in records if r["strategy"] == "full") / 4
    share = [r for r in records if r["budget"] == "25%" and r["strategy"] != "auto"]
    assert {r["thinking_budget"] for r in share} == {round(0.25 * mean)}
    for record in records:
        budget, used = record["thinking_budget"], record["thinking_tokens"]
        if record["strategy"] in ("budget-forcing", "truncate"):
            assert used <= budget
        elif record["strategy"] in ("guidance", "auto"):
            assert used <= 1.1 * budget
        elif record["strategy"] == "no-thinking":
            assert used == 0


def test_automatic_budgets_are_beside_a_fixed_one_of_the_same_mean(loaded, tmp_path):
    records = run(
        loaded,
        tmp_path / "run",
        strategies=("auto",),
        budgets=parse_budgets("20%,30"),
    )
    auto = [r for r in records if r["strategy"] == "auto"]
    assert {r["budget"] for r in auto} == {"20%"}
    for record in auto:
        expected = max(1, round(0.2 * record["predicted_tokens"]))
        assert record["thinking_budget"] == expected
    mean = round(sum(r["thinking_budget"] for r in auto) / len(auto))
    fixed = [r for r in records if r["strategy"] == "guidance"]
    assert {r["thinking_budget"] for r in fixed} == {mean}
    assert len(fixed) == len(auto) == 4


def test_more_strategies_can_be_added(loaded, whole, tmp_path):
    folder = tmp_path / "run"
    run(loaded, folder, strategies=("full",))
    before = (folder / RECORDS_FILE).read_bytes()
    assert without_times(run(loaded, folder)) == without_times(whole[1])
    assert (folder / RECORDS_FILE).read_bytes().startswith(before)


def test_a_run_grows_by_questions_and_samples_and_keeps_what_is_there(loaded, tmp_path):
    options = dict(strategies=("full", "truncate"), temp=1.0, max_tokens=60)
    options |= dict(batch_size=8)
    first_two = replace(TASK, problems=TASK.problems[:2])
    folder = tmp_path / "run"
    few = evaluate(*loaded, first_two, folder, budgets=parse_budgets("50%"), **options)
    before = (folder / RECORDS_FILE).read_bytes()
    grown = run(loaded, folder, num_samples=2, budgets=parse_budgets("50%"), **options)
    assert (folder / RECORDS_FILE).read_bytes().startswith(before)
    assert len(grown) == 2 * 4 * 2
    assert read_settings(folder)["problems"] == 4
    # A share stays the tokens that it came to with the first questions.
    (tokens,) = {r["thinking_budget"] for r in few if r["strategy"] == "truncate"}
    assert {r["thinking_budget"] for r in grown if r["budget"]} == {tokens}
    # What was added is what a run of all has.
    everything = run(
        loaded,
        tmp_path / "all",
        strategies=("full",),
        budgets=(),
        temp=1.0,
        max_tokens=60,
        num_samples=2,
        batch_size=8,
    )
    full = [r for r in grown if r["strategy"] == "full"]
    assert without_times(full) == without_times(everything)


@pytest.mark.parametrize(
    ("task", "samples", "message"),
    [
        (replace(TASK, problems=TASK.problems[:3]), 2, "problems 4, not 3, .* --limit"),
        (TASK, 1, "num_samples 2, not 1, .* set --num-samples as before or higher"),
        (
            replace(TASK, problems=(*TASK.problems[::-1], TASK.problems[0])),
            2,
            "is of a run with questions",
        ),
    ],
)
def test_a_run_does_not_shrink_nor_grow_other_questions(
    loaded, whole, tmp_path, task, samples, message
):
    settings = {**read_settings(whole[0]), "num_samples": 2, "temp": 1.0}
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / RECORDS_FILE).write_bytes((whole[0] / RECORDS_FILE).read_bytes())
    options = EvaluateOptions(
        num_samples=samples, max_tokens=90, sampling=Sampling(temp=1.0, seed=0)
    )
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path, task, options, "")


def test_a_run_at_work_can_be_read_without_disturbing_it(loaded, tmp_path):
    folder, seen = tmp_path / "run", []

    def look(progress: Progress) -> None:
        if progress.made == 2:
            with (folder / RECORDS_FILE).open("ab") as file:
                file.write(b'{"id": "full/')
            seen.extend(read_records(folder))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(loaded, folder, progress=look)
    assert len(seen) == 2
    # Reading mends nothing: what a program is writing is its own.
    assert (folder / RECORDS_FILE).read_bytes().endswith(b'{"id": "full/')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temp": 0.5}, "is of a run with temp 0.0, not 0.5: choose another"),
        ({"seed": 9}, "is of a run with seed 0, not 9"),
        ({"model_name": "other"}, "is of a run with model '', not 'other'"),
        ({"max_tokens": 5}, "is of a run with max_tokens 90, not 5"),
    ],
)
def test_a_folder_of_another_run_is_refused(loaded, tmp_path, change, message):
    run(loaded, tmp_path / "run", strategies=("no-thinking",), budgets=())
    with pytest.raises(ValueError, match=message):
        run(loaded, tmp_path / "run", strategies=("no-thinking",), **change)
    assert read_settings(tmp_path / "run")["temp"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ("cut",)}, "strategies must be some of full, .*, not cut"),
        ({"strategies": ()}, "not none"),
        ({"budgets": ()}, "The strategies budget-forcing, guidance need budgets"),
        (
            {"strategies": ("auto",), "budgets": parse_budgets("60")},
            "auto takes budgets that are shares, such as 63%, and there is none",
        ),
        ({"num_samples": 2}, "At temp 0 all 2 samples of a question"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        (
            {"hard_stop": None, "strategies": ("guidance", "guidance-no-hard-stop")},
            "choose guidance-no-hard-stop",
        ),
        ({"thinking_budget": 5}, "takes budgets for its strategies"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"seed": None}, "seed must be a number, not None"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    loaded, tmp_path, change, message
):
    with pytest.raises(ValueError, match=message):
        run(loaded, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_without_a_hard_stop_guidance_is_left_alone_with_closing(loaded, tmp_path):
    options = dict(budgets=parse_budgets("12"))
    free = run(
        loaded, tmp_path / "a", strategies=("guidance",), hard_stop=None, **options
    )
    alone = run(
        loaded, tmp_path / "b", strategies=("guidance-no-hard-stop",), **options
    )
    replies = [[r["reply"] for r in records] for records in (free, alone)]
    assert replies[0] == replies[1]
    assert max(r["thinking_tokens"] for r in free) > 1.1 * 12
    assert read_settings(tmp_path / "a")["hard_stop"] is None


def test_how_tokens_are_drawn_is_kept_with_a_run(loaded, tmp_path):
    options = dict(strategies=("no-thinking",), budgets=(), temp=1.0)
    odds = {"xtc_probability": 1.0, "xtc_threshold": 0.01, "min_tokens_to_keep": 2}
    plain = run(loaded, tmp_path / "plain", **options)
    drawn = run(loaded, tmp_path / "drawn", **options, **odds)
    assert [r["reply"] for r in plain] != [r["reply"] for r in drawn]
    with pytest.raises(ValueError, match="run with min_tokens_to_keep 2, not 1"):
        run(loaded, tmp_path / "drawn", **options)


def test_settings_that_a_folder_does_not_name_had_their_defaults(loaded, tmp_path):
    options = dict(strategies=("no-thinking",), budgets=())
    run(loaded, tmp_path, **options)
    file = tmp_path / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for name in ("guidance_tolerance", "xtc_probability", "min_tokens_to_keep"):
        del settings[name]
    file.write_text(json.dumps(settings), encoding="utf-8")
    run(loaded, tmp_path, **options)
    with pytest.raises(ValueError, match="guidance_tolerance 0.001, not 0.0"):
        run(loaded, tmp_path, **options, guidance_tolerance=0.0)


def test_what_nothing_guides_is_refused(loaded, tmp_path):
    with pytest.raises(ValueError, match="strategy guidance needs a predictor"):
        run((*loaded[:2], False), tmp_path / "run")
    with pytest.raises(ValueError, match="strategy auto needs a predictor"):
        run((*loaded[:2], None), tmp_path / "run", strategies=("auto",))
    records = run(
        (*loaded[:2], None), tmp_path / "run", strategies=("full", "budget-forcing")
    )
    assert {r["predicted_tokens"] for r in records} == {None}


def test_an_invalid_record_is_named(loaded, tmp_path):
    (tmp_path / RECORDS_FILE).write_text('{"id": "x"}\n{"id": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1, is no record of an evaluation"):
        read_records(tmp_path)


def test_records_that_did_not_count_what_was_put_in_are_refused(whole, tmp_path):
    old = {n: v for n, v in whole[1][0].items() if n != "total_tokens"}
    (tmp_path / RECORDS_FILE).write_text(json.dumps(old) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1, does not count the tokens that"):
        read_records(tmp_path)


def test_a_folder_without_records_is_told(tmp_path):
    with pytest.raises(ValueError, match="name the --output folder"):
        read_records(tmp_path)


def test_two_runs_in_one_folder_are_refused(loaded, tmp_path):
    def again(progress: Progress) -> None:
        with pytest.raises(ValueError, match="Another program is writing"):
            run(loaded, tmp_path / "run")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path / "run", progress=again)


def test_a_grader_that_fails_is_in_the_record(loaded, tmp_path, monkeypatch):
    def grade(*args):
        return run_module.grading.Grade(False, None, "it cannot be parsed")

    monkeypatch.setattr(run_module.grading, "grade", grade)
    records = run(loaded, tmp_path / "run", strategies=("no-thinking",), budgets=())
    assert {r["grading_problem"] for r in records} == {"it cannot be parsed"}
    assert not any(r["correct"] for r in records)
