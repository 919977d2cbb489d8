"""The command line: one thin command per module.

Knows options and how results are shown; what the commands do is in their modules,
which are imported when a command runs.
"""

import os
import sys
from pathlib import Path

import click

from . import __version__, cli_evaluation, cli_training
from .cli_options import (
    BUDGET,
    DATA_HELP,
    MARKER_OPTIONS,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
    SEED_OPTION,
    SHARE,
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
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _fail(message: str) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return 2


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
    from .convert import convert

    if predictor_q_bits is None:
        predictor_q_bits = "8" if options["quantize"] else "none"
    bits = None if predictor_q_bits == "none" else int(predictor_q_bits)
    path = convert(predictor_q_bits=bits, **options)
    click.echo(f"Converted to {path}.", err=True)


@cli.command()
@MODEL_OPTIONS
@click.option("--prompt", "-p", required=True, help="The question; - reads stdin.")
@click.option(
    "--thinking-budget",
    "--reasoning-budget",
    "thinking_budget",
    type=BUDGET,
    help="Tokens to think: -1 for no budget, 0 to answer at once; auto for as many as "
    "the predictor expects of this question, auto:0.63 for 63 % of them [default: -1].",
)
@click.option(
    "--hard-stop",
    type=float,
    help="Close thinking at this multiple of the budget at the latest, and at the "
    "first newline past the budget [default: 1.1].",
)
@click.option("--no-hard-stop", is_flag=True, help="Leave closing to guidance alone.")
@click.option(
    "--thinking-budget-message",
    help="Text to put before the closing marker when the budget closes thinking.",
)
@click.option(
    "--guidance-tolerance",
    type=click.FloatRange(0, 1),
    help="Guided steps evaluate the likeliest tokens alone while that shifts at most "
    "this much probability, and at temperature 0 never another token; 0 evaluates all "
    "[default: 0.001].",
)
@MARKER_OPTIONS
@click.option("--hide-thinking", is_flag=True, help="Show the answer only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--verbose",
    type=bool,
    default=True,
    show_default=True,
    help="Whether to print statistics on stderr.",
)
@click.option(
    "--max-tokens",
    "-m",
    type=click.IntRange(min=-1),
    help="Most tokens to generate, thinking included; -1 for no limit [default: what "
    "thinking can take and 2,048 more; 8,192 if nothing bounds it].",
)
@click.option("--temp", type=float, default=0.0, show_default=True, help="Temperature.")
@SAMPLING_OPTIONS
@click.option(
    "--min-tokens-to-keep",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tokens that min-p leaves at least.",
)
@click.option("--xtc-probability", type=SHARE, default=0.0, help="Chance of XTC.")
@click.option(
    "--xtc-threshold",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    help="Threshold of XTC.",
)
@SEED_OPTION
@PROMPT_OPTIONS
@click.option("--prefill-response", help="How the reply shall begin.")
@click.option(
    "--extra-eos-token", multiple=True, help="Another token that ends the reply."
)
@click.option(
    "--max-kv-size", type=click.IntRange(min=1), help="Most tokens in the KV cache."
)
@click.option(
    "--kv-bits", type=click.IntRange(2, 8), help="Bits of a quantised KV cache."
)
@click.option(
    "--kv-group-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Group of a quantised KV cache.",
)
@click.option(
    "--quantized-kv-start",
    type=click.IntRange(min=0),
    default=5000,
    show_default=True,
    help="Step from which the KV cache is quantised.",
)
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
    from .commands import run_generate

    if options.pop("no_hard_stop"):
        if options["hard_stop"] is not None:
            raise ValueError("Give --hard-stop or --no-hard-stop, not both.")
    elif options["hard_stop"] is None:
        del options["hard_stop"]
    if options["guidance_tolerance"] is None:
        del options["guidance_tolerance"]
    run_generate(**options)


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
    from .commands import run_estimate

    run_estimate(**options)


cli.add_command(cli_training.traces)
cli.add_command(cli_training.train)
cli.add_command(cli_evaluation.evaluate)
cli.add_command(cli_evaluation.report)
