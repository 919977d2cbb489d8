"""The command `convert`. Knows its options; nothing of checkpoints."""

from pathlib import Path
from typing import Any

import click

from ..engine.settings import ModelSource
from ..interrupts import raise_again
from .command import Command
from .completion import complete_model
from .options import options_from
from .parameters import COUNT, command_option
from .progress import bars_until_stopped


@click.command(cls=Command)
@command_option(
    "--hf-path",
    "--model",
    "hf_path",
    shell_complete=complete_model,
    required=True,
    group="Model",
    help="Folder or Hub name of the Budget Guidance checkpoint.",
)
@command_option(
    "--mlx-path",
    default="mlx_model",
    show_default=True,
    group="Output",
    help="Folder to make.",
)
@command_option(
    "-q",
    "--quantize",
    is_flag=True,
    group="Quantisation",
    help="Quantise the language model.",
)
@command_option(
    "--q-bits", type=COUNT, shown="4", group="Quantisation", help="Bits per weight."
)
@command_option(
    "--q-group-size",
    type=COUNT,
    shown="64",
    group="Quantisation",
    help="Quantisation group.",
)
@command_option(
    "--q-mode",
    type=click.Choice(["affine", "mxfp4", "nvfp4", "mxfp8"]),
    default="affine",
    show_default=True,
    group="Quantisation",
    help="Quantisation mode.",
)
@command_option(
    "--quant-predicate",
    type=click.Choice(["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]),
    group="Quantisation",
    help="Mixed-bit quantisation recipe.",
)
@command_option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    shown="as they are",
    group="Quantisation",
    help="Type of the weights that are not quantised.",
)
@command_option(
    "--predictor-q-bits",
    type=click.Choice(["none", "4", "8"]),
    shown="8 with -q, else none",
    group="Predictor",
    help="Bits per weight of the predictor.",
)
@command_option(
    "--predictor-heads",
    type=COUNT,
    shown="its width / 64",
    group="Predictor",
    help="Attention heads of the predictor.",
)
@command_option(
    "--predictor-only",
    is_flag=True,
    group="Predictor",
    help="Write the predictor alone, for any build of its base model; from the Hub, "
    "download only the shards that hold it.",
)
@command_option(
    "--tokenizer",
    shell_complete=complete_model,
    group="Model",
    help="Folder or Hub name to take the tokenizer from: the base model, when the "
    "checkpoint has none.",
)
@command_option(
    "--upload-repo", group="Output", help="Hub repository to upload the result to."
)
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
