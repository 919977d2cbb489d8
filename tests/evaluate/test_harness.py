"""Tasks of the LM Evaluation Harness, and our models as a model of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_budget import demo
from mlx_budget.evaluate import harness
from mlx_budget.evaluate.harness import (
    HarnessRequest,
    load_harness_task,
    parse_request,
    until_stop,
)
from mlx_budget.evaluate.run import evaluate
from mlx_budget.evaluate.tasks import load_task

GENERATING = """
task: local_sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "What is {{{{a}}}} + {{{{b}}}} + {{{{c}}}}?"
doc_to_target: "{{{{a + b + c}}}}"
generation_kwargs: {{until: ["Question:"], max_gen_toks: 30, do_sample: false}}
filter_list:
  - name: first-number
    filter: [{{function: regex, regex_pattern: "(-?[0-9]+)"}}, {{function: take_first}}]
  - name: raw
    filter: [{{function: take_first}}]
metric_list: [{{metric: exact_match}}]
"""
CHOOSING = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is {{{{a}}}} + {{{{b}}}}?"
doc_to_choice: "{{{{[(a - b)|string, (a + b)|string]}}}}"
doc_to_target: 1
"""
needs_harness = pytest.mark.skipif(
    not harness.importlib.util.find_spec("lm_eval"),
    reason="the LM Evaluation Harness is not installed: pip install lm-eval",
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a task's YAML beside its data."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [
        {"a": 7, "b": 2, "c": 5},
        {"a": 3, "b": 9, "c": 4},
        {"a": 1, "b": 6, "c": 8},
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(template: str) -> str:
        file = tmp_path / "task.yaml"
        file.write_text(template.format(data=data))
        return f"lm-eval:{file}"

    return write


def test_a_request_names_a_task_a_filter_a_metric_and_a_folder():
    assert parse_request("lm-eval:gsm8k") == HarnessRequest("gsm8k")
    assert parse_request("lm-eval:a/b.yaml,filter=raw,metric=acc,include_path=c") == (
        HarnessRequest("a/b.yaml", "raw", "acc", "c")
    )


@pytest.mark.parametrize("text", ["lm-eval:", "lm-eval:x,raw", "lm-eval:x,shots=5"])
def test_a_request_of_another_form_is_refused(text):
    with pytest.raises(
        ValueError, match="is written lm-eval:NAME, or lm-eval:NAME,fil"
    ):
        parse_request(text)


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install "mlx-budget\[lm-eval\] @ git'):
        load_task("lm-eval:gsm8k", None)


def test_an_answer_ends_at_a_stop_sequence():
    assert until_stop("\n\n5\n\nQuestion: 6", ["\n\n", "Question:"]) == "5"
    assert until_stop("5 Question: 6", "Question:") == "5 "
    assert until_stop(" 5", None) == "5"


@needs_harness
def test_a_local_task_is_asked_and_graded_by_its_own_filter_and_metric(write):
    task = load_task(write(GENERATING), None, limit=2)
    assert [p.question for p in task.problems] == [
        "What is 7 + 2 + 5?",
        "What is 3 + 9 + 4?",
    ]
    assert task.problems[0].answer == "14"
    assert task.instruction == ""
    first = task.problems[0]
    verdict = task.grader(first, "It is 14, not 15.")
    assert (verdict.correct, verdict.extracted) == (True, "14")
    assert verdict.rule == "lm-eval: first-number exact_match"
    assert not task.grader(first, "It is 15, not 14.").correct
    # What stands behind a stop sequence is no part of the answer.
    assert not task.grader(first, "Question: 14").correct
    assert "never closed" in task.grader(first, None).problem


@needs_harness
def test_the_filter_and_the_metric_can_be_chosen(write):
    name = write(GENERATING)
    task = load_harness_task(f"{name},filter=raw")
    assert not task.grader(task.problems[0], "It is 14").correct
    assert task.grader(task.problems[0], "14").correct
    other = load_harness_task(f"{name},metric=bleu")
    problem = other.grader(other.problems[0], "14").problem
    assert "there is no metric 'bleu', only exact_match" in problem
    with pytest.raises(ValueError, match="no filter 'x'; it has first-number, raw"):
        load_harness_task(f"{name},filter=x")


@needs_harness
def test_of_multiple_choices_the_letter_is_asked_for(write):
    task = load_task(write(CHOOSING), None)
    problem = task.problems[0]
    assert problem.question == "What is 7 + 2?\n\nA. 5\nB. 9"
    assert (problem.answer, problem.choices) == ("B", True)
    assert task.instruction == "Answer with the letter of the right choice."
    # It is graded as all choices are.
    assert task.grader(problem, "B") is None


@needs_harness
@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            GENERATING.replace("generate_until", "loglikelihood"),
            "compares likelihoods .*choose a task of the kind generate_until",
        ),
        (GENERATING + "unsafe_code: true\n", "local_sums runs code"),
        (GENERATING.replace("{{{{a}}}}", "{{{{a"), "cannot read the task"),
    ],
)
def test_a_task_that_asks_for_no_reply_is_refused(write, template, message):
    with pytest.raises(ValueError, match=message) as e:
        load_task(write(template), None)
    assert "\n" not in str(e.value)


@needs_harness
def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ValueError, match="There is no file .*gone.yaml"):
        load_task(f"lm-eval:{tmp_path / 'gone.yaml'}", None)


@needs_harness
def test_a_task_of_the_harness_is_evaluated(write, tmp_path):
    from mlx_budget import load

    task = load_task(write(GENERATING), None)
    records = evaluate(
        *load(demo.NAME),
        task,
        tmp_path / "run",
        strategies=("full",),
        budgets=(),
        temp=0.0,
        max_tokens=200,
    )
    assert len(records) == 3
    for record in records:
        said = record["reply"].rpartition("The answer is ")[2].rstrip(".\n")
        assert record["correct"] == (said == record["reference"])
        assert record["grading_rule"] == "lm-eval: first-number exact_match"


@needs_harness
def test_our_model_answers_the_harness_without_its_thinking(write):
    from lm_eval.api.registry import get_model
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from mlx_budget.evaluate.lm_eval import BudgetLM

    assert get_model("mlx-budget") is BudgetLM
    path = write(GENERATING).removeprefix("lm-eval:")
    with harness._silence():
        results = simple_evaluate(
            model="mlx-budget",
            model_args={"model": demo.NAME, "thinking_budget": 60, "max_tokens": 200},
            tasks=[path],
            batch_size=2,
            task_manager=TaskManager(include_defaults=False),
        )
    samples = results["samples"]["local_sums"]
    assert len(samples) == 6  # of both filters
    for sample in samples:
        answer = sample["resps"][0][0]
        assert answer.startswith("The answer is ")
        assert "Next" not in answer
    scores = results["results"]["local_sums"]
    first = [s for s in samples if s["filter"] == "first-number"]
    right = [str(s["target"]) == s["filtered_resps"][0] for s in first]
    assert scores["exact_match,first-number"] == sum(right) / 3 > 0


@needs_harness
def test_likelihoods_are_refused_by_name_and_options_too():
    from mlx_budget.evaluate.lm_eval import BudgetLM

    model = BudgetLM(device="gpu", batch_size="4")
    with pytest.raises(ValueError, match="asks for loglikelihood, in which nothing"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 'auto'"):
        BudgetLM(batch_size="auto")
    with pytest.raises(ValueError, match="There is no option 'thinking_budgets'"):
        BudgetLM(thinking_budgets=5)
    with pytest.raises(ValueError, match="thinking_budget must be"):
        BudgetLM(thinking_budget=-7)
    chat = model.apply_chat_template([{"role": "user", "content": "What is 1 + 2?"}])
    assert "What is 1 + 2?" in chat
    assert model.tokenizer_name == "demo"


@needs_harness
def test_the_command_of_the_harness_knows_our_model(write, tmp_path):
    path = write(GENERATING).removeprefix("lm-eval:")
    arguments = ["--model", "mlx-budget", "--model_args", "thinking_budget=60"]
    child = subprocess.run(
        [sys.executable, "-m", "mlx_budget.evaluate.lm_eval", *arguments]
        + ["--tasks", path, "--limit", "1", "--output_path", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr
    assert "local_sums" in child.stdout
    (file,) = Path(tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "mlx-budget"
    assert "exact_match,raw" in results["results"]["local_sums"]
