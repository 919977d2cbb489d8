"""The command `convert`. Knows its options; nothing of checkpoints."""

from pathlib import Path
from typing import Any

import click

from ..engine.settings import ModelSource
from ..interrupts import raise_again
from .options import COUNT, Shown, options_from
from .progress import bars_until_stopped


@click.command()
@click.option(
    "--hf-path",
    "--model",
    "hf_path",
    required=True,
    help="Folder or Hub name of the Budget Guidance checkpoint.",
)
@click.option(
    "--mlx-path", default="mlx_model", show_default=True, help="Folder to make."
)
@click.option("-q", "--quantize", is_flag=True, help="Quantise the language model.")
@click.option("--q-bits", type=int, cls=Shown, shown="4", help="Bits per weight.")
@click.option(
    "--q-group-size", type=int, cls=Shown, shown="64", help="Quantisation group."
)
@click.option(
    "--q-mode",
    type=click.Choice(["affine", "mxfp4", "nvfp4", "mxfp8"]),
    default="affine",
    show_default=True,
    help="Quantisation mode.",
)
@click.option(
    "--quant-predicate",
    type=click.Choice(["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]),
    help="Mixed-bit quantisation recipe.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    cls=Shown,
    shown="as they are",
    help="Type of the weights that are not quantised.",
)
@click.option(
    "--predictor-q-bits",
    type=click.Choice(["none", "4", "8"]),
    cls=Shown,
    shown="8 with -q, else none",
    help="Bits per weight of the predictor.",
)
@click.option(
    "--predictor-heads",
    type=COUNT,
    cls=Shown,
    shown="its width / 64",
    help="Attention heads of the predictor.",
)
@click.option(
    "--predictor-only",
    is_flag=True,
    help="Write the predictor alone, for any build of its base model; from the Hub, "
    "download only the shards that hold it.",
)
@click.option(
    "--tokenizer",
    help="Folder or Hub name to take the tokenizer from: the base model, when the "
    "checkpoint has none.",
)
@click.option("--upload-repo", help="Hub repository to upload the result to.")
@options_from(source=ModelSource, only=["revision", "trust_remote_code"])
def convert(source: ModelSource, predictor_q_bits: str | None, **options: Any) -> None:
    """Convert a Budget Guidance checkpoint for mlx-lm."""
    from ..models.convert import convert

    if predictor_q_bits is None:
        predictor_q_bits = "8" if options["quantize"] else "none"
    bits = None if predictor_q_bits == "none" else int(predictor_q_bits)
    raise_again()
    with bars_until_stopped(lambda: _how_to_go_on(**options)):
        path = convert(
            predictor_q_bits=bits,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            **options,
        )
    click.echo(f"Converted to {path}.", err=True)


def _how_to_go_on(
    hf_path: str, mlx_path: str, upload_repo: str | None, **_: Any
) -> str:
    if upload_repo is not None and Path(mlx_path).exists():
        return (
            f"Stopped; {mlx_path} is converted, but was not uploaded: run `hf upload "
            f"{upload_repo} {mlx_path}`."
        )
    from ..files.hub import is_local

    downloads = "" if is_local(hf_path) else " Whole files of the download are kept."
    return f"Stopped; {mlx_path} was not made: run the same again.{downloads}"
