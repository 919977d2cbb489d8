"""The predictors that others have published, and the models that they fit.

Knows names, sizes and what a model's files say of its origin; nothing of downloads.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.settings import ModelSource
from ..files import hub
from ..files.texts import read_json
from ..method.sizes import SIZES


@dataclass(frozen=True)
class PublishedPredictor:
    """A reference checkpoint on the Hub, whose predictor can be had by its name.

    Attributes:
        name: Of the checkpoint on the Hub; what ``--predictor`` takes.
        base_model: Of the model it was trained for, on the Hub.
        model_width: D of that model.
        model_layers: N of that model.
        vocab_size: V of that model.
    """

    name: str
    base_model: str
    model_width: int
    model_layers: int
    vocab_size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the predictor in 16 bits, by arithmetic: BERT-base and two heads."""
        sizes = SIZES["base"]
        width, between = sizes["width"], sizes["intermediate"]
        layer = 4 * width * (width + 1) + 2 * width * between + between + 5 * width
        projection = self.model_width * (width + 1) + width
        heads = 2 * self.vocab_size * width
        return 2 * (projection + sizes["layers"] * layer + heads)


# arXiv 2506.13752; the sizes are those of the base models' config.json.
PUBLISHED = (
    PublishedPredictor(
        "senfu/DeepSeek-R1-Distill-Qwen-7B-BG",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        model_width=3584,
        model_layers=28,
        vocab_size=152064,
    ),
    PublishedPredictor(
        "senfu/Qwen3-8B-BG",
        "Qwen/Qwen3-8B",
        model_width=4096,
        model_layers=36,
        vocab_size=151936,
    ),
    PublishedPredictor(
        "senfu/DeepSeek-R1-Distill-Qwen-32B-BG",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        model_width=5120,
        model_layers=64,
        vocab_size=152064,
    ),
)

# What names of builds put behind that of the model: how it was quantised, for what, and
# when. Anything else, such as "Base" or "abliterated", makes it another model.
_BUILD = re.compile(
    r"""(?:[-_.](?:
        mlx | quantized | quant | original | hf | unsloth |
        (?:[0-9]+[-_]?bits?) | (?:[biq]?f(?:loat|p)?(?:8|16|32)) | (?:b?float16) |
        (?:u?int[48]) | (?:(?:mx|nv)fp[48]) | (?:w[0-9]+a[0-9]+) |
        (?:q[0-9](?:[-_](?:[0-9]|k|s|m|l|xs|hi))*) |
        dwq | awq | gptq | hqq | affine | dynamic | mixed(?:[-_][0-9]){0,2} |
        (?:g(?:s|roup)?[0-9]+) | (?:lr[0-9][0-9.e-]*) | (?:[0-9]{6,8})
    ))*""",
    re.IGNORECASE | re.VERBOSE,
)
_CARD_LINE = re.compile(r"(base_model|base_model_relation):[ \t]*(\S.*)?")
_CARD_ITEM = re.compile(r"[ \t]*-[ \t]+(\S.*)")
# Relations in a model card that leave the weights' behaviour as it was.
_SAME_MODEL = ("", "quantized")


def fitting(model: str, folder: Path | None = None) -> PublishedPredictor | None:
    """The published predictor that fits a model, if one does.

    A model is told by its name, or by what its files name as their origin: a build of
    the base model fits, quantised or not, and a fine-tune of it does not.

    Args:
        model (str): Hub name or folder, such as "mlx-community/Qwen3-8B-4bit".
        folder (Path, optional): Where its files are, as far as they are there. Sizes in
            its config.json that differ rule a predictor out.
    """
    config = _config(folder)
    names = [Path(model).name, *_origins(folder, config)]
    for published in PUBLISHED:
        if _differs(config, published):
            continue
        if any(is_build_of(name, published.base_model) for name in names):
            return published
    return None


def fitting_source(source: ModelSource) -> PublishedPredictor | None:
    """The published predictor that fits a model that a user named, if one does.

    Nothing is asked of the Hub. Adapters make it another model.
    """
    if source.adapter_path is not None:
        return None
    folder = hub.at_hand(source.model, source.revision)
    return fitting(source.model, folder)


def is_build_of(name: str, base_model: str) -> bool:
    """Whether a name is that of a build of a model, whoever made the build.

    Args:
        name (str): Such as "mlx-community/Qwen3-8B-4bit", or its last part.
        base_model (str): Such as "Qwen/Qwen3-8B".
    """
    ours, theirs = (text.rstrip("/").rpartition("/")[2] for text in (name, base_model))
    if ours[: len(theirs)].lower() != theirs.lower():
        return False
    return _BUILD.fullmatch(ours[len(theirs) :]) is not None


def _config(folder: Path | None) -> dict[str, Any]:
    if folder is None or not (folder / "config.json").is_file():
        return {}
    try:
        config = read_json(folder / "config.json", "")
    except ValueError:  # whoever loads the model says what is wrong
        return {}
    return config if isinstance(config, dict) else {}


def _origins(folder: Path | None, config: dict[str, Any]) -> Iterator[str]:
    """What a model's files name as the model that it was made of."""
    for key in ("base_model", "_name_or_path"):
        if isinstance(name := config.get(key), str):
            yield name
    if folder is not None:
        yield from _card_origins(folder / "README.md")


def _card_origins(card: Path) -> list[str]:
    """The ``base_model`` of a model card, unless that was trained further."""
    try:
        lines = card.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return []
    if not lines or lines[0].strip() != "---":
        return []
    found: dict[str, list[str]] = {}
    values: list[str] | None = None
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if match := _CARD_LINE.fullmatch(line.rstrip()):
            values = found.setdefault(match[1], [])
            values.extend([match[2]] if match[2] else [])
        elif values is not None and (item := _CARD_ITEM.fullmatch(line.rstrip())):
            values.append(item[1])
        else:
            values = None
    relation = "".join(_unquoted(found.get("base_model_relation", [])))
    names = _unquoted(found.get("base_model", []))
    # A merge has several.
    return names if relation in _SAME_MODEL and len(names) == 1 else []


def _unquoted(values: list[str]) -> list[str]:
    return [value.strip(" \t'\"[]") for value in values]


def _differs(config: dict[str, Any], published: PublishedPredictor) -> bool:
    """Whether a config tells other sizes than those of the base model."""
    sizes = {
        "hidden_size": published.model_width,
        "num_hidden_layers": published.model_layers,
        "vocab_size": published.vocab_size,
    }
    return any(config.get(key, size) != size for key, size in sizes.items())
