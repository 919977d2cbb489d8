"""Budget Guidance checkpoint to a folder for mlx-lm and a predictor beside it.

Knows the reference's files and mlx-lm's loader; nothing of generation.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub import HfApi
from huggingface_hub.utils import tqdm
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import (
    _get_classes,
    load_model,
    load_tokenizer,
    quantize_model,
    save_config,
)

from . import checkpoint, hub
from .loading import check_fits, read_config
from .model_card import write_model_card
from .predictor import Predictor, PredictorConfig, check_tensors
from .reference import (
    is_predictor_tensor,
    predictor_name,
    predictor_sizes,
    reference_name,
)

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
    with checkpoint.appearing_folder(mlx_path) as folder:
        if upload_repo is not None:
            with hub.one_line_errors(upload_repo):
                HfApi().create_repo(upload_repo, exist_ok=True)
        source = _fetch(hf_path, revision, predictor_only)
        config = read_config(source)
        shapes = _predictor_shapes(source, hf_path)
        sizes = predictor_sizes(shapes, predictor_heads)
        if predictor_only:
            sizes["model_layers"] = _layers_from_config(config)
            predictor = _read_predictor(source, hf_path, shapes, sizes, dtype)
        else:
            model, config = _load_base(source, trust_remote_code)
            sizes["model_layers"] = len(model.layers)
            predictor = _read_predictor(source, hf_path, shapes, sizes, dtype)
            check_fits(predictor, model)
            _copy_tokenizer(source, tokenizer, folder, config, trust_remote_code)
            model = _cast(model, dtype)
            if quantize:
                model, config = _quantize(
                    model, config, q_bits, q_group_size, q_mode, quant_predicate
                )
            if dtype is not None:
                config["torch_dtype"] = dtype
            _write_base(model, config, source, folder)
        if predictor_q_bits is not None:
            predictor = predictor.quantize(predictor_q_bits)
        name = upload_repo or mlx_path.name
        write_model_card(folder, name, predictor.config, config, predictor_only)
        predictor.save(folder)
    if upload_repo is not None:
        _upload(mlx_path, upload_repo)
    return mlx_path


def _fetch(hf_path: str, revision: str | None, predictor_only: bool) -> Path:
    """Downloads what is needed and no more."""
    if hub.is_local(hf_path):
        return hub.fetch(hf_path, (), revision)
    if not predictor_only:
        files = hub.MODEL_FILES
    else:
        settings = ("config.json", checkpoint.INDEX_FILE)
        folder = hub.fetch(hf_path, settings, revision)
        files = (*settings, *_predictor_files(folder))
    folder = hub.fetch(hf_path, files, revision)
    if not list(folder.glob("*.safetensors")):
        for name in hub.list_files(hf_path, revision):
            if name.endswith(checkpoint.PICKLE_SUFFIXES):
                raise ValueError(checkpoint.PICKLES_ONLY.format(hf_path))
    return folder


def _predictor_files(folder: Path) -> list[str]:
    """The names of the shards that hold predictor tensors, or a pattern for all."""
    index = folder / checkpoint.INDEX_FILE
    if not index.exists():
        return ["model*.safetensors"]
    shards = checkpoint.read_index(index)
    return sorted({file for name, file in shards.items() if is_predictor_tensor(name)})


def _predictor_shards(source: Path) -> list[Path]:
    if (source / checkpoint.INDEX_FILE).exists():
        return [source / name for name in _predictor_files(source)]
    return checkpoint.find_shards(source)


def _predictor_shapes(source: Path, name: str) -> dict[str, tuple[int, ...]]:
    shapes = {
        tensor: info.shape
        for shard in _predictor_shards(source)
        for tensor, info in checkpoint.read_header(shard).items()
        if is_predictor_tensor(tensor)
    }
    if not shapes:
        raise ValueError(
            f"{name} has no predictor tensors, so it is no Budget Guidance checkpoint. "
            "Convert a plain model with `mlx_lm.convert`, and give its predictor to "
            "`mlx-budget generate --predictor`."
        )
    return shapes


def _layers_from_config(config: dict) -> int:
    settings = config.get("text_config", config)
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if key in settings:
            return settings[key]
    raise ValueError("config.json does not say how many layers the model has.")


def _read_predictor(
    source: Path,
    name: str,
    shapes: dict[str, tuple[int, ...]],
    sizes: dict[str, int],
    dtype: str | None,
) -> Predictor:
    base_model = Path(name).name if hub.is_local(name) else name
    predictor = Predictor(PredictorConfig(base_model=base_model, **sizes))
    ours = dict(tree_flatten(predictor.parameters()))
    expected = {reference_name(k): v.shape for k, v in ours.items()}
    expected["cls_token"] = (1, 1, sizes["model_width"])
    check_tensors(shapes, expected, name)
    weights = {}
    for shard in _predictor_shards(source):
        for tensor, value in mx.load(str(shard)).items():
            if is_predictor_tensor(tensor):
                value = value.reshape(-1) if tensor == "cls_token" else value
                weights[predictor_name(tensor)] = _as(value, dtype)
    predictor.load_weights(list(weights.items()))
    return predictor


def _load_base(source: Path, trust_remote_code: bool) -> tuple[nn.Module, dict]:
    """The language model, its weights unread, without the predictor's tensors."""
    for shard in checkpoint.find_shards(source):
        checkpoint.read_header(shard)

    def classes(config: dict) -> tuple[type[nn.Module], type]:
        model_class, args_class = _get_classes(config)

        class Base(model_class):
            def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
                own = {k: v for k, v in weights.items() if not is_predictor_tensor(k)}
                parent = getattr(super(), "sanitize", None)
                return parent(own) if parent else own

        return Base, args_class

    return load_model(
        source,
        lazy=True,
        get_model_classes=classes,
        trust_remote_code=trust_remote_code,
    )


def _as(value: mx.array, dtype: str | None) -> mx.array:
    floating = mx.issubdtype(value.dtype, mx.floating)
    return value.astype(getattr(mx, dtype)) if dtype and floating else value


def _cast(model: nn.Module, dtype: str | None) -> nn.Module:
    may_cast = getattr(model, "cast_predicate", lambda _: True)
    model.update(
        tree_map_with_path(
            lambda k, v: _as(v, dtype) if may_cast(k) else v, model.parameters()
        )
    )
    return model


def _quantize(
    model: nn.Module,
    config: dict,
    bits: int | None,
    group_size: int | None,
    mode: str,
    predicate: str | None,
) -> tuple[nn.Module, dict]:
    if predicate is not None:
        if mode != "affine":
            raise ValueError("--quant-predicate works with --q-mode affine only.")
        predicate = mixed_quant_predicate_builder(predicate, model, group_size or 64)
    with contextlib.redirect_stdout(sys.stderr):
        return quantize_model(
            model, config, group_size, bits, mode=mode, quant_predicate=predicate
        )


def _copy_tokenizer(
    source: Path,
    tokenizer: str | None,
    folder: Path,
    config: dict,
    trust_remote_code: bool,
) -> None:
    """Copies the tokenizer's files once it has been seen to load."""
    if tokenizer is not None:
        source = hub.fetch(tokenizer, (*hub.TOKENIZER_FILES, "config.json"))
    try:
        load_tokenizer(
            source,
            {"trust_remote_code": trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )
    except Exception as e:  # the tokenizers' loaders raise whatever they like
        reason = str(e).strip().splitlines() or [repr(e)]
        raise ValueError(
            f"{tokenizer or source} has no usable tokenizer ({reason[0]}). Take it "
            "from the base model with --tokenizer."
        ) from None
    for pattern in hub.TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copy(file, folder)


def _write_base(model: nn.Module, config: dict, source: Path, folder: Path) -> None:
    save_config(dict(config), folder / "config.json")
    for file in source.glob("generation_config.json"):
        shutil.copy(file, folder)
    weights = dict(tree_flatten(model.parameters()))
    # Nothing else may hold on to the weights while they are written one by one.
    model.update(tree_map(lambda _: mx.array([]), model.parameters()))
    with _progress("Writing", sum(v.nbytes for v in weights.values())) as advance:
        checkpoint.write_shards(folder, weights, advance)


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator:
    with tqdm(total=total, desc=what, unit="B", unit_scale=True) as bar:
        yield bar.update


def _upload(path: Path, repo: str) -> None:
    try:
        with hub.one_line_errors(repo):
            HfApi().upload_folder(folder_path=path, repo_id=repo)
    except ValueError as e:
        raise ValueError(
            f"{path} is converted, but was not uploaded: {e} Try again with "
            f"`hf upload {repo} {path}`."
        ) from None
