"""How often a model is right without a budget, by PyTorch and transformers alone.

A check of `mlx-budget evaluate --strategies full` by other code: the same folder,
questions, instruction, temperature and length, with draws of PyTorch's own. The two
should agree within their intervals. Questions and grading are those of
`mlx_budget.evaluate`. Needs PyTorch (``pip install -e ".[bench,eval]"``), and takes an
NVIDIA GPU where there is one.
"""

import json
from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlx_budget.evaluate import grading
from mlx_budget.evaluate.tasks import load_task


@click.command(help=__doc__)
@click.option("--model", required=True, help="Folder of the model.")
@click.option("--data", type=Path, required=True, help="File of questions.")
@click.option("--instruction", default="", help="Text to put behind each question.")
@click.option("--marker", required=True, help="Text that closes thinking.")
@click.option("--limit", type=int, help="Take the first so many questions.")
@click.option("--max-tokens", default=400, show_default=True)
@click.option("--temp", default=0.6, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=Path, required=True, help="File of replies, .jsonl.")
def main(
    model: str,
    data: Path,
    instruction: str,
    marker: str,
    limit: int | None,
    max_tokens: int,
    temp: float,
    seed: int,
    output: Path,
) -> None:
    task = load_task(None, data, limit, instruction)
    replies = generate(model, task, max_tokens, temp, seed)
    records = []
    for problem, (text, tokens) in zip(task.problems, replies, strict=True):
        answer = grading.answer_of(text, marker, is_thinking=marker not in text)
        grade = grading.grade(answer, problem.answer, problem.choices)
        record = {"id": problem.id, "reply": text, "tokens": tokens}
        records.append({**record, "correct": grade.correct})
    output.write_text("".join(json.dumps(record) + "\n" for record in records))
    right = sum(record["correct"] for record in records)
    closed = sum(marker in record["reply"] for record in records)
    mean = sum(record["tokens"] for record in records) / len(records)
    click.echo(
        f"{right} of {len(records)} right, {closed} with the marker, "
        f"{mean:.0f} tokens on average"
    )


def generate(
    folder: str, task, max_tokens: int, temp: float, seed: int
) -> list[tuple[str, int]]:
    """The reply to each question of a task, and its number of tokens, in one batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    prompts = []
    for problem in task.problems:
        text = f"{problem.question}\n\n{task.instruction}".strip()
        chat = [{"role": "user", "content": text}]
        prompts.append(
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        )
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(device)
    torch.manual_seed(seed)
    with torch.inference_mode():
        whole = model.eval().generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=True,
            temperature=temp,
            top_p=1.0,
            top_k=0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    replies = []
    for row in whole[:, batch["input_ids"].shape[1] :].tolist():
        if tokenizer.eos_token_id in row:
            row = row[: row.index(tokenizer.eos_token_id)]
        replies.append((tokenizer.decode(row), len(row)))
    return replies


if __name__ == "__main__":
    main()
