"""Budget Guidance checkpoint to a folder for mlx-lm and a predictor beside it.

Knows the reference's files and mlx-lm's loader; nothing of generation.
"""

import contextlib
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.utils import tqdm
from mlx.utils import tree_map, tree_map_with_path
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import load_tokenizer, quantize_model

from ..engine.fields import check_count
from ..files import hub
from ..files.atomic import appearing_folder
from ..files.shards import write_shards
from ..files.tensors import named_tensors
from ..files.texts import write_text
from ..method.encoder_predictor import EncoderPredictor
from . import base_model
from .fetching import check_vocabulary
from .loading import check_fits
from .lookup import Config, Found, look_up
from .model_card import write_model_card
from .reference_predictor import (
    cast,
    check_reference,
    fill_predictor,
    plan_predictor,
)

# Of a weight; MLX says itself which of them it can do.
_MOST_BITS = 32
DTYPES = ("float16", "bfloat16", "float32")


def convert(
    hf_path: str,
    mlx_path: str | Path = "mlx_model",
    *,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    quant_predicate: str | None = None,
    dtype: str | None = None,
    predictor_q_bits: int | None = None,
    predictor_heads: int | None = None,
    predictor_only: bool = False,
    tokenizer: str | None = None,
    revision: str | None = None,
    upload_repo: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Converts a Budget Guidance checkpoint.

    The output is a plain mlx-lm model folder with `predictor.safetensors` and
    `predictor_config.json` beside the model, or these two alone. It appears whole or
    not at all. Tensors are read, converted and written one at a time.

    Args:
        hf_path (str): A local folder or a Hub name.
        mlx_path (str or Path): The folder to make; it must not exist.
        quantize (bool): Whether to quantise the language model.
        q_bits, q_group_size, q_mode, quant_predicate: As in ``mlx_lm.convert``.
        dtype (str, optional): "float16", "bfloat16" or "float32"; by default weights
            keep their type.
        predictor_q_bits (int, optional): 4 or 8 to quantise the predictor.
        predictor_heads (int, optional): The predictor's attention heads; by default
            one for every 64 of its width.
        predictor_only (bool): Whether to write the predictor alone, to be attached to
            any build of its base model.
        tokenizer (str, optional): Folder or Hub name to take the tokenizer from, when
            the checkpoint has none of its own.
        revision (str, optional): Branch, tag or commit of ``hf_path`` on the Hub.
        upload_repo (str, optional): Hub repository to upload the result to.
        trust_remote_code (bool): Whether code in the repositories may run.

    Returns:
        Path: The folder made.

    Raises:
        ValueError: In one line, if the checkpoint cannot be found, is damaged, or is
            no Budget Guidance checkpoint.
    """
    mlx_path = Path(mlx_path)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; not {dtype!r}.")
    if predictor_only and (quantize or tokenizer):
        raise ValueError(
            "--predictor-only writes no language model and no tokenizer: leave out "
            "-q and --tokenizer, or use --predictor-q-bits."
        )
    for name, number in (("q_bits", q_bits), ("q_group_size", q_group_size)):
        if number is not None:
            check_count(name, number)
    is_told_how = q_mode != "affine" or q_bits or q_group_size or quant_predicate
    if not quantize and is_told_how:
        raise ValueError(
            "--q-bits, --q-group-size, --q-mode and --quant-predicate say how to "
            "quantise: add -q, or leave them out."
        )
    if quantize:
        _check_quantisation(q_bits, q_mode, quant_predicate)
    if upload_repo is not None:
        hub.check_name(upload_repo)
    with appearing_folder(mlx_path) as folder:
        # What can be checked before a download is checked before it.
        found = _fetch(hf_path, revision, predictor_only)
        source, config = found.folder, found.read_config()
        classes = base_model.find_classes(source, hf_path, config, trust_remote_code)
        empty = base_model.make_empty(source, hf_path, classes)
        made_for = source.resolve().name if hub.is_local(hf_path) else hf_path
        predictor, _ = plan_predictor(
            found, made_for, len(empty.layers), predictor_heads
        )
        check_fits(predictor, empty)
        if not predictor_only:
            _copy_settings(source, folder)
            _copy_tokenizer(source, hf_path, tokenizer, folder, trust_remote_code)
        if quantize:
            # Of weights that are not there: says whether it can be done.
            _quantize(empty, config, q_bits, q_group_size, q_mode, quant_predicate)
        files = found.predictor_files if predictor_only else found.shards
        if upload_repo is not None and found.bytes_of(files):
            hub.check_login(upload_repo)
        found.fetch_large(files)
        fill_predictor(predictor, found, dtype)
        if predictor_q_bits is not None:
            predictor = predictor.quantize(predictor_q_bits)
        weights = {}
        if not predictor_only:
            model, config = base_model.load_lazily(source, hf_path, config, classes)
            model, config = _cast(model, config, dtype)
            if quantize:
                model, config, said = _quantize(
                    model, config, q_bits, q_group_size, q_mode, quant_predicate
                )
                sys.stderr.write(said)
            weights = _take_weights(model)
            _write_config(folder, config)
        if upload_repo is not None:
            upload_repo = hub.create(upload_repo)
        name = upload_repo or mlx_path.name
        write_model_card(folder, name, predictor.config, config, predictor_only)
        _write(folder, weights, predictor)
    if upload_repo is not None:
        _upload(mlx_path, upload_repo)
    return mlx_path


def _fetch(hf_path: str, revision: str | None, predictor_only: bool) -> Found:
    """A checkpoint of the reference, its weights not downloaded yet."""
    found = look_up(hf_path, revision)
    found.read_config()
    check_reference(found)
    found.fetch(("*.py",) if predictor_only else hub.SMALL_FILES, is_small=True)
    return found


def _cast(
    model: nn.Module, config: Config, dtype: str | None
) -> tuple[nn.Module, Config]:
    if dtype is None:
        return model, config
    may_cast = getattr(model, "cast_predicate", lambda _: True)
    model.update(
        tree_map_with_path(
            lambda k, v: cast(v, dtype) if may_cast(k) else v, model.parameters()
        )
    )
    # The key was renamed in transformers 4.56.
    return model, {**config, "dtype" if "dtype" in config else "torch_dtype": dtype}


def _check_quantisation(bits: int | None, mode: str, recipe: str | None) -> None:
    """Lets MLX refuse what it cannot do before a checkpoint is downloaded."""
    if recipe is not None and mode != "affine":
        raise ValueError("--quant-predicate works with --q-mode affine only.")
    if recipe is not None and bits is not None:
        raise ValueError("--quant-predicate chooses the bits: leave --q-bits out.")
    if bits is not None and bits > _MOST_BITS:
        raise ValueError(f"--q-bits must be at most {_MOST_BITS}, not {bits:,}.")
    mx.quantize(mx.zeros((32, 64)), bits=bits, mode=mode)


def _quantize(
    model: nn.Module,
    config: Config,
    bits: int | None,
    group_size: int | None,
    mode: str,
    recipe: str | None,
) -> tuple[nn.Module, Config, str]:
    """The model, its config with the quantisation, and what mlx-lm says of it."""
    predicate: Any = None  # mlx-lm says two types of what it makes and what it takes
    if recipe is not None:
        predicate = mixed_quant_predicate_builder(recipe, model, group_size or 64)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        model, config = quantize_model(
            model, config, group_size, bits, mode=mode, quant_predicate=predicate
        )
    if not any(k.endswith(".scales") for k in named_tensors(model.parameters())):
        raise ValueError(
            f"No layer of this model can be quantised in groups of {group_size}: give "
            "--q-group-size a divisor of its width."
        )
    return model, config, said.getvalue()


def _copy_settings(source: Path, folder: Path) -> None:
    for pattern in ("config.json", "generation_config.json", "*.py"):
        _copy_files(source, pattern, folder)


def _copy_tokenizer(
    source: Path,
    name: str,
    tokenizer: str | None,
    folder: Path,
    trust_remote_code: bool,
) -> None:
    """Copies the tokenizer's files, and sees whether it loads from there."""
    if tokenizer is not None:
        name = tokenizer
        source = hub.fetch(tokenizer, hub.TOKENIZER_FILES, is_small=True)
    for pattern in hub.TOKENIZER_FILES:
        _copy_files(source, pattern, folder)
    try:
        with hub.quiet("transformers"):
            loaded = load_tokenizer(folder, {"trust_remote_code": trust_remote_code})
        check_vocabulary(loaded)
    except Exception as e:  # the tokenizers' loaders raise whatever they like
        reason = " ".join(str(e).split())[:200] or repr(e)
        advice = "Take it from the base model with --tokenizer"
        if not trust_remote_code and any(source.glob("*.py")):
            advice += ", or pass --trust-remote-code if you trust its code"
        raise ValueError(f"{name} has no usable tokenizer ({reason}). {advice}.") from e


def _copy_files(source: Path, pattern: str, folder: Path) -> None:
    for file in source.glob(pattern):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _take_weights(model: nn.Module) -> dict[str, mx.array]:
    """The model's weights, which nothing else holds on to then."""
    weights = named_tensors(model.parameters())
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    return weights


def _write_config(folder: Path, config: Config) -> None:
    text = json.dumps(config, indent=4, sort_keys=True) + "\n"
    write_text(folder / "config.json", text)


def _write(
    folder: Path, weights: dict[str, mx.array], predictor: EncoderPredictor
) -> None:
    total = sum(
        value.nbytes
        for tensors in (weights, named_tensors(predictor.parameters()))
        for value in tensors.values()
    )
    if total > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with tqdm(total=total, desc="Writing", unit="B", unit_scale=True) as bar:
        if weights:
            write_shards(folder, weights, bar.update)
        predictor.save(folder, bar.update)


def _upload(path: Path, repo: str) -> None:
    try:
        hub.upload(path, repo)
    except ValueError as e:
        raise ValueError(
            f"{path} is converted, but was not uploaded: {e} Try again with "
            f"`hf upload {repo} {path}`."
        ) from None
