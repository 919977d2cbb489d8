"""What the words of a command line may become: models, tasks, strategies, levels.

Knows their names; nothing that takes a while to import is imported before it is needed.
"""

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from .. import demo
from ..engine.budgets import EFFORTS
from ..files.hub_cache import cached_models


def complete_model(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Models in the Hub's cache and the built-in one, or folders."""
    return _or_folders(incomplete, [demo.NAME, *cached_models()])


def complete_predictor(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Published predictors, those in the Hub's cache, none; or folders."""
    from ..models.published import PUBLISHED

    published = (each.name for each in PUBLISHED)
    cached = cached_models("predictor_config.json")
    return _or_folders(incomplete, dict.fromkeys(["none", *published, *cached]))


def complete_task(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Tasks of an evaluation."""
    from ..evaluate.tasks import TASKS

    return _beginning(incomplete, [*dict.fromkeys([*TASKS, demo.NAME]), "lm-eval:"])


def complete_strategies(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Strategies of an evaluation, behind the commas that are there."""
    from ..evaluate.strategies import STRATEGIES

    return _in_list(incomplete, ["all", *STRATEGIES])


def complete_budget(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Levels, and what else a budget may be in words."""
    return _beginning(incomplete, [*EFFORTS, "auto", "50%"])


def complete_budgets(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Budgets of an evaluation, behind the commas that are there."""
    levels = [level for level, share in EFFORTS.items() if share]
    return _in_list(incomplete, [*levels, "25%", "50%", "100%"])


# By the keyword of the option.
COMPLETIONS = {
    "model": complete_model,
    "draft_model": complete_model,
    "predictor": complete_predictor,
    "thinking_budget": complete_budget,
    "strategies": complete_strategies,
    "budgets": complete_budgets,
}


def _beginning(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _in_list(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    """Words for the last place of a comma-separated list, without those before it."""
    before, comma, last = incomplete.rpartition(",")
    rest = [word for word in words if word not in before.split(",")]
    return [CompletionItem(before + comma + w) for w in rest if w.startswith(last)]


def _or_folders(incomplete: str, words: Iterable[str]) -> list[CompletionItem]:
    """Words, or where none begins so a sign for the shell to look for folders."""
    found = _beginning(incomplete, words)
    return found or [CompletionItem(incomplete, type="dir")]
