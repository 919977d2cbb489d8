"""A name to what its small files say, before anything large is downloaded.

Knows the Hub, indices, headers and configurations; nothing of mlx-lm or of predictors'
weights.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .. import demo
from ..files import hub
from ..files.shards import (
    INDEX_FILE,
    PICKLE_SUFFIXES,
    PICKLES_ONLY,
    find_shards,
    read_index,
)
from ..files.tensors import MAX_HEADER_BYTES, TensorInfo, parse_header, read_header
from ..files.texts import read_json
from ..method.predictor import CONFIG_FILE, is_predictor_folder
from .reference import is_predictor_tensor

# What a model's config.json holds.
Config = dict[str, Any]

# What tells whether a repository holds a model or a predictor, and of what sizes.
FIRST_FILES = ("config.json", INDEX_FILE, CONFIG_FILE)

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_VOCABULARIES = ("vocab_size", "padded_vocab_size")


class ModelSizes(NamedTuple):
    """Sizes that a configuration tells, each None if it does not.

    Attributes:
        width: D.
        layers: N.
        vocab_size: V.
    """

    width: int | None
    layers: int | None
    vocab_size: int | None


@dataclass(frozen=True)
class Found:
    """A local folder or a Hub repository, as far as it is here.

    Attributes:
        name: As it was given.
        folder: Where its files are, or will be.
        commit: Of the repository, so that all files are of one; None if it is local.
    """

    name: str
    folder: Path
    commit: str | None = None

    @property
    def has_predictor(self) -> bool:
        """Whether there is a converted predictor in it."""
        return is_predictor_folder(self.folder)

    @property
    def has_weights(self) -> bool:
        """Whether there are weights of a model in it, here or on the Hub.

        Raises:
            ValueError: If they are pickles.
        """
        if (self.folder / INDEX_FILE).exists():
            return True
        if self.commit is None:
            names = [path.name for path in self.folder.iterdir()]
        else:
            names = list(self._sizes)
        if hub.matching(dict.fromkeys(names, 0), hub.WEIGHT_FILES):
            return True
        if any(name.endswith(PICKLE_SUFFIXES) for name in names):
            raise ValueError(PICKLES_ONLY.format(self.name))
        return False

    @cached_property
    def predictor_files(self) -> list[str]:
        """The shards that hold a reference's predictor tensors."""
        files = self.tensor_files
        return sorted({files[name] for name in files if is_predictor_tensor(name)})

    @cached_property
    def tensor_files(self) -> dict[str, str]:
        """The shard of each tensor, by their names.

        Raises:
            ValueError: If there are no weights, or they cannot be read.
        """
        if (index := self.folder / INDEX_FILE).exists():
            return read_index(index)
        return {name: file for file in self.shards for name in self.header(file)}

    @cached_property
    def shards(self) -> list[str]:
        """The names of the files that hold the weights.

        Raises:
            ValueError: If there are none.
        """
        if self.commit is None or self._has_all_shards():
            return [shard.name for shard in find_shards(self.folder)]
        if (index := self.folder / INDEX_FILE).exists():
            return sorted(set(read_index(index).values()))
        if not self.has_weights:
            raise ValueError(
                f"{self.name} is not a checkpoint: it has no model*.safetensors file. "
                "Check the name."
            )
        return sorted(hub.matching(self._sizes, hub.WEIGHT_FILES))

    @property
    def is_here(self) -> bool:
        """Whether its weights need no download."""
        return self.commit is None or self._has_all_shards()

    @property
    def bytes_missing(self) -> int:
        """Bytes of the weights that have to be downloaded still."""
        return self.bytes_of(self.shards)

    def bytes_of(self, files: Sequence[str]) -> int:
        """Bytes of those of some files that have to be downloaded still."""
        if self.commit is None:
            return 0
        missing = [name for name in files if not (self.folder / name).exists()]
        return sum(self._sizes.get(name, 0) for name in missing) if missing else 0

    def header(self, file: str) -> dict[str, TensorInfo]:
        """Names, types and shapes of a shard's tensors, without a download.

        Raises:
            ValueError: If it is not a safetensors file.
        """
        path = self.folder / file
        if self.commit is None or path.exists():
            return read_header(path)
        start = hub.read_bytes(self.name, file, self.commit, 0, 8)
        (length,) = struct.unpack("<Q", start.ljust(8, b"\0"))
        end = 8 + min(length, MAX_HEADER_BYTES)
        text = hub.read_bytes(self.name, file, self.commit, 8, end)
        return parse_header(f"{self.name}/{file}", text)[0]

    def fetch(self, patterns: Sequence[str], is_small: bool = False) -> Path:
        """Downloads more of it; errors as in `hub.fetch`."""
        if self.commit is None:
            return self.folder
        return hub.fetch(self.name, patterns, self.commit, is_small=is_small)

    def fetch_small(self) -> Path:
        """Downloads all but the weights; errors as in `hub.fetch`."""
        return self.fetch(hub.SMALL_FILES, is_small=True)

    def fetch_large(self, files: Sequence[str]) -> Path:
        """Downloads files whose names are known, if there is room for them.

        Raises:
            ValueError: As `hub.fetch`, or if the disk is too full.
        """
        if missing := self.bytes_of(files):
            hub.check_space(self.name, missing)
        return self.fetch(files)

    def read_config(self) -> Config:
        """Its `config.json`.

        Raises:
            ValueError: If it is missing or not a configuration.
        """
        if not (self.folder / "config.json").exists() and self.has_predictor:
            raise ValueError(
                f"{self.name} holds a predictor alone, and no config.json of a model: "
                "give it to --predictor, and the model it is for to --model."
            )
        return read_config(self.folder)

    def _has_all_shards(self) -> bool:
        try:
            return bool(find_shards(self.folder))
        except (ValueError, OSError):
            return False

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return hub.list_sizes(self.name, self.commit)


def look_up(name: str | Path, revision: str | None = None) -> Found:
    """Finds a folder or a repository; of the latter a few kilobytes are downloaded.

    Raises:
        ValueError: In one line, if there is none, it may not be read, or the Hub cannot
            be reached.
    """
    if name == demo.NAME:
        if revision is not None:
            raise ValueError(f"--revision is for names on the Hub; {name} is built in.")
        return Found(demo.NAME, demo.FOLDER)
    folder = hub.fetch(name, FIRST_FILES, revision, is_small=True)
    commit = None if hub.is_local(name) else folder.name
    return Found(str(name), folder, commit)


def read_config(path: Path) -> Config:
    """A folder's `config.json`.

    Raises:
        ValueError: If it is missing or not a configuration.
    """
    file = path / "config.json"
    config = read_json(
        file,
        f"{path} is not a checkpoint: it has no config.json. Name the folder of a "
        "model, or its name on the Hub.",
    )
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{file} names no model_type.")
    return config


def sizes_of(config: Config) -> ModelSizes:
    """The sizes that a model's `config.json` tells."""
    texts = config.get("text_config")
    parts = [config, texts] if isinstance(texts, dict) else [config]

    def first(names: Sequence[str]) -> int | None:
        found = (part.get(name) for part in parts for name in names)
        return next((n for n in found if type(n) is int), None)

    return ModelSizes(first(_WIDTHS), first(_LAYERS), first(_VOCABULARIES))
