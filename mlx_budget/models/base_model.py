"""The language model inside a Budget Guidance checkpoint.

Knows mlx-lm's loader and that the predictor's tensors are not the model's; nothing of
predictors, tokenizers or what is written.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes, load_config, load_model

from ..files.shards import find_shards
from ..files.tensors import read_header
from .lookup import Config
from .reference import is_predictor_tensor

# A model's class and that of its arguments, which mlx-lm knows no common type of.
ModelClasses = tuple[Any, Any]


def check_trusted(name: str, config: Config, trust_remote_code: bool) -> None:
    """Raises a ValueError if a model brings code of its own that may not run."""
    file = config.get("model_file")
    if file is not None and not trust_remote_code:
        raise ValueError(
            f"{name} comes with code that would have to run ({file}). Read it, and "
            "pass --trust-remote-code if you trust it."
        )


def find_classes(
    source: Path, name: str, config: Config, trust_remote_code: bool
) -> ModelClasses:
    """The model's classes in mlx-lm, which leave out the predictor's tensors.

    Args:
        source (Path): The checkpoint's folder.
        name (str): What errors call it.
        config (dict): Its `config.json`.
        trust_remote_code (bool): Whether code in the folder may run.

    Raises:
        ValueError: If mlx-lm has no such model, or its code may not run.
    """
    check_trusted(name, config, trust_remote_code)
    model_class: Any
    file = config.get("model_file")
    with one_line(f"{name} is no model that mlx-lm can load"):
        if file is None:
            model_class, args_class = _get_classes(config)
        else:
            model_class, args_class = _run_code(source / file)

    class BaseModel(model_class):
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            own = {k: v for k, v in weights.items() if not is_predictor_tensor(k)}
            parent = getattr(super(), "sanitize", None)
            return parent(own) if parent else own

    return BaseModel, args_class


def _run_code(file: Path) -> ModelClasses:
    spec = importlib.util.spec_from_file_location("custom_model", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model, module.ModelArgs


def make_empty(source: Path, name: str, classes: ModelClasses) -> nn.Module:
    """The model without its weights, to compute shapes with.

    What is traced through a model can hold on to its weights long after; here nothing
    is read. Errors as in `find_classes`.
    """
    model_class, args_class = classes
    with one_line(f"The config.json of {name} describes no model of its type"):
        model = model_class(args_class.from_dict(load_config(source)))
        len(model.layers)
    return model


def make_args(source: Path, name: str, config: Config, classes: ModelClasses) -> Any:
    """The model's arguments in mlx-lm; errors as in `find_classes`."""
    with one_line(f"The config.json of {name} describes no model of its type"):
        return classes[1].from_dict({**load_config(source), **config})


def load_lazily(
    source: Path, name: str, config: Config, classes: ModelClasses
) -> tuple[nn.Module, Config]:
    """The model with its weights still unread, and its config.

    Raises:
        ValueError: If a shard is damaged, or the weights are not the model's.
    """
    for shard in find_shards(source):
        read_header(shard)
    with one_line(f"{name} does not hold the weights of its model"):
        model, loaded = load_model(
            source,
            lazy=True,
            model_config={"model_file": None},  # it is in the classes
            get_model_classes=lambda config: classes,
        )
    # mlx-lm translates other formats' quantisation; the rest is as it was.
    changed = ("quantization", "quantization_config")
    return model, {**config, **{k: loaded[k] for k in changed if k in loaded}}


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns whatever a model's loader raises into a ValueError of one line."""
    try:
        yield
    # mlx-lm and a model's code raise whatever they like; olmo's ends the program.
    except (Exception, SystemExit) as e:
        reason = str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
        reason = " ".join(reason.split()).rstrip(".")
        if len(reason) > 300:
            reason = f"{reason[:300]}..."
        raise ValueError(
            f"{what} ({reason}). Upgrade mlx-lm if the model is new, or get the "
            "checkpoint anew."
        ) from e
