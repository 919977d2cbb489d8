"""The command `predictors`: those that are published, and what is kept of them.

Knows how they are shown; nothing of how they are fetched.
"""

import json
from typing import TYPE_CHECKING

import click

from .command import Command
from .parameters import command_option

if TYPE_CHECKING:
    from ..models.predictor_source import KeptPredictor


@click.command(cls=Command)
@command_option(
    "--remove",
    metavar="NAME",
    group="Predictor",
    help="Remove what is kept of a predictor; the next use fetches it again.",
)
@command_option(
    "--json", "as_json", is_flag=True, group="Output", help="Print one JSON object."
)
def predictors(remove: str | None, as_json: bool) -> None:
    """List the predictors that are published, and what is kept of them here.

    --predictor takes each by its name, with any build of its base model. Only the files
    that hold it are downloaded; it is converted once and kept in the user's cache.
    """
    from ..files.hub import in_gb
    from ..models.predictor_source import kept_predictors, remove_kept

    if remove is not None:
        freed = remove_kept(remove)
        click.echo(f"Removed {remove}: {in_gb(freed)}.", err=True)
        return
    rows = _rows(kept_predictors())
    if as_json:
        click.echo(json.dumps({"predictors": rows}, indent=2))
    else:
        click.echo(_table(rows))
        click.echo(
            "Sizes are those of the predictors; a download is of the whole files that "
            "hold them.",
            err=True,
        )


def _rows(kept: "list[KeptPredictor]") -> list[dict]:
    """What is known of each, those first that are published."""
    from ..models.published import PUBLISHED

    sizes: dict[str, int] = {}
    for one in kept:
        sizes[one.name] = sizes.get(one.name, 0) + one.nbytes
    base_models = {one.name: one.base_model for one in PUBLISHED}
    nbytes = {one.name: one.nbytes for one in PUBLISHED}
    return [
        {
            "name": name,
            "base_model": base_models.get(name),
            "bytes": nbytes.get(name) or sizes[name],
            "kept_bytes": sizes.get(name, 0),
        }
        for name in dict.fromkeys([*base_models, *sizes])
    ]


def _table(rows: list[dict]) -> str:
    from ..files.hub import in_gb

    cells = [("predictor", "base model", "size", "kept here")] + [
        (
            row["name"],
            row["base_model"] or "not among the published ones",
            in_gb(row["bytes"]),
            in_gb(row["kept_bytes"]) if row["kept_bytes"] else "no",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)
