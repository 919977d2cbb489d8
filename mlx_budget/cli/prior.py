"""The prior on the command line: what is said of it, and --learn-prior.

Knows options and what is shown; nothing of the arithmetic.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..engine.errors import NoPredictorError
from ..engine.settings import ModelSource, ThinkingBudget
from .parameters import command_option

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..engine.priors import LearnedPrior
    from ..method.predictor import Predictor

# A command's function.
Decorated = TypeVar("Decorated", bound=Callable[..., Any])

LEARN_PRIOR_OPTION = command_option(
    "--learn-prior",
    is_flag=True,
    group="Thinking",
    help="Count the lines of replies without a budget, and how long thinking went on, "
    "for the prior of a model without a predictor. Numbers are kept, in the user's "
    "cache, and no text.",
)


def learned_prior(
    learn_prior: bool,
    source: ModelSource,
    tokenizer: "TokenizerWrapper",
    thinking: ThinkingBudget,
) -> "LearnedPrior | None":
    """What learns from replies, if that was asked for and the model thinks."""
    from ..engine.markers import markers_of
    from ..engine.priors import LearnedPrior
    from ..files import hub

    markers = markers_of(tokenizer, thinking)
    if not learn_prior or markers is None:
        return None
    name = hub.model_name(source.model, source.adapter_path, source.revision)
    return LearnedPrior(name, tokenizer, markers)


def name_of_fitting(source: ModelSource) -> str | None:
    """Name of the published predictor that fits a model, if one does."""
    from ..models.published import fitting_source

    found = fitting_source(source)
    return found.name if found is not None else None


def names_fitting(command: Decorated) -> Decorated:
    """Lets a command that lacks a predictor name the published one that fits.

    The command has a parameter ``source``, or ``asked`` with one.
    """

    @wraps(command)
    def run(**options: Any) -> Any:
        try:
            return command(**options)
        except NoPredictorError as e:
            source = options.get("source") or options["asked"].source
            if (name := name_of_fitting(source)) is None:
                raise
            raise ValueError(f"{e} {name} fits this model: --predictor {name}.") from e

    # As with click's own decorators, the name keeps its type.
    return run  # type: ignore[return-value]


def sharpened(
    predictor: "Predictor | bool | None",
    learned: "LearnedPrior | None",
    thinking: ThinkingBudget,
    source: ModelSource,
) -> "Predictor | bool | None":
    """The predictor, or the prior with what it has learnt; says which guides."""
    from ..engine.priors import notice

    if predictor is not None:
        return predictor
    prior = None
    if learned is not None:
        prior = learned.predictor()
    if not thinking.is_free and thinking.tokens != 0:
        known = prior.counts.number if prior is not None else 0
        lines = f" It has learnt from {known:,} lines of its replies." if known else ""
        click.echo(notice(name_of_fitting(source)) + lines, err=True)
    return prior
