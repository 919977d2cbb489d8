"""Prompts, what is written of the replies to them, and the call that writes it."""

import json
from pathlib import Path

from mlx_budget.train.traces import TraceStats, write_traces

PROMPTS = ["What is 14 + 7?", "What is 35 + 27?", "What is 9 + 80?", "Is it 3 ≤ 4?"]
# Each of these replies closes its thinking.
GREEDY = {"temp": 0.0, "max_tokens": 60, "batch_size": 4}


def records_of(file: Path) -> dict[str, dict]:
    """The records of a file by their ids; every line is one, and no id comes twice."""
    text = file.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    records = {line["id"]: line for line in lines}
    assert len(records) == len(lines)
    return records


def write(loaded, output: Path, prompts=PROMPTS, **options) -> TraceStats:
    return write_traces(*loaded[:2], prompts, output, **{**GREEDY, **options})
