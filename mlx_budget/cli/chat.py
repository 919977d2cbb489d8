"""The command `chat`. Knows its options; what it does is in `chat_session`."""

import click

from .options import (
    BUDGET_OPTIONS,
    HIDE_THINKING_OPTION,
    MAX_KV_SIZE_OPTION,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    REPLY_OPTIONS,
    SYSTEM_PROMPT_OPTION,
    TEMPLATE_CONFIG_OPTION,
    VERBOSE_OPTION,
    settle_budget,
)


@click.command()
@MODEL_OPTIONS
@BUDGET_OPTIONS
@HIDE_THINKING_OPTION
@VERBOSE_OPTION
@REPLY_OPTIONS
@SYSTEM_PROMPT_OPTION
@TEMPLATE_CONFIG_OPTION
@MAX_KV_SIZE_OPTION
@PREFILL_OPTION
def chat(**options):
    """Chat with the model, with a thinking budget that can be changed as you go.

    /help lists the commands of the chat. Ctrl-C ends a reply: what came of the answer
    stays in the history, and a turn without an answer is forgotten.
    """
    from .chat_session import run_chat

    run_chat(**settle_budget(options))
