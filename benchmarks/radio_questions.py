"""Questions with four choices: those of the American radio amateurs' examination.

The pool for the highest class, of which a machine-readable copy is in OpenAI's package
`evals` (MIT). Questions about a figure are left out. Written for `mlx-budget evaluate
--data` and `traces --data`: the first `--held-out` questions of a fixed random order to
answer, the rest to learn from.
"""

import json
import random
import re
import tempfile
import zipfile
from pathlib import Path

import click

from wheels import download

WHEEL = "evals==3.0.1.post1"
MEMBER = "evals/registry/data/fcc_amateur_extra/samples.jsonl"
CHOICE = re.compile(r"\n([A-D])\. ")
SEED = 0


def read_questions(samples: str) -> list[dict]:
    """The questions of the pool, each with its choices and the letter of the right one.

    Those about a figure are left out, and those that are not a question and choices.
    """
    found = []
    for i, line in enumerate(samples.splitlines()):
        record = json.loads(line)
        question, *rest = CHOICE.split(record["input"][-1]["content"].strip())
        letters, choices = rest[::2], [text.strip() for text in rest[1::2]]
        is_whole = letters == list("ABCD") and record["ideal"] in letters
        if not is_whole or re.search(r"\bFigure\b", question, re.IGNORECASE):
            continue
        found.append(
            {
                "id": str(i),
                "question": question.strip(),
                "choices": choices,
                "answer": record["ideal"],
            }
        )
    return found


@click.command(help=__doc__)
@click.option("--output", type=Path, required=True, help="Folder for two .jsonl files.")
@click.option("--held-out", default=100, show_default=True, help="Questions to answer.")
def main(output: Path, held_out: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        download([WHEEL], Path(folder))
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            questions = read_questions(wheel.read(MEMBER).decode())
    random.Random(SEED).shuffle(questions)
    output.mkdir(parents=True, exist_ok=True)
    parts = {"test": questions[:held_out], "train": questions[held_out:]}
    for name, part in parts.items():
        lines = "".join(json.dumps(question) + "\n" for question in part)
        (output / f"{name}.jsonl").write_text(lines)
        click.echo(f"{output / name}.jsonl: {len(part)} questions")


if __name__ == "__main__":
    main()
