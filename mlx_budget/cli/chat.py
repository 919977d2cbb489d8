"""The command `chat`. Knows its options; what it does is in `chat_session`."""

from typing import Any

import click
from click.core import ParameterSource

from .. import demo
from ..engine.fields import all_options_of
from ..engine.settings import ModelSource, PromptOptions, Sampling, ThinkingBudget
from .command import Command
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
from .parameters import command_option
from .prior import LEARN_PRIOR_OPTION, names_fitting


@click.command(cls=Command)
@options_from(source=ModelSource, thinking=ThinkingBudget(answer_anyway=True))
@LEARN_PRIOR_OPTION
@HIDE_THINKING_OPTION
@VERBOSE_OPTION
@MAX_TOKENS_OPTION
@options_from(sampling=Sampling)
@options_from(template=PromptOptions, without=["ignore_chat_template"])
@MAX_KV_SIZE_OPTION
@PREFILL_OPTION
@command_option(
    "--load",
    type=click.Path(dir_okay=False),
    group="Prompt",
    help="Go on with the chat in a file of /save: with its model, budget and settings, "
    "unless they are given.",
)
@command_option(
    "--history/--no-history",
    default=True,
    show_default=True,
    group="Output",
    help="Remember what is typed, for the arrow keys, in a private file in the user's "
    "cache.",
)
@names_fitting
def chat(
    source: ModelSource,
    thinking: ThinkingBudget,
    learn_prior: bool,
    load: str | None,
    **options: Any,
) -> None:
    """Chat with the model, with a thinking budget that can be changed as you go.

    /help lists the commands of the chat; Tab completes them. Pasted lines are one
    question. Ctrl-C ends a reply: what came of the answer stays in the history, and a
    turn without an answer is forgotten; at the prompt, twice, it ends the chat. /save
    FILE writes the chat to a file, and /load FILE goes on from it. With --seed the
    first reply is the one that `generate` gives with that seed, and each later one has
    the next seed.
    """
    given = _given()
    if load is not None:
        from .chat_files import saved_source

        source = saved_source(load, source, given)
    check_reply(source, thinking, options["max_tokens"], learn_prior)
    if source.model == demo.NAME:
        tell_of_demo()

    from .chat_session import run_chat

    run_chat(
        source, thinking, learn_prior=learn_prior, load=load, given=given, **options
    )


def _given() -> set[str]:
    """Keywords of what the user typed an option for, on or off."""
    context = click.get_current_context()
    off = {
        option.off.lstrip("-").replace("-", "_"): option.keyword
        for _, _, option in all_options_of(ThinkingBudget)
        if option.off
    }
    return {
        off.get(name, name)
        for parameter in context.command.params
        if (name := parameter.name or "")
        and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
