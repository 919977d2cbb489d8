"""Questions of GSM8K as chats that make SmolLM2-135M reason line by line.

SmolLM2 has no thinking block. Two worked examples show it to put each step on a line of
its own and the result behind "Answer:", which stands for the closing marker: what comes
before it is its thinking (--thinking-start-token "" --thinking-end-token "Answer:").
"""

import json
from pathlib import Path

import click

SYSTEM_PROMPT = (
    "You solve problems step by step, each step on a line of its own. The last line is "
    '"Answer:" and a number.'
)
EXAMPLES = (
    (
        "Tom has 3 boxes with 12 pens each. He gives away 10 pens. How many pens has "
        "he left?",
        "Tom has 3 boxes with 12 pens each.\nThat is 3 * 12 = 36 pens.\nHe gives away "
        "10 pens.\n36 - 10 = 26 pens are left.\nAnswer: 26",
    ),
    (
        "A shirt costs $20 and trousers cost twice as much. Anna buys two shirts and "
        "one pair of trousers. How much does she pay?",
        "Trousers cost 2 * 20 = $40.\nTwo shirts cost 2 * 20 = $40.\nTogether they "
        "cost 40 + 40 = $80.\nLet me check this: 20 + 20 + 40 = 80.\nAnswer: 80",
    ),
)


def messages(question: str) -> list[dict[str, str]]:
    """The chat that asks a question."""
    turns = [("system", SYSTEM_PROMPT)]
    turns += [
        (role, text)
        for pair in EXAMPLES
        for role, text in zip(_ROLES, pair, strict=True)
    ]
    turns.append(("user", question))
    return [{"role": role, "content": text} for role, text in turns]


_ROLES = ("user", "assistant")


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="GSM8K's train.jsonl or test.jsonl (github.com/openai/grade-school-math).",
)
@click.option("--limit", type=click.IntRange(min=1), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(data: Path, limit: int, output: Path) -> None:
    """Writes the first questions of a file as prompts."""
    lines = data.read_text(encoding="utf-8").splitlines()[:limit]
    records = [{"messages": messages(json.loads(line)["question"])} for line in lines]
    text = "".join(json.dumps(record) + "\n" for record in records)
    output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
