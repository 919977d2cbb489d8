"""The command line: one thin command per module.

Knows options and how results are shown; what the commands do is in their modules,
which are imported when a command runs.
"""

import os
import sys
from pathlib import Path

import click

from .. import __version__, cli_chat, cli_evaluation, cli_serve, cli_training
from .options import (
    BUDGET_OPTIONS,
    DATA_HELP,
    HIDE_THINKING_OPTION,
    KV_OPTIONS,
    MARKER_OPTIONS,
    MAX_KV_SIZE_OPTION,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    REPLY_OPTIONS,
    VERBOSE_OPTION,
    settle_budget,
)


class OneLineErrors(click.Group):
    """A group whose commands end in one line and exit code 2 on bad input."""

    def main(self, *args, standalone_mode: bool = True, **kwargs):
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.ctx.get_help(), err=True)
            code = 2
        except click.ClickException as e:
            code = _fail(e.format_message())
        except (click.Abort, KeyboardInterrupt):
            code = 130
        except BrokenPipeError:
            # The reader of our output has gone; nobody is left to be told.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except (ValueError, OSError) as e:
            if os.environ.get("MLX_BUDGET_DEBUG"):
                raise
            code = _fail(_describe(e))
        if standalone_mode:
            _leave(code if isinstance(code, int) else 0)
        return code


def _fail(message: str) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return 2


def _leave(code: int) -> None:
    server = sys.modules.get("mlx_budget.server.run")
    if server is not None and server.has_computed:
        # MLX's CPU build (0.32.4) may abort a process that ends after one of its
        # threads has computed, as mlx_lm.server does.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    return str(error) or repr(error)


@click.group(cls=OneLineErrors)
@click.version_option(__version__, prog_name="mlx-budget")
def cli():
    """Thinking budgets for reasoning models, with MLX."""


@cli.command()
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
@click.option("--q-bits", type=int, help="Bits per weight [default: 4].")
@click.option("--q-group-size", type=int, help="Quantisation group [default: 64].")
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
    help="Type of the weights that are not quantised [default: as they are].",
)
@click.option(
    "--predictor-q-bits",
    type=click.Choice(["none", "4", "8"]),
    help="Bits per weight of the predictor [default: 8 with -q, else none].",
)
@click.option(
    "--predictor-heads",
    type=click.IntRange(min=1),
    help="Attention heads of the predictor [default: its width / 64].",
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
@click.option("--revision", help="Branch, tag or commit of the checkpoint on the Hub.")
@click.option("--upload-repo", help="Hub repository to upload the result to.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let code that comes with the checkpoint run.",
)
def convert(predictor_q_bits: str | None, **options):
    """Convert a Budget Guidance checkpoint for mlx-lm."""
    from ..models.convert import convert

    if predictor_q_bits is None:
        predictor_q_bits = "8" if options["quantize"] else "none"
    bits = None if predictor_q_bits == "none" else int(predictor_q_bits)
    path = convert(predictor_q_bits=bits, **options)
    click.echo(f"Converted to {path}.", err=True)


@cli.command()
@MODEL_OPTIONS
@click.option("--prompt", "-p", required=True, help="The question; - reads stdin.")
@BUDGET_OPTIONS
@HIDE_THINKING_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@VERBOSE_OPTION
@REPLY_OPTIONS
@PROMPT_OPTIONS
@click.option("--prefill-response", help="How the reply shall begin.")
@click.option(
    "--extra-eos-token", multiple=True, help="Another token that ends the reply."
)
@MAX_KV_SIZE_OPTION
@KV_OPTIONS
@PREFILL_OPTION
@click.option(
    "--prompt-cache-file",
    help="KV cache saved by `mlx_lm.cache_prompt`, to go on from.",
)
@click.option("--draft-model", help="Speculative decoding; not with a budget.")
@click.option(
    "--num-draft-tokens",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Tokens to draft at a time.",
)
def generate(**options):
    """Answer a prompt, thinking for about so many tokens."""
    from ..commands import run_generate

    run_generate(**settle_budget(options))


@cli.command()
@MODEL_OPTIONS
@click.option("--prompt", "-p", help="The question; - reads stdin.")
@click.option("--data", type=click.Path(path_type=Path), help=DATA_HELP)
@MARKER_OPTIONS
@PROMPT_OPTIONS
@PREFILL_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate(**options):
    """Predict how long the model will think about a prompt."""
    from ..commands import run_estimate

    run_estimate(**options)


cli.add_command(cli_chat.chat)
cli.add_command(cli_training.traces)
cli.add_command(cli_training.train)
cli.add_command(cli_evaluation.evaluate)
cli.add_command(cli_evaluation.report)
cli.add_command(cli_serve.serve)
