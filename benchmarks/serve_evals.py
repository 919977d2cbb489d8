"""Whether evaluation harnesses bring their budgets to the server, and what they score.

Runs in environments of their own, against a server of the built-in model:

    python -m venv inspect && inspect/bin/pip install inspect-ai openai anthropic click
    python -m venv lmeval && lmeval/bin/pip install 'lm-eval[api]' click
    mlx-budget serve --port 8080 &
    inspect/bin/python benchmarks/serve_evals.py --harness inspect --port 8080
    lmeval/bin/python benchmarks/serve_evals.py --harness lm-eval --port 8080
    lmeval/bin/python benchmarks/serve_evals.py --harness lm-eval-choices --port 8080
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from recorder import recording

DEMO = Path(__file__).parents[1] / "mlx_budget" / "demo" / "model"
PROBLEMS = Path(__file__).parents[1] / "mlx_budget" / "demo" / "problems.jsonl"
TASK = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: 400
filter_list:
  - name: last-number
    filter:
      - function: regex
        regex_pattern: "(-?\\\\d+)"
        group_select: -1
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOICES = """\
task: guesses
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
output_type: multiple_choice
test_split: test
doc_to_text: "<|im_start|>user\\n{{{{question}}}}<|im_end|>\\n<|im_start|>assistant\\n\
<think>\\n{{{{thinking}}}}</think>\\n\\nThe answer is"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
# What came of one way to ask: the way, and the accuracy.
Score = tuple[str, str]


def inspect_scores(url: str, problems: list[dict[str, str]]) -> Iterator[Score]:
    """Inspect's, over each interface."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import includes

    ways: dict[str, tuple[str, str, dict[str, Any], GenerateConfig]] = {
        "chat, reasoning_effort": (
            "openai-api/local/demo",
            f"{url}/v1",
            {},
            GenerateConfig(reasoning_effort="low"),
        ),
        "chat, extra_body": (
            "openai-api/local/demo",
            f"{url}/v1",
            {},
            GenerateConfig(extra_body={"thinking_budget": 90}),
        ),
        "responses, reasoning_effort": (
            "openai/demo",
            f"{url}/v1",
            {"responses_api": True},
            GenerateConfig(reasoning_effort="low", reasoning_summary="auto"),
        ),
        "messages, reasoning_effort": (
            "anthropic/demo",
            url,
            {},
            GenerateConfig(reasoning_effort="low", max_tokens=500),
        ),
    }
    samples = [Sample(input=p["question"], target=p["answer"]) for p in problems]
    for way, (name, base_url, options, config) in ways.items():
        model = get_model(
            name, base_url=base_url, api_key="none", config=config, **options
        )
        task = Task(dataset=samples, scorer=includes())
        with tempfile.TemporaryDirectory() as logs:
            (log,) = eval(task, model=model, display="none", log_dir=logs)
        if log.results is None:
            yield way, str(log.error and log.error.message)[:160]
        else:
            (score,) = log.results.scores
            yield way, f"{score.metrics['accuracy'].value:.2f}"


def lm_eval_scores(url: str, problems: list[dict[str, str]]) -> Iterator[Score]:
    """lm-eval's, over chat completions."""
    for way in ("thinking_budget=90", "reasoning_effort=low"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "problems.jsonl")
            file.write_text("".join(json.dumps(p) + "\n" for p in problems))
            Path(folder, "sums.yaml").write_text(TASK.format(file=file))
            program = str(Path(sys.executable).parent / "lm_eval")
            model = f"model=demo,base_url={url}/v1/chat/completions,num_concurrent=4"
            command = [program, "--model", "local-chat-completions"]
            command += ["--model_args", model, "--tasks", "sums"]
            command += ["--include_path", folder, "--apply_chat_template"]
            done = subprocess.run(
                [*command, "--gen_kwargs", way],
                env={**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
            )
        found = re.search(r"exact_match\|\W+\|\s*([\d.]+)", done.stdout)
        yield f"chat, {way}", found[1] if found else done.stderr[-160:]


def lm_eval_guesses(url: str, problems: list[dict[str, str]]) -> Iterator[Score]:
    """lm-eval's choices between a right and a wrong answer, over text completions.

    Behind a thought that says the answer, and behind one that says the wrong one.
    """
    for way, thought in (("the answer thought", "answer"), ("the other", "wrong")):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "problems.jsonl")
            with file.open("w") as out:
                for p in problems:
                    told: dict[str, Any] = {**p, "wrong": str(int(p["answer"]) + 1)}
                    told["choices"] = [f"{told[k]}." for k in ("answer", "wrong")]
                    told["thinking"] = f"So {told[thought]}.\n**Final Answer**\n"
                    out.write(json.dumps(told) + "\n")
            Path(folder, "guesses.yaml").write_text(CHOICES.format(file=file))
            program = str(Path(sys.executable).parent / "lm_eval")
            model = f"model=demo,base_url={url}/v1/completions,num_concurrent=1"
            model += f",tokenizer={DEMO},tokenizer_backend=huggingface,max_length=2048"
            command = [program, "--model", "local-completions", "--batch_size", "4"]
            command += ["--model_args", model, "--tasks", "guesses"]
            done = subprocess.run(
                [*command, "--include_path", folder],
                env={**os.environ, "OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
            )
        found = re.search(r"\|acc\s*\|\W+\|\s*([\d.]+)", done.stdout)
        yield f"text completions, {way}", found[1] if found else done.stderr[-400:]


HARNESSES = {"inspect": inspect_scores, "lm-eval": lm_eval_scores}
HARNESSES["lm-eval-choices"] = lm_eval_guesses


@click.command()
@click.option("--harness", type=click.Choice([*HARNESSES]), required=True)
@click.option("--port", type=int, required=True, help="Of the server.")
@click.option("--problems", default=10, show_default=True)
def main(harness: str, port: int, problems: int) -> None:
    """Prints a table of ways to ask, the budgets that were told, and accuracies."""
    lines = PROBLEMS.read_text().splitlines()[:problems]
    print("| asked by | requests | budgets told | accuracy |")
    print("|---|---|---|---|")
    requests: list[dict[str, Any]] = []
    with recording(port, requests) as url:
        for way, score in HARNESSES[harness](url, [*map(json.loads, lines)]):
            found = (re.findall(r'"budget": (\d+)', r["reply"]) for r in requests)
            told = sorted({int(budgets[-1]) for budgets in found if budgets})
            sent = sorted({f"{r['path']} {r['status']}" for r in requests})
            span = " to ".join(map(str, sorted({told[0], told[-1]}))) if told else "-"
            print(f"| {way} | {len(requests)} x {', '.join(sent)} | {span} | {score} |")
            requests.clear()


if __name__ == "__main__":
    main()
