"""The lengths that a predictor expects of questions, kept as they come.

A predictor reads each question by itself, which takes a large model minutes for a task.
Knows predictor and file; nothing of replies.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..engine.estimate import estimate
from ..engine.known_prompts import KnownPrompts
from ..files.records import open_records
from ..method.predictor import Predictor
from .folder import fingerprint
from .options import EvaluateOptions
from .problems import Problem
from .questions import Questions

LENGTHS_FILE = "lengths.jsonl"


def expect_lengths(
    questions: Questions,
    predictor: Predictor | bool | None,
    problems: Sequence[Problem],
    options: EvaluateOptions,
    known_prompts: KnownPrompts,
    file: Path,
    model_name: str,
    progress: Callable[[int], None],
) -> dict[str, float]:
    """The median of the length that is expected of each problem, in tokens, by its id.

    Args:
        questions (Questions): With the model.
        predictor (Predictor): One that knows lengths.
        problems (sequence): What to read.
        options (EvaluateOptions): Of the run.
        known_prompts (KnownPrompts): Gets the prompts that were read.
        file (Path): What an earlier run has read is taken from here, and every length
            is on the disk before the next is looked for. Those of other prompts, models
            and predictors stay there and count as nothing.
        model_name (str): What tells the model from others.
        progress (Callable): Called before each reading with the number of lengths that
            are known.

    Raises:
        ValueError: If another program has the file, or it holds something else.
    """
    thinking = options.thinking
    whose = [model_name, fingerprint(predictor), thinking.start, thinking.end]
    prompts = {problem.id: questions.encode(problem) for problem in problems}
    names = {
        problem: hashlib.sha256(json.dumps([*whose, prompt]).encode()).hexdigest()[:16]
        for problem, prompt in prompts.items()
    }
    with open_records(file) as lengths:
        there = {r["id"]: r["predicted_tokens"] for r in lengths.read(_check_length)}
        found = {
            problem: there[name] for problem, name in names.items() if name in there
        }
        for problem, prompt in prompts.items():
            if problem in found:
                continue
            progress(len(found))
            found[problem] = estimate(
                questions.model,
                questions.tokenizer,
                predictor,
                prompt,
                thinking_start=thinking.start,
                thinking_end=thinking.end,
                prefill_step_size=options.prefill_step_size,
                known_prompts=known_prompts,
            ).median
            lengths.append({"id": names[problem], "predicted_tokens": found[problem]})
    return found


def _check_length(record: object, where: str) -> None:
    """Raises a ValueError unless a line holds the length of a question."""
    known = record if isinstance(record, dict) else {}
    is_named = isinstance(known.get("id"), str)
    if not is_named or not isinstance(known.get("predicted_tokens"), int | float):
        raise ValueError(
            f"{where} is no predicted length of a question: remove the file, or choose "
            "another --output."
        )
