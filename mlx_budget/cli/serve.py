"""The command `serve`: the options of `mlx_lm.server`, and those of budgets.

Knows options; what they do is in `server`, which is imported when it runs.
"""

from argparse import Namespace

import click

from .options import (
    ADAPTER_OPTION,
    COUNT,
    KV_OPTIONS,
    MARKER_OPTIONS,
    MODEL_OR_DEMO_OPTIONS,
    PREFILL_OPTION,
    SAMPLING_OPTIONS,
    STEERING_OPTIONS,
    TRUST_OPTION,
    budget_option,
    json_object,
    model_or_demo,
    settle_budget,
)


def _origins(context, parameter, text: str) -> list[str]:
    return text.split(",")


def _bytes(context, parameter, text: str | None) -> int | None:
    if text is None:
        return None
    from mlx_lm.utils import _parse_size

    try:
        return _parse_size(text)
    except (ValueError, ArithmeticError):
        raise ValueError(
            f"--prompt-cache-bytes must be a size such as 4GB, not {text!r}."
        ) from None


@click.command()
@MODEL_OR_DEMO_OPTIONS
@ADAPTER_OPTION
@TRUST_OPTION
@budget_option(", for requests that do not say")
@click.option(
    "--max-thinking-budget",
    type=click.IntRange(min=0),
    help="Ceiling of every request's budget, and the budget of those without one.",
)
@STEERING_OPTIONS
@MARKER_OPTIONS
@click.option("--host", default="127.0.0.1", show_default=True, help="Address.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port; 0 for any that is free.",
)
@click.option(
    "--allowed-origins",
    default="*",
    show_default=True,
    callback=_origins,
    help="Comma-separated origins of web pages that may ask.",
)
@click.option(
    "--max-tokens",
    type=COUNT,
    help="Most tokens of a reply, for requests that do not say [default: 512 without a "
    "budget; with one what thinking can take and 2,048 more].",
)
@click.option(
    "--temp", type=float, default=0.0, show_default=True, help="Default temperature."
)
@SAMPLING_OPTIONS
@click.option("--chat-template", default="", help="Chat template for the tokenizer.")
@click.option(
    "--use-default-chat-template",
    is_flag=True,
    help="Use the tokenizer's default chat template if it has none.",
)
@click.option(
    "--chat-template-args",
    default="{}",
    callback=json_object,
    help="More arguments for the chat template, as a JSON object.",
)
@click.option(
    "--decode-concurrency",
    type=COUNT,
    default=32,
    show_default=True,
    help="Most replies to generate at a time.",
)
@click.option(
    "--prompt-concurrency",
    type=COUNT,
    default=8,
    show_default=True,
    help="Most prompts to process at a time.",
)
@PREFILL_OPTION
@click.option(
    "--prompt-cache-size",
    type=COUNT,
    default=10,
    show_default=True,
    help="Most KV caches to keep for prompts to come.",
)
@click.option(
    "--prompt-cache-bytes",
    callback=_bytes,
    help="Most memory for them, such as 4GB.",
)
@KV_OPTIONS
@click.option("--draft-model", help="Speculative decoding; not with budgets.")
@click.option(
    "--num-draft-tokens",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Tokens to draft at a time.",
)
@click.option(
    "--pipeline", is_flag=True, help="Pipelining in place of tensor parallelism."
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
    default="INFO",
    show_default=True,
    help="What to log on stderr.",
)
def serve(thinking_budget, max_thinking_budget: int | None, log_level: str, **options):
    """Serve OpenAI's interface with thinking budgets, as `mlx_lm.server` does."""
    import logging

    from ..engine.settings import check_budget, check_temperature
    from ..server import serve
    from ..server.budgets import BudgetPolicy

    options = settle_budget(options)
    names = ("hard_stop", "guidance_tolerance", "thinking_budget_message")
    steering = {name: options.pop(name) for name in names if name in options}
    budget = check_budget(thinking_budget)
    policy = BudgetPolicy(budget, max_thinking_budget, **steering)
    check_temperature(options["temp"])
    options["model"] = model_or_demo(options["model"])
    logging.basicConfig(
        level=log_level, format="%(asctime)s - %(levelname)s - %(message)s"
    )
    serve(Namespace(**options), policy)
