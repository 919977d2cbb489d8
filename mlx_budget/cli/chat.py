"""The command `chat`. Knows its options; what it does is in `chat_session`."""

from typing import Any

import click

from ..engine.settings import ModelSource, PromptOptions, Sampling, ThinkingBudget
from .options import (
    HIDE_THINKING_OPTION,
    MAX_KV_SIZE_OPTION,
    MAX_TOKENS_OPTION,
    PREFILL_OPTION,
    VERBOSE_OPTION,
    check_reply,
    options_from,
    tell_of_demo,
)
from .prior import LEARN_PRIOR_OPTION


@click.command()
@options_from(source=ModelSource, thinking=ThinkingBudget(answer_anyway=True))
@LEARN_PRIOR_OPTION
@HIDE_THINKING_OPTION
@VERBOSE_OPTION
@MAX_TOKENS_OPTION
@options_from(sampling=Sampling)
@options_from(template=PromptOptions, without=["ignore_chat_template"])
@MAX_KV_SIZE_OPTION
@PREFILL_OPTION
def chat(
    source: ModelSource, thinking: ThinkingBudget, learn_prior: bool, **options: Any
) -> None:
    """Chat with the model, with a thinking budget that can be changed as you go.

    /help lists the commands of the chat. Ctrl-C ends a reply: what came of the answer
    stays in the history, and a turn without an answer is forgotten. With --seed the
    first reply is the one that `generate` gives with that seed, and each later one has
    the next seed.
    """
    check_reply(source, thinking, options["max_tokens"], learn_prior)
    tell_of_demo()

    from .chat_session import run_chat

    run_chat(source, thinking, learn_prior=learn_prior, **options)
