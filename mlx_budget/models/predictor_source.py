"""A predictor's folder or Hub name to the predictor, fetched and converted if need be.

Knows both forms of a predictor, and where conversions are kept; nothing of the language
model but its sizes.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..files import hub
from ..files.atomic import appearing_folder
from ..files.locks import waited_for
from ..files.tensors import read_header
from ..files.user_cache import user_cache
from ..method.predictor import (
    CONFIG_FILE,
    LAYERS,
    VOCABULARY,
    WEIGHTS_FILE,
    WIDTH,
    Predictor,
    check_size,
    read_config,
)
from .lookup import Found, ModelSizes, look_up, sizes_of
from .reference_predictor import fill_predictor, plan_predictor


@dataclass
class PredictorSource:
    """A predictor that was found, as far as it is here.

    Attributes:
        found: Its folder or repository.
    """

    found: Found

    @property
    def is_here(self) -> bool:
        """Whether it needs no download."""
        if not self.found.has_predictor:
            return not self.bytes_missing
        return self.found.commit is None or (self.found.folder / WEIGHTS_FILE).exists()

    @property
    def bytes_missing(self) -> int:
        """Bytes that have to be downloaded still."""
        if self.found.has_predictor:
            return self.found.bytes_of((CONFIG_FILE, WEIGHTS_FILE))
        return self.found.bytes_of(self.found.predictor_files)

    def check_sizes(self, model: ModelSizes) -> None:
        """Checks that it was made for a model of these sizes, as far as they are told.

        Raises:
            ValueError: Naming the size that differs.
        """
        base_model, own = self._made_for()
        for what, expected, given in zip(
            (WIDTH, LAYERS, VOCABULARY), own, model, strict=True
        ):
            if expected is not None and given is not None:
                check_size(base_model, what, expected, given)

    def load(self) -> Predictor:
        """The predictor, downloaded and converted if it has to be.

        Raises:
            ValueError: In one line, if it cannot be had or is damaged.
        """
        found = self.found
        if found.has_predictor:
            found.fetch_large((CONFIG_FILE, WEIGHTS_FILE))
            return Predictor.load(found.folder)
        if found.commit is None:
            return self._convert()
        kept = _folder_of(found.name) / found.commit
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
        except OSError:  # a home that may not be written: converted each time then
            return self._convert()
        with waited_for(kept.parent):
            if not _is_sound(kept):
                shutil.rmtree(kept, ignore_errors=True)
                predictor = self._convert()
                with appearing_folder(kept, "MLX_BUDGET_CACHE") as folder:
                    predictor.save(folder)
        return Predictor.load(kept)

    def _convert(self) -> Predictor:
        """The predictor of a reference checkpoint."""
        found = self.found
        layers = sizes_of(found.read_config()).layers
        if layers is None:
            raise ValueError(
                f"The config.json of {found.name} names no number of layers: convert "
                "it with `mlx-budget convert --predictor-only`."
            )
        predictor, _ = plan_predictor(found, found.name, layers, None)
        files = found.predictor_files
        if found.commit is not None:
            missing = self.bytes_missing
            hub.check_space(found.name, missing)
            size = hub.in_gb(missing) if missing else "here"
            shards = "file" if len(files) == 1 else "files"
            print(
                f"The predictor of {found.name} is in {len(files)} {shards} of "
                f"{len(found.shards)} ({size}): it is converted once, and kept in "
                f"{_folder_of(found.name)}.",
                file=sys.stderr,
                flush=True,
            )
            found.fetch_large(files)
        fill_predictor(predictor, found)
        return predictor

    def _made_for(self) -> tuple[str, ModelSizes]:
        """The base model's name and the sizes that the files tell of it."""
        found = self.found
        if not found.has_predictor:
            return found.name, sizes_of(found.read_config())
        values = read_config(found.folder)
        names = "model_width", "model_layers", "vocab_size"
        sizes = (values.get(name) for name in names)
        numbers = [size if type(size) is int else None for size in sizes]
        return str(values.get("base_model")), ModelSizes(*numbers)


def find_predictor(name: str | Path) -> PredictorSource:
    """Finds a predictor; of one on the Hub a few kilobytes are downloaded.

    Args:
        name (str or Path): A folder, or a Hub name: of a predictor, of a model with one
            beside it, or of a checkpoint of the reference.

    Raises:
        ValueError: In one line, if there is none, it may not be read, or the Hub cannot
            be reached and none was kept.
    """
    kept = None if hub.is_local(name) else _kept(str(name))
    found = kept or look_up(name)
    if not found.has_predictor and not (found.has_weights and found.predictor_files):
        raise ValueError(
            f"{found.name} is not a predictor folder: it has no {CONFIG_FILE}, nor the "
            "predictor of a Budget Guidance checkpoint. `mlx-budget predictors` lists "
            "those that are published, and `mlx-budget learn` makes one."
        )
    return PredictorSource(found)


@dataclass(frozen=True)
class KeptPredictor:
    """A conversion in the user's cache.

    Attributes:
        name: Of the checkpoint on the Hub.
        folder: Where it is.
        nbytes: Its size.
    """

    name: str
    folder: Path
    nbytes: int


def kept_predictors() -> list[KeptPredictor]:
    """What was converted and kept, by name."""
    kept = []
    for config in sorted(_root().glob(f"*/*/{CONFIG_FILE}")):
        folder = config.parent
        if not folder.name.startswith("."):
            name = folder.parent.name.replace("--", "/", 1)
            size = sum(file.stat().st_size for file in folder.iterdir())
            kept.append(KeptPredictor(name, folder, size))
    return kept


def remove_kept(name: str) -> int:
    """Removes what was kept of a checkpoint.

    Returns:
        int: The bytes that it had.

    Raises:
        ValueError: If nothing was.
    """
    sizes = [kept.nbytes for kept in kept_predictors() if kept.name == name]
    if not sizes:
        raise ValueError(f"No predictor of {name} is kept in {_root()}.")
    with waited_for(_folder_of(name)):
        shutil.rmtree(_folder_of(name))
    return sum(sizes)


def _kept(name: str) -> Found | None:
    """What was kept of the commit that a repository is at.

    Where the Hub does not tell, it is what was kept last.
    """
    kept = [one for one in kept_predictors() if one.name == name]
    if not kept:
        return None
    try:
        commit = hub.commit_of(name)
    except ValueError:
        folder = max((one.folder for one in kept), key=lambda f: f.stat().st_mtime)
        return Found(name, folder)
    folders = [one.folder for one in kept if one.folder.name == commit]
    folders = [folder for folder in folders if _is_sound(folder)]
    return Found(name, folders[0]) if folders else None


def _is_sound(folder: Path) -> bool:
    """Whether a conversion can be read; of its weights the header is."""
    try:
        read_header(folder / WEIGHTS_FILE)
        Predictor.load(folder)
    except ValueError:
        return False
    return True


def _root() -> Path:
    return user_cache() / "predictors"


def _folder_of(name: str) -> Path:
    return _root() / name.replace("/", "--")
