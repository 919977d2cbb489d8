"""What is downloaded of a model and its predictor, and what is checked before it.

Knows the small files of both, and mlx-lm's tokenizers; nothing of weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from ..engine.recorder import HiddenStateRecorder
from ..engine.settings import ModelSource
from ..files import hub
from ..files.rows import is_on_hub
from ..files.shards import find_shards
from ..files.tensors import read_header
from ..files.texts import read_json
from ..method.predictor import Predictor
from .base_model import check_trusted, find_classes, make_args, make_empty, one_line
from .lookup import Config, Found, ModelSizes, look_up, sizes_of
from .predictor_source import PredictorSource, find_predictor


@dataclass(frozen=True)
class Ahead:
    """What is known of a model before its weights are downloaded.

    Attributes:
        model: What `context_length` asks for: the model's arguments and no weights.
        tokenizer: The model's.
        make_model: Makes the model with weights that are not there, to compute shapes
            with.
        predictor: The predictor, or what stands for it until it is downloaded; None or
            False as `load` returns them.
    """

    model: Any
    tokenizer: TokenizerWrapper
    make_model: Callable[[], nn.Module]
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
    check: Check = lambda _: None,
    choose: Callable[[Found], Sequence[str]] | None = None,
) -> tuple[Path, Predictor | bool | None]:
    """Downloads a model and its predictor, once all that can be checked has been.

    Args:
        name, predictor, revision, trust_remote_code, tokenizer_config, model_config: As
            in `mlx_budget.load`.
        check (Callable): As of `look_ahead`.
        choose (Callable, optional): Of the files that hold the weights those that are
            needed, if not all are.

    Returns:
        tuple: The model's folder and the predictor, None or False.

    Raises:
        ValueError: As `mlx_budget.load`, or what ``check`` raised.
    """
    found = find_model(name, revision, trust_remote_code)
    config = {**found.read_config(), **(model_config or {})}
    ready, source = _find_predictor(predictor, found, config)
    if not found.is_here or source is not None:
        found.fetch_small()
        check(_read_ahead(found, config, ready, tokenizer_config, trust_remote_code))
        if choose is None:
            if (missing := found.bytes_missing) and source is not None:
                missing += source.bytes_missing
            hub.check_space(found.name, missing)
    if source is not None:
        ready = source.load()
    if choose is not None and not found.is_here:
        return found.fetch_large(choose(found)), ready
    folder = found.fetch(hub.MODEL_FILES, is_small=found.is_here)
    for shard in find_shards(folder):
        read_header(shard)  # which names a file that is damaged
    return folder, ready


def look_ahead(source: ModelSource, check: Check) -> None:
    """Checks what is asked of a model, if weights have to be downloaded for it.

    What loads a model calls ``check`` as well; this is for what does not load it yet.

    Args:
        source (ModelSource): The model and its predictor.
        check (Callable): Raises a ValueError if what is asked for cannot be done with
            the model. It is not called where all weights are here already: whatever
            loads them will say so soon enough.

    Raises:
        ValueError: As `mlx_budget.load`, as far as can be told, or what ``check``
            raised.
    """
    found = find_model(source.model, source.revision, source.trust_remote_code)
    config = found.read_config()
    predictor, missing = _find_predictor(source.predictor, found, config)
    check_adapter(source.adapter_path)
    if not found.is_here or missing is not None:
        found.fetch_small()
        check(_read_ahead(found, config, predictor, None, source.trust_remote_code))


def find_before(data: str | Path, source: ModelSource) -> None:
    """Looks a model up before data for it are downloaded; errors as in `find_model`."""
    if is_on_hub(data) and not hub.is_local(source.model):
        find_model(source.model, source.revision, source.trust_remote_code)


def check_adapter(folder: str | None) -> None:
    """Raises a ValueError if there are no adapters in a folder that was named."""
    if folder is None:
        return
    missing = (
        f"There is no adapter folder {folder}: an adapter_config.json has to be in it."
    )
    if not isinstance(read_json(Path(folder, "adapter_config.json"), missing), dict):
        raise ValueError(f"{folder}/adapter_config.json must hold a JSON object.")
    if not Path(folder, "adapters.safetensors").exists():
        raise ValueError(f"The adapter folder {folder} has no adapters.safetensors.")


def _find_predictor(
    predictor: str | Path | Predictor | bool | None, found: Found, config: Config
) -> tuple[Predictor | bool | None, PredictorSource | None]:
    """The predictor, and where it is to be had if it is not here.

    Raises:
        ValueError: If there is none, or it was made for another model.
    """
    if isinstance(predictor, str | Path):
        source = find_predictor(predictor)
    elif predictor is None and found.has_predictor:
        source = PredictorSource(found)  # of the same commit
    elif predictor is None or predictor is False or isinstance(predictor, Predictor):
        return predictor, None
    else:
        raise ValueError(
            "predictor must be a folder, a name on the Hub, a Predictor, None for the "
            f"one beside the model, or False for none; not {predictor!r}."
        )
    try:
        source.check_sizes(sizes_of(config))
    except ValueError:
        # Some models have more layers or rows than their configuration names.
        if (measured := _measured_sizes(found, config)) is None:
            raise
        source.check_sizes(measured)
    return (source.load(), None) if source.is_here else (_Promised(), source)


def _measured_sizes(found: Found, config: Config) -> ModelSizes | None:
    """The sizes of mlx-lm's model, of weights that are not there; None if unknown."""
    if config.get("model_file") is not None:
        return None
    try:
        classes = find_classes(found.folder, found.name, config, False)
        model = make_empty(found.folder, found.name, classes)
        recorder = HiddenStateRecorder.acquire(model)
        try:
            logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
            states = recorder.last
        finally:
            recorder.release()
    except Exception:  # whatever a model makes of it: loading it will say
        return None
    width, layers = states.sizes() if states is not None else (None, None)
    return ModelSizes(width, layers, logits.shape[-1])


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


def _read_ahead(
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
    tokenizer = read_tokenizer(found, tokenizer_config, trust_remote_code)
    make_model = partial(make_empty, found.folder, found.name, classes)
    return Ahead(SimpleNamespace(args=args), tokenizer, make_model, predictor)


def read_tokenizer(
    found: Found,
    tokenizer_config: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> TokenizerWrapper:
    """A model's tokenizer, without its weights.

    Raises:
        ValueError: If there is none that can be loaded.
    """
    found.fetch_small()
    with one_line(f"{found.name} cannot be loaded"), hub.quiet("transformers"):
        tokenizer = load_tokenizer(
            found.folder,
            {**(tokenizer_config or {}), "trust_remote_code": trust_remote_code},
            eos_token_ids=found.read_config().get("eos_token_id"),
        )
        check_vocabulary(tokenizer)
    return tokenizer
