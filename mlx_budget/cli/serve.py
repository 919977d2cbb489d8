"""The command `serve`: the options of `mlx_lm.server`, and those of budgets.

Knows options; what they do is in `server`, which is imported when it runs.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..engine.fields import keywords_of
from ..engine.settings import (
    ANSWER_TOKENS,
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from ..server.budget_fields import EFFORT_TOKENS, read_efforts
from ..server.budgets import MAX_TOKENS, BudgetPolicy
from .options import (
    COUNT,
    KV_OPTIONS,
    PATH,
    PREFILL_OPTION,
    Read,
    Shown,
    options_from,
    tell_of_demo,
)
from .prior import LEARN_PRIOR_OPTION


def _bytes(text: str) -> int:
    from mlx_lm.utils import _parse_size

    try:
        return _parse_size(text)
    except (ValueError, ArithmeticError):
        raise ValueError(
            f"--prompt-cache-bytes must be a size such as 4GB, not {text!r}."
        ) from None


@click.command()
@options_from(source=ModelSource, without=["revision"])
@options_from(thinking=ThinkingBudget(answer_anyway=True))
@LEARN_PRIOR_OPTION
@click.option(
    "--learn",
    type=PATH,
    help="In idle time let the model think about built-in prompts, as `mlx-budget "
    "learn --output` would, into this folder: from 50 replies on a table of them "
    "guides, and `mlx-budget learn` makes more of them.",
)
@click.option(
    "--max-thinking-budget",
    type=click.IntRange(min=0),
    help="Ceiling of every request's budget, and the budget of those without one.",
)
@click.option(
    "--effort",
    "efforts",
    default=",".join(f"{level}={tokens}" for level, tokens in EFFORT_TOKENS.items()),
    show_default=True,
    type=Read("text", read_efforts),
    help="Tokens of thinking for the levels that requests name (reasoning_effort and "
    "the like), where no predictor tells how long a question takes.",
)
@click.option(
    "--stop-in-thinking",
    is_flag=True,
    help="Let stop words end a reply in its thinking too; by default they wait for the "
    "answer.",
)
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
    type=Read("text", lambda text: text.split(",")),
    help="Comma-separated origins of web pages that may ask.",
)
@click.option(
    "--max-tokens",
    type=COUNT,
    cls=Shown,
    shown=f"{MAX_TOKENS} without a budget; with one what thinking can take and "
    f"{ANSWER_TOKENS:,} more",
    help="Most tokens of a reply, for requests that do not say.",
)
@options_from(sampling=Sampling, only=["temp", "top_p", "min_p", "top_k"])
@click.option("--chat-template", default="", help="Chat template for the tokenizer.")
@click.option(
    "--use-default-chat-template",
    is_flag=True,
    help="Use the tokenizer's default chat template if it has none.",
)
@options_from(
    template=PromptOptions(chat_template_config={}), only=["chat_template_config"]
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
    type=Read("text", _bytes),
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
def serve(
    source: ModelSource,
    thinking: ThinkingBudget,
    max_thinking_budget: int | None,
    efforts: dict[str, int],
    stop_in_thinking: bool,
    sampling: Sampling,
    template: PromptOptions,
    log_level: str,
    learn: Path | None,
    **options: Any,
) -> None:
    """Serve OpenAI's interface with thinking budgets, as `mlx_lm.server` does.

    What is set here of budgets and sampling is for requests that do not say.
    """
    import logging

    from ..server.run import serve

    tell_of_demo()
    logging.basicConfig(
        level=log_level, format="%(asctime)s - %(levelname)s - %(message)s"
    )
    # By the names that mlx_lm.server has for them.
    options |= keywords_of(source) | keywords_of(sampling)
    options |= {"thinking_start": thinking.start, "thinking_end": thinking.end}
    options["chat_template_args"] = template.chat_template_config
    make_learner = None
    if learn is not None:
        from ..train.idle import IdleLearner
        from ..train.learn import check_output
        from ..train.learn_options import LearnOptions

        check_output(learn)
        asked = LearnOptions(start=thinking.start, end=thinking.end)
        make_learner = partial(IdleLearner, source=source, output=learn, options=asked)
    policy = BudgetPolicy(thinking, max_thinking_budget, stop_in_thinking, efforts)
    serve(Namespace(**options), policy, make_learner)
