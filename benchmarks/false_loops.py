"""How often text that nobody wrote in a loop is taken for one, and what a token costs.

Reads the files of folders as if a model had thought them, or the replies of an
evaluation (``records.jsonl``) one by one.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click
from transformers import AutoTokenizer

from mlx_budget import demo
from mlx_budget.engine.loops import LoopFinder, Repetition


@click.command()
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    default=demo.FOLDER,
    show_default="the demo's",
    help="Folder or Hub name of a tokenizer.",
)
@click.option("--characters", default=200_000, show_default=True, help="Of each text.")
def main(places: tuple[Path, ...], tokenizer: str, characters: int) -> None:
    """Counts texts, tokens, texts with a loop in them, and microseconds a token."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    texts = tokens = loops = 0
    seconds = 0.0
    for name, text in _texts(places):
        ids = loaded.encode(text[:characters], add_special_tokens=False)
        begin = time.perf_counter()
        loop = _first_loop(ids)
        seconds += time.perf_counter() - begin
        texts, tokens = texts + 1, tokens + len(ids)
        if loop is not None:
            loops += 1
            click.echo(f"{name}: {loaded.decode(loop)!r}")
    click.echo(
        f"{texts:,} texts, {tokens:,} tokens, {loops} with a loop, "
        f"{1e6 * seconds / max(tokens, 1):.1f} microseconds a token"
    )


def _first_loop(tokens: list[int]) -> list[int] | None:
    """The cycle of the first loop in a text, if there is any."""
    finder = LoopFinder()
    for token in tokens:
        finder.take(token)
        if finder.repetition is not Repetition.NONE:
            return finder.cycle
    return None


def _texts(places: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    for place in places:
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if file.name == "records.jsonl":
                for line in text.splitlines():
                    record = json.loads(line)
                    yield record["id"], record["reply"]
            else:
                yield str(file), text


if __name__ == "__main__":
    main()
