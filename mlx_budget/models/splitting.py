"""Loads this rank's part of a model that several processes run together.

Knows mlx-lm's two ways to split a model, which files hold a part of one, and what tells
two copies of a model apart; nothing of how it is run.
"""

import hashlib
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from .. import demo
from ..engine.stages import note_stages
from ..files.tensors import named_tensors, read_header, read_samples
from ..method.predictor import Predictor
from ..ranks import Team
from .base_model import one_line
from .fetching import check_vocabulary
from .lookup import Found

_TELLING_FILES = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt")
_QUERY_HEADS = ("n_heads", "num_heads", "num_attention_heads")
_HEADS = (*_QUERY_HEADS, "n_kv_heads", "num_kv_heads", "num_key_value_heads")
# Of the bytes of each tensor, what is compared between two copies of a model.
_SAMPLE_BYTES = 64


def load_part(
    team: Team,
    name: str,
    path: Path,
    *,
    pipeline: bool,
    tokenizer_config: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, TokenizerWrapper, dict[str, Any]]:
    """Loads this rank's part of a model; every rank has to be here.

    Args:
        team (Team): The ranks.
        name (str): What the model is called.
        path (Path): Its folder, with what `own_shards` names.
        pipeline (bool): Whether each rank gets some of the layers, and not a part of
            each layer.
        tokenizer_config (dict, optional): Settings for the tokenizer.
        trust_remote_code (bool): Whether code in the folder may run.

    Returns:
        tuple: The part, the tokenizer and the configuration.

    Raises:
        ValueError: In one line, if the model cannot be split over so many ranks, or
            not all of them have the same one.
    """
    group = mx.distributed.init()
    with one_line(f"{name} cannot be loaded"):
        model, config = _read_lazily(path, trust_remote_code)
        tokenizer = load_tokenizer(
            path, tokenizer_config or {}, eos_token_ids=config.get("eos_token_id")
        )
        check_vocabulary(tokenizer)
    if path == demo.FOLDER:
        model = dequantize_model(model)
    split(name, model, group, pipeline)
    check_alike(team, name, path)
    if pipeline:
        counts = team.gather(len(model.layers), "layers")
        note_stages(model, counts, team.rank)
    mx.eval(dict(model))
    # The first step would not wait for a rank that is still reading.
    team.gather(None, "a model that is loaded")
    return model, tokenizer, config


def split(name: str, model: nn.Module, group: Any, pipeline: bool) -> nn.Module:
    """Leaves of a model what this rank is to have; nothing is read."""
    kind, size = type(model).__module__.rpartition(".")[2], group.size()
    backbone: Any = getattr(model, "model", None)
    has = {True: hasattr(backbone, "pipeline"), False: hasattr(model, "shard")}
    if not has[pipeline]:
        ways = {True: "with --pipeline", False: "without --pipeline"}
        other = "take a model that it can, or one machine"
        if has[not pipeline]:
            other = f"start it {ways[not pipeline]}"
        raise ValueError(
            f"mlx-lm cannot split {name} ({kind}) {ways[pipeline]}: {other}."
        )
    heads = dict(_heads_of(model))
    way_out = "start as many as divide it"
    if has[True] and not pipeline:
        way_out += ", or take --pipeline"

    def check(is_divided: Callable[[tuple[str, str], int], bool]) -> None:
        for place, count in heads.items():
            if pipeline or is_divided(place, count):
                continue
            of_what = "" if place[1] in _QUERY_HEADS else " of keys and values"
            raise ValueError(
                f"{name} has {count} heads{of_what} in each layer, which {size} ranks "
                f"do not divide: {way_out}."
            )

    check(lambda place, count: place[1] not in _QUERY_HEADS or count % size == 0)
    try:
        if pipeline:
            backbone.pipeline(group)
        else:
            model.shard(group)
    except Exception as e:  # whatever the model's own code raises
        check(lambda _, count: count % size == 0)
        reason = " ".join(str(e).split()) or repr(e)
        raise ValueError(
            f"{name} cannot be split over {size} ranks: {reason.rstrip('.')}. Start "
            "fewer."
        ) from e
    left = dict(_heads_of(model))
    # Some models repeat the heads of keys and values where there are too few.
    check(lambda place, count: left.get(place) in (count, count / size))
    return model


def _heads_of(model: nn.Module) -> Iterator[tuple[tuple[str, str], int]]:
    for path, module in model.named_modules():
        for name in _HEADS:
            count = module.__dict__.get(name)
            if isinstance(count, int) and count > 0:
                yield (path, name), count


def own_shards(pipeline: bool, found: Found) -> list[str]:
    """The files that hold weights of this rank's part of a model.

    Args:
        pipeline (bool): As of `load_part`.
        found (Found): The model, of which all but the weights is here.
    """
    if not pipeline:
        return found.shards
    model = _read_lazily(found.folder, trust_remote_code=True)[0]
    part = split(found.name, model, mx.distributed.init(), pipeline)
    first = part.model.start_idx
    own = range(first, first + len(part.layers))
    return sorted(
        {
            file
            for tensor, file in found.tensor_files.items()
            if (layer := _layer_of(tensor)) is None or layer in own
        }
    )


def _layer_of(tensor: str) -> int | None:
    """Of which layer a tensor is, by its name; None if of none."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", tensor)
    return int(found[1]) if found else None


def _read_lazily(folder: Path, trust_remote_code: bool) -> tuple[nn.Module, dict]:
    """A model of whose weights there may be few, none of them read yet."""
    options: dict[str, Any] = {"lazy": True, "strict": False}
    if "trust_remote_code" in inspect.signature(load_model).parameters:
        options["trust_remote_code"] = trust_remote_code
    return load_model(folder, **options)


def check_same_predictor(team: Team, predictor: Predictor | bool | None) -> None:
    """Raises a ValueError if the ranks have different predictors."""
    ours = _sign_of(predictor)
    for rank, theirs in enumerate(team.gather(ours, "the predictor")):
        if theirs != ours:
            raise ValueError(
                f"The predictor is not the same on rank {rank} as on rank {team.rank}: "
                "copy the folder of one Mac to the others."
            )


def _sign_of(predictor: Predictor | bool | None) -> Any:
    if isinstance(predictor, bool | None):
        return predictor
    if not isinstance(predictor, nn.Module):
        return _digest_of(predictor)
    values = named_tensors(predictor.parameters())
    return {k: _digest_of(v.reshape(-1)[-_SAMPLE_BYTES:]) for k, v in values.items()}


def _digest_of(value: Any) -> str:
    return _digest(pickle.dumps(value))


def check_alike(team: Team, name: str, path: Path) -> None:
    """Compares the copies of a folder that the ranks have, as far as both have it.

    Of a tensor its shape and some of its bytes: to read all of them would take minutes.

    Raises:
        ValueError: Naming what differs.
    """
    ours = _signs_of(path)
    for rank, theirs in enumerate(team.gather(ours, "files")):
        for part in sorted(ours.keys() & theirs.keys()):
            if ours[part] != theirs[part]:
                raise ValueError(
                    f"{name} is not the same on rank {rank} as on rank {team.rank}: "
                    f"{part} differs. Copy the folder of one Mac to the others."
                )


def _signs_of(path: Path) -> dict[str, str]:
    """Digests of the texts and tensors of a folder, by their names."""
    signs = {}
    for pattern in _TELLING_FILES:
        for file in path.glob(pattern):
            signs[file.name] = _digest(file.read_bytes())
    for shard in path.glob("*.safetensors"):
        samples = read_samples(shard, _SAMPLE_BYTES)
        for tensor, found in read_header(shard).items():
            signs[tensor] = _digest(f"{found}".encode() + samples[tensor])
    return signs


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
