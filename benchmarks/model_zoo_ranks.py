"""Tries every architecture of the installed mlx-lm that can be split over ranks.

Run it on several ranks of one machine::

    mlx.launch -n 2 -- python benchmarks/model_zoo_ranks.py [--pipeline] [MODULES]

Each model of `model_zoo` is built at a tiny size on every rank and run there whole;
then it is split, and hidden states and logits have to be the same to the rounding of
sums in another order. Knows nothing of predictors, budgets or tokenizers.
"""

import copy
import importlib
import pkgutil
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

import click
import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from mlx_budget.engine.recorder import HiddenStateRecorder
from mlx_budget.engine.stages import note_stages
from mlx_budget.models.splitting import split
from mlx_budget.ranks import Team
from mlx_budget.ranks.joining import join
from model_zoo import (
    REORDERED,
    TOKENS,
    Mismatch,
    Outcome,
    close,
    fetch_tests,
    one_line,
    run_mlx_lm_tests,
    to_float32,
)
from model_zoo_configs import CONFIGS


class DoesNotFit(Exception):
    """mlx-lm does not split the model so, or not over so many ranks."""


def check_split(team: Team, model: nn.Module, pipeline: bool) -> None:
    """Compares a model that is split with the whole one.

    Raises:
        Mismatch: If they differ.
        DoesNotFit: If it cannot be split.
    """
    model.eval()
    model.update(tree_map(to_float32, model.parameters()))
    whole = copy.deepcopy(model)
    states, logits = recorded_steps(whole)
    try:
        split(model.model_type, model, mx.distributed.init(), pipeline)
    except ValueError as e:
        raise DoesNotFit(one_line(e)) from e
    if pipeline:
        counts = team.gather(len(model.layers), "layers")
        note_stages(model, counts, team.rank)
    mx.eval(model.parameters())
    own_states, own_logits = recorded_steps(model)
    mx.synchronize()
    for what, a, b in (("states", states, own_states), ("logits", logits, own_logits)):
        if a.shape != b.shape:
            raise Mismatch(f"the {what} are {b.shape}, not {a.shape}")
        if not close(a, b, 10 * REORDERED):
            raise Mismatch(f"the {what} are off by {float(abs(a - b).max()):.2g}")


def recorded_steps(model: nn.Module) -> tuple[mx.array, mx.array]:
    """Hidden states and logits of the last of some steps of two rows.

    Each step is computed before the next, as when text is generated.
    """
    recorder, cache = HiddenStateRecorder.acquire(model), make_prompt_cache(model)
    try:
        for step in TOKENS:
            logits = model(mx.array(step)[:, None], cache=cache)
            mx.eval(logits)
        states = recorder.last.states([0, 1])
        mx.eval(states)
        return states, logits
    finally:
        recorder.release()


def check_module(
    team: Team, name: str, tests: Path | None, pipeline: bool
) -> Outcome | None:
    """Checks what there is of one module; None if it is no model, or cannot split."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    if not hasattr(module, "Model") or not hasattr(module, "ModelArgs"):
        return None
    source = Path(module.__file__).read_text(encoding="utf-8")
    if ("def pipeline" if pipeline else "def shard(") not in source:
        if not pipeline or "PipelineMixin" not in source:
            return None
    outcome = Outcome(name)

    def check(model: nn.Module) -> None:
        outcome.model_type = model.model_type
        check_split(team, model, pipeline)
        outcome.result = "ok"

    mx.random.seed(0)
    try:
        if name in CONFIGS:
            config = {"model_type": name, **CONFIGS[name]}
            check(module.Model(module.ModelArgs.from_dict(config)))
        elif tests is not None:
            run_mlx_lm_tests(name, module, tests, check)
        if outcome.result != "ok":
            outcome.reason = "no configuration at hand"
    except DoesNotFit as e:
        outcome.result, outcome.reason = "does not fit", str(e)
    except Exception as e:
        outcome.result, outcome.reason = "fails", one_line(e)
    return outcome


@click.command()
@click.argument("modules", nargs=-1)
@click.option("--pipeline", is_flag=True, help="Layers for each rank, not parts.")
@click.option(
    "--tests",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with mlx-lm's test_models.py; fetched with pip if left out.",
)
def main(modules: tuple[str, ...], pipeline: bool, tests: Path | None) -> None:
    """Try MODULES of mlx_lm.models, all that can be split if none is named."""
    team = join(is_led=False)
    if team is None:
        raise click.ClickException("Start it with mlx.launch, on several ranks.")
    sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))
    names = [m.name for m in pkgutil.iter_modules(mlx_lm.models.__path__)]
    outcomes = []
    with tempfile.TemporaryDirectory() as temporary:
        tests = tests or fetch_tests(Path(temporary))
        for name in modules or names:
            outcome = check_module(team, name, tests.resolve(), pipeline)
            if outcome is None:
                continue
            everyones = team.gather((outcome.result, outcome.reason), name)
            if len(set(everyones)) > 1:
                outcome.result, outcome.reason = "fails", f"by rank: {everyones}"
            outcomes.append(outcome)
            if team.leads:
                result = ": ".join(filter(None, [outcome.result, outcome.reason]))
                click.echo(f"{name:22} {outcome.model_type:22} {result}")
    if team.leads:
        counts = [
            f"{sum(o.result == kind for o in outcomes)} {kind}"
            for kind in ("ok", "does not fit", "fails")
        ]
        way = "in a pipeline" if pipeline else "tensor-parallel"
        click.echo(
            f"{len(outcomes)} architectures of mlx-lm {version('mlx-lm')} on "
            f"{team.size} ranks, {way}: {', '.join(counts)}."
        )
    team.leave()


if __name__ == "__main__":
    main()
