"""The command `serve`: the options of `mlx_lm.server`, and those of budgets.

Knows options; what they do is in `server`, which is imported when it runs.
"""

from functools import partial
from pathlib import Path

import click

from ..server.logs import FORMATS, set_up_logging
from ..server.options import NOT_SERVED, ServeOptions
from .command import Command
from .options import options_from, tell_of_demo
from .parameters import PATH, SIZE, Read, command_option
from .prior import names_fitting

_TEXTS = Read("text", lambda text: tuple(text.split(",")))
_TYPES = {
    **dict.fromkeys(("allowed_origins", "allowed_hosts", "model_folders"), _TEXTS),
    **dict.fromkeys(("max_body_bytes", "prompt_cache_bytes"), SIZE),
}


@click.command(cls=Command)
@options_from(asked=ServeOptions(), without=NOT_SERVED, types=_TYPES)
@command_option(
    "--learn",
    type=PATH,
    group="Predictor",
    help="In idle time let the model think about built-in prompts, as `mlx-budget "
    "learn --output` would, into this folder: from 50 replies on a table of them "
    "guides, and `mlx-budget learn` makes more of them.",
)
@command_option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
    default="INFO",
    show_default=True,
    group="Output",
    help="What to log on stderr.",
)
@command_option(
    "--log-format",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    group="Output",
    help="Lines of text, or JSON objects.",
)
@names_fitting
def serve(
    asked: ServeOptions, learn: Path | None, log_level: str, log_format: str
) -> None:
    """Serve OpenAI's and Anthropic's interfaces with thinking budgets.

    What is set here of budgets and sampling is for requests that do not say.
    """
    from ..server.run import run

    tell_of_demo()
    set_up_logging(log_level, log_format)
    make_learner = None
    if learn is not None:
        from ..train.idle import IdleLearner
        from ..train.learn import check_output
        from ..train.learn_options import LearnOptions

        check_output(learn)
        thinking = LearnOptions(start=asked.thinking.start, end=asked.thinking.end)
        make_learner = partial(
            IdleLearner, source=asked.source, output=learn, options=thinking
        )
    run(asked, make_learner)
