"""The options that several commands share, each in one place with its help.

Knows options and how they are read; nothing of what commands do with them.
"""

import json
import sys
from pathlib import Path

import click

from .. import demo
from ..engine.settings import (
    check_budget,
    check_enforceable,
    check_hard_stop,
    check_temperature,
)

LOADING = ("predictor", "adapter_path", "revision", "trust_remote_code")
TEMPLATE = ("system_prompt", "ignore_chat_template", "chat_template_config")


def _add(*options):
    """One decorator of many options, in the order in which help shall list them."""

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def json_object(context, parameter, text: str | None) -> dict | None:
    """Reads the value of an option that is a JSON object."""
    if text is None:
        return None
    option = parameter.opts[0]
    try:
        value = json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{option} is not valid JSON: {e}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be a JSON object.")
    return value


class _Budget(click.ParamType):
    name = "N|auto|auto:SHARE"

    def convert(self, value, parameter, context):
        try:
            return int(value)
        except ValueError:
            return value  # `check_budget` says what is wrong with it


BUDGET = _Budget()


def _predictor(context, parameter, name: str | None) -> str | bool | None:
    return False if name == "none" else name


_MODEL_HELP = (
    "Folder or Hub name of the model: one made by `mlx-budget convert`, or any mlx-lm "
    "model"
)
MODEL_OPTION = click.option("--model", required=True, help=f"{_MODEL_HELP}.")
ADAPTER_OPTION = click.option(
    "--adapter-path", help="Folder of LoRA adapters for the model."
)
TRUST_OPTION = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let code that comes with the model run.",
)
LOADING_OPTIONS = _add(
    ADAPTER_OPTION,
    click.option("--revision", help="Branch, tag or commit of the model on the Hub."),
    TRUST_OPTION,
)
MODEL_OR_DEMO_OPTIONS = _add(
    click.option("--model", help=f"{_MODEL_HELP} [default: demo, the built-in one]."),
    click.option(
        "--predictor",
        callback=_predictor,
        help="Folder or Hub name of the predictor, if it is not beside the model; "
        "none for the hard stop alone.",
    ),
)
MODEL_OPTIONS = _add(MODEL_OR_DEMO_OPTIONS, LOADING_OPTIONS)
MARKER_OPTIONS = _add(
    click.option(
        "--thinking-start-token",
        "thinking_start",
        help="Text that opens thinking, if not the tokenizer's own; empty if replies "
        "begin by thinking.",
    ),
    click.option(
        "--thinking-end-token",
        "thinking_end",
        help="Text that closes thinking, if not the tokenizer's own.",
    ),
)
STEERING_OPTIONS = _add(
    click.option(
        "--hard-stop",
        type=float,
        help="Close thinking at this multiple of the budget at the latest, and at the "
        "first newline past the budget [default: 1.1].",
    ),
    click.option(
        "--no-hard-stop", is_flag=True, help="Leave closing to guidance alone."
    ),
    click.option(
        "--thinking-budget-message",
        help="Text to put before the closing marker when the budget closes thinking.",
    ),
    click.option(
        "--guidance-tolerance",
        type=click.FloatRange(0, 1),
        help="Guided steps evaluate the likeliest tokens alone while that shifts at "
        "most this much probability, and at temperature 0 never another token; 0 "
        "evaluates all [default: 0.001].",
    ),
)


def budget_option(of_what: str):
    """`--thinking-budget`, with the words that say what it is for."""
    return click.option(
        "--thinking-budget",
        "--reasoning-budget",
        "thinking_budget",
        type=BUDGET,
        help=f"Tokens to think{of_what}: -1 for no budget, 0 to answer at once; auto "
        "for as many as the predictor expects of the question, auto:0.63 for 63 % of "
        "them [default: -1].",
    )


BUDGET_OPTIONS = _add(budget_option(""), STEERING_OPTIONS, MARKER_OPTIONS)


def settle_budget(options: dict) -> dict:
    """What was given of `STEERING_OPTIONS`, without what is left to its default.

    Raises:
        ValueError: If there shall be a hard stop and none.
    """
    options = dict(options)
    if options.pop("no_hard_stop"):
        if options["hard_stop"] is not None:
            raise ValueError("Give --hard-stop or --no-hard-stop, not both.")
    elif options["hard_stop"] is None:
        del options["hard_stop"]
    if options["guidance_tolerance"] is None:
        del options["guidance_tolerance"]
    return options


SYSTEM_PROMPT_OPTION = click.option(
    "--system-prompt", help="System prompt for the chat template."
)
TEMPLATE_CONFIG_OPTION = click.option(
    "--chat-template-config",
    callback=json_object,
    help="More arguments for the chat template, as a JSON object.",
)
PROMPT_OPTIONS = _add(
    SYSTEM_PROMPT_OPTION,
    click.option(
        "--ignore-chat-template",
        is_flag=True,
        help="Use the prompt as it is, without the chat template.",
    ),
    TEMPLATE_CONFIG_OPTION,
)
SHARE = click.FloatRange(0, 1)
SAMPLING_OPTIONS = _add(
    click.option("--top-p", type=SHARE, default=1.0, show_default=True, help="Top-p."),
    click.option("--min-p", type=SHARE, default=0.0, show_default=True, help="Min-p."),
    click.option(
        "--top-k",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Top-k; 0 for all.",
    ),
)
SEED_OPTION = click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), help="Random seed."
)
HIDE_THINKING_OPTION = click.option(
    "--hide-thinking", is_flag=True, help="Show the answer only."
)
VERBOSE_OPTION = click.option(
    "--verbose",
    type=bool,
    default=True,
    show_default=True,
    help="Whether to print statistics on stderr.",
)
REPLY_OPTIONS = _add(
    click.option(
        "--max-tokens",
        "-m",
        type=click.IntRange(min=-1),
        help="Most tokens to generate, thinking included; -1 for no limit [default: "
        "what thinking can take and 2,048 more; 8,192 if nothing bounds it].",
    ),
    click.option(
        "--temp", type=float, default=0.0, show_default=True, help="Temperature."
    ),
    SAMPLING_OPTIONS,
    click.option(
        "--min-tokens-to-keep",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Tokens that min-p leaves at least.",
    ),
    click.option("--xtc-probability", type=SHARE, default=0.0, help="Chance of XTC."),
    click.option(
        "--xtc-threshold",
        type=click.FloatRange(0, 0.5),
        default=0.1,
        help="Threshold of XTC.",
    ),
    SEED_OPTION,
)
MAX_KV_SIZE_OPTION = click.option(
    "--max-kv-size", type=click.IntRange(min=1), help="Most tokens in the KV cache."
)
COUNT = click.IntRange(min=1)
BATCH_SIZE_OPTION = click.option(
    "--batch-size",
    type=COUNT,
    default=8,
    show_default=True,
    help="Most replies to generate at a time.",
)
DATA_HELP = (
    "File of prompts: JSON lines with prompt, question or messages, or text with a "
    "prompt on each line."
)
PREFILL_OPTION = click.option(
    "--prefill-step-size",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Prompt tokens to process at a time.",
)
KV_OPTIONS = _add(
    click.option(
        "--kv-bits", type=click.IntRange(2, 8), help="Bits of a quantised KV cache."
    ),
    click.option(
        "--kv-group-size",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Group of a quantised KV cache.",
    ),
    click.option(
        "--quantized-kv-start",
        type=click.IntRange(min=0),
        default=5000,
        show_default=True,
        help="Step from which the KV cache is quantised.",
    ),
)


def model_or_demo(model: str | None) -> str:
    """The model to use: the built-in one, and a line that says so, if none is given."""
    if model is not None:
        return model
    click.echo(demo.NOTICE, err=True)
    return demo.NAME


def pick(options: dict, *names: str) -> dict:
    """Takes some of the options out."""
    return {name: options.pop(name) for name in names}


def check_options(model: str | None, options: dict) -> None:
    """Checks what can be checked of a reply's options before minutes of loading.

    Raises:
        ValueError: Naming the option that cannot be honoured.
    """
    from ..method.predictor import is_predictor_folder

    budget = check_budget(options["thinking_budget"])
    check_hard_stop(options.get("hard_stop"))
    check_temperature(options["temp"])
    folder = Path(model or demo.FOLDER)
    if folder.is_dir() and options["predictor"] is None:
        if not is_predictor_folder(folder):
            check_enforceable(budget, None, None)
    if options["max_tokens"] == 0:
        raise ValueError("--max-tokens must be 1 or more, or -1 for no limit.")


def read_prompt(prompt: str) -> str:
    """The prompt as it was given, or standard input for "-".

    Raises:
        ValueError: If it is empty or not UTF-8 text.
    """
    try:
        if prompt == "-":
            text = sys.stdin.buffer.read().decode("utf-8") if sys.stdin else ""
        else:
            text = prompt
            text.encode("utf-8")
    except UnicodeError:
        raise ValueError("The prompt is not UTF-8 text.") from None
    if not text.strip():
        raise ValueError("The prompt is empty: give one with --prompt.")
    return text
