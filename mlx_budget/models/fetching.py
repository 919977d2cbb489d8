"""What is downloaded of a model and its predictor, and what is checked before it.

Knows the small files of both, and mlx-lm's tokenizers; nothing of weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from ..files import hub
from ..files.shards import find_shards
from ..files.tensors import read_header
from ..method.predictor import Predictor
from .base_model import check_trusted, find_classes, make_args, one_line
from .lookup import Config, Found, look_up, sizes_of
from .predictor_source import PredictorSource, find_predictor


@dataclass(frozen=True)
class Ahead:
    """What is known of a model before its weights are downloaded.

    Attributes:
        model: What `context_length` asks for: the model's arguments and no weights.
        tokenizer: The model's.
        predictor: The predictor, or what stands for it until it is downloaded; None or
            False as `load` returns them.
    """

    model: Any
    tokenizer: TokenizerWrapper
    predictor: Predictor | bool | None


# Raises a ValueError if what is asked for cannot be done with a model.
Check = Callable[[Ahead], None]


class _Promised(Predictor):
    """Stands for a predictor that is going to be downloaded."""


def fetch(
    name: str,
    predictor: str | Path | Predictor | bool | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    check: Check | None = None,
) -> tuple[Path, Predictor | bool | None]:
    """Downloads a model and its predictor, once all that can be checked has been.

    Args:
        name, predictor, revision, trust_remote_code, tokenizer_config, model_config: As
            in `mlx_budget.load`.
        check (Callable, optional): Called before weights are downloaded, and only then,
            to refuse what cannot be done with the model.

    Returns:
        tuple: The model's folder and the predictor, None or False.

    Raises:
        ValueError: As `mlx_budget.load`, or what ``check`` raised.
    """
    found = find_model(name, revision, trust_remote_code)
    config = {**found.read_config(), **(model_config or {})}
    source = _source_of(predictor, found)
    ready: Predictor | bool | None
    if source is not None:
        source.check_sizes(sizes_of(config))
        ready = source.load() if source.is_here else _Promised()
    else:
        ready = None if isinstance(predictor, str | Path) else predictor
    if not found.is_here or isinstance(ready, _Promised):
        found.fetch(hub.SMALL_FILES)
        ahead = _look_ahead(found, config, ready, tokenizer_config, trust_remote_code)
        if check is not None:
            check(ahead)
        hub.check_space(found.name, found.bytes_missing)
    if source is not None and isinstance(ready, _Promised):
        ready = source.load()
    folder = found.fetch(hub.MODEL_FILES)
    for shard in find_shards(folder):
        read_header(shard)  # which names a file that is damaged
    return folder, ready


def _source_of(
    predictor: str | Path | Predictor | bool | None, found: Found
) -> PredictorSource | None:
    """Where a predictor is to be had, if that is not at hand."""
    if predictor is None and found.has_predictor:
        return PredictorSource(found)  # of the same commit
    return find_predictor(predictor) if isinstance(predictor, str | Path) else None


def find_model(
    name: str, revision: str | None = None, trust_remote_code: bool = False
) -> Found:
    """Looks a model up, without its weights.

    Raises:
        ValueError: As `mlx_budget.load`, if it cannot be had, brings code that may not
            run, or is a Budget Guidance checkpoint that was not converted.
    """
    found = look_up(name, revision)
    check_trusted(name, found.read_config(), trust_remote_code)
    if found.predictor_files:
        raise ValueError(
            f"{name} is a Budget Guidance checkpoint that was not converted yet: run "
            f"`mlx-budget convert --hf-path {name}` first, or give its predictor to a "
            f"build of its base model with --predictor {name}."
        )
    return found


def load_predictor(path_or_hf_repo: str | Path) -> Predictor:
    """Loads a predictor from a folder or the Hub; errors as in `mlx_budget.load`."""
    return find_predictor(path_or_hf_repo).load()


def check_vocabulary(tokenizer: TokenizerWrapper) -> None:
    """Raises a ValueError if there is nothing in a tokenizer but special tokens.

    That is what transformers makes up for a folder without tokenizer files.
    """
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        raise ValueError("its tokenizer has no vocabulary")


def _look_ahead(
    found: Found,
    config: Config,
    predictor: Predictor | bool | None,
    tokenizer_config: dict[str, Any] | None,
    trust_remote_code: bool,
) -> Ahead:
    """What the small files say, which are here.

    Raises:
        ValueError: If mlx-lm could not load the model or its tokenizer.
    """
    classes = find_classes(found.folder, found.name, config, trust_remote_code)
    args = make_args(found.folder, found.name, config, classes)
    with one_line(f"{found.name} cannot be loaded"), hub.quiet("transformers"):
        tokenizer = load_tokenizer(
            found.folder,
            {**(tokenizer_config or {}), "trust_remote_code": trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )
        check_vocabulary(tokenizer)
    return Ahead(SimpleNamespace(args=args), tokenizer, predictor)
