"""Loads a model, its tokenizer and a predictor, and checks that they fit.

Knows mlx-lm's loader and the two predictor files; nothing of generation.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model

from .. import demo
from ..engine.fields import keywords_of
from ..engine.recorder import HiddenStateRecorder
from ..engine.settings import ModelSource
from ..method.predictor import Predictor
from ..ranks import mirrored, the_team
from ..ranks.joining import join
from .base_model import one_line
from .fetching import Ahead, check_adapter, check_vocabulary, fetch, load_predictor
from .splitting import check_same_predictor, load_part, own_shards

__all__ = ["check_fits", "load", "load_predictor", "load_source", "unpack_demo"]


def load(
    path_or_hf_repo: str,
    predictor: "str | Path | Predictor | bool | None" = None,
    *,
    adapter_path: str | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    lazy: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: "Callable[[Ahead], None]" = lambda _: None,
    pipeline: bool = False,
) -> tuple[nn.Module, TokenizerWrapper, "Predictor | bool | None"]:
    """Loads a model, its tokenizer and its predictor.

    A predictor by its Hub name may be that of a published checkpoint of the reference:
    only the files that hold it are downloaded, and it is converted once and kept.

    Under `mlx.launch` each process loads its part of the model, and all have to call
    this, and whatever generates, in the same order.

    Args:
        path_or_hf_repo (str): A local folder or a Hub name: a folder made by
            `convert`, or any mlx-lm model; or "demo" for the built-in model.
        predictor (str, Path, Predictor or False, optional): A predictor folder or Hub
            name. None takes the one beside the model, if there is one; False takes
            none, and is returned so that it can be passed on as it is.
        adapter_path (str, optional): LoRA adapters to apply to the model.
        tokenizer_config (dict, optional): Settings for the tokenizer.
        model_config (dict, optional): Settings that override the model's config.
        lazy (bool): Whether to leave the model's weights unread until they are used.
        revision (str, optional): Branch, tag or commit on the Hub.
        trust_remote_code (bool): Whether code in the repository may run.
        check (Callable): Called with the tokenizer and what else is known before
            weights are downloaded, and only then: refuses what cannot be done with the
            model, by a ValueError.
        pipeline (bool): With several processes, whether each gets some of the layers;
            by default each gets a part of every layer.

    Returns:
        tuple: The model, its tokenizer, and the predictor, None or False.

    Raises:
        ValueError: In one line, if anything cannot be found or read, or if the
            predictor does not fit the model, or the processes cannot share it.
    """
    options: dict[str, Any] = {
        "adapter_path": adapter_path,
        "tokenizer_config": tokenizer_config,
        "model_config": model_config,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "check": check,
    }
    if join(is_led=False) is not None:
        return _load_part(path_or_hf_repo, predictor, pipeline=pipeline, **options)
    return _load_whole(path_or_hf_repo, predictor, lazy=lazy, **options)


def _load_whole(
    path_or_hf_repo: str,
    predictor: "str | Path | Predictor | bool | None",
    *,
    adapter_path: str | None,
    tokenizer_config: dict[str, Any] | None,
    model_config: dict[str, Any] | None,
    lazy: bool,
    revision: str | None,
    trust_remote_code: bool,
    check: "Callable[[Ahead], None]",
) -> tuple[nn.Module, TokenizerWrapper, "Predictor | bool | None"]:
    check_adapter(adapter_path)
    path, predictor = fetch(
        path_or_hf_repo,
        predictor,
        revision=revision,
        trust_remote_code=trust_remote_code,
        tokenizer_config=tokenizer_config,
        model_config=model_config,
        check=check,
    )
    with one_line(f"{path_or_hf_repo} cannot be loaded"):
        model, tokenizer = mlx_lm.load(
            str(path),
            tokenizer_config={
                **(tokenizer_config or {}),
                # Last: a prompt cache's settings must not decide this.
                "trust_remote_code": trust_remote_code,
            },
            model_config=model_config,
            adapter_path=adapter_path,
            lazy=lazy,
            **_trust_option(trust_remote_code),
        )[:2]
        check_vocabulary(tokenizer)
    if path == demo.FOLDER:
        model = unpack_demo(model)
    if not lazy:
        _settle(model)
    if isinstance(predictor, Predictor):
        check_fits(predictor, model)
    return model, tokenizer, predictor


def unpack_demo(model: nn.Module) -> nn.Module:
    """The built-in model with weights of 32 bits: its 8 make it small, not fast.

    On the CPU the columns of a matrix are contiguous: a layer multiplies by the
    transpose, and the BLAS of MLX's CPU build is twice as fast where it reads that in
    order. The sums are the same to the last bit.
    """
    model = dequantize_model(model)
    if mx.default_device() == mx.cpu:
        model.update(tree_map(_transposed_in_memory, model.parameters()))
    return model


def _transposed_in_memory(weight: mx.array) -> mx.array:
    return mx.contiguous(weight.T).T if weight.ndim == 2 else weight


@mirrored(check=lambda: lambda _: None)
def _load_part(
    path_or_hf_repo: str,
    predictor: "str | Path | Predictor | bool | None",
    *,
    adapter_path: str | None,
    tokenizer_config: dict[str, Any] | None,
    model_config: dict[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
    check: "Callable[[Ahead], None]",
    pipeline: bool,
) -> tuple[nn.Module, TokenizerWrapper, "Predictor | bool | None"]:
    """`load` on one of several ranks."""
    team = the_team()
    if adapter_path is not None or model_config is not None:
        what = "model_config" if adapter_path is None else "Adapters (--adapter-path)"
        raise ValueError(
            f"{what} cannot be used on several Macs: mlx-lm does not split them. Fuse "
            "adapters into the model with `mlx_lm.fuse`."
        )
    path, predictor = fetch(
        path_or_hf_repo,
        predictor,
        revision=revision,
        trust_remote_code=trust_remote_code,
        tokenizer_config=tokenizer_config,
        check=check,
        choose=partial(own_shards, pipeline),
    )
    model, tokenizer, _ = load_part(
        team,
        path_or_hf_repo,
        path,
        pipeline=pipeline,
        tokenizer_config={
            **(tokenizer_config or {}),
            "trust_remote_code": trust_remote_code,
        },
        trust_remote_code=trust_remote_code,
    )
    check_same_predictor(team, predictor)
    if isinstance(predictor, Predictor):
        check_fits(predictor, model)
    name_on_all_ranks(model, tokenizer, predictor)
    return model, tokenizer, predictor


def name_on_all_ranks(
    model: nn.Module, tokenizer: TokenizerWrapper, predictor: Any
) -> None:
    """Lets what every rank has loaded be named in the calls of rank 0."""
    team = the_team()
    for value in (model, tokenizer, predictor):
        if not isinstance(value, bool | None):
            team.name(value)


def _settle(model: nn.Module) -> None:
    """Evaluates all arrays of a model, for any thread to use it.

    mlx-lm leaves those alone that are not parameters, such as the frequencies of scaled
    rotary embeddings, and MLX evaluates an array in the thread alone that made it.
    """
    mx.eval(dict(model))


def load_source(
    source: ModelSource, **options: Any
) -> tuple[nn.Module, TokenizerWrapper, "Predictor | bool | None"]:
    """`load`, of a source.

    Args:
        source (ModelSource): Which model and which predictor.
        options: The other options of `load`.
    """
    keywords = keywords_of(source)
    return load(keywords.pop("model"), **keywords, **options)


def check_fits(predictor: Predictor, model: nn.Module) -> None:
    """Checks a predictor's D, N and V against the model it shall read.

    Only shapes are computed, nothing is evaluated.

    Raises:
        ValueError: Naming the size that differs, or the reason why the model's hidden
            states cannot be recorded.
    """
    recorder = HiddenStateRecorder.acquire(model, predictor.reads_states)
    try:
        logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
        if not predictor.reads_states:
            predictor.check_vocabulary(logits.shape[-1])
        elif recorder.last is not None:
            predictor.check_sizes(*recorder.last.sizes(), logits.shape[-1])
    finally:
        recorder.release()


def _trust_option(trust_remote_code: bool) -> dict[str, Any]:
    # mlx-lm 0.31 has no such option and runs a model's code unasked, which is why
    # `check_trusted` comes first.
    known = "trust_remote_code" in inspect.signature(mlx_lm.load).parameters
    return {"trust_remote_code": trust_remote_code} if known else {}
