"""The sizes and settings of a predictor, and the file that holds them.

Knows what values are allowed and the format of the file; nothing of layers or weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from ..installing import install_command
from .guidance import GuidanceThresholds
from .sizes import SIZES

FORMAT_VERSION = 1
NORMS = ("post", "pre")


class Quantization(TypedDict):
    """How many weights share a scale, and the bits of each."""

    group_size: int
    bits: int


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes and settings of a predictor, as `predictor_config.json` holds them.

    Attributes:
        base_model: Name of the language model it was made for.
        model_width: D, the width of the language model's hidden states.
        model_layers: N, the number of its decoder layers.
        vocab_size: V, the number of rows of the two heads.
        width: P, the width of the encoder.
        layers: Number of encoder layers.
        heads: Number of attention heads; divides ``width``.
        intermediate: Width of the encoder's feed-forward layers.
        layer_norm_eps: Epsilon of the encoder's LayerNorms.
        norm: Where they are: "post", behind the residual sums, as in the published
            checkpoints, or "pre", with one more at the end, as in our own.
        standardize_inputs: Whether each number of a hidden state is taken relative to
            its mean and its deviation over the training positions, which the weights
            hold. Not in the published checkpoints.
        known_tokens: K, the number of tokens that it knows, one row of the heads for
            each, and the only ones that guidance may favour; None if it knows all.
        has_certain_lengths: Whether the weights hold the lengths that are certain after
            some of these tokens, which then need no prediction.
        thresholds: Which of its predictions guidance trusts.
        quantization: ``{"group_size", "bits"}``, or None.
        format_version: Version of the file format.
    """

    base_model: str
    model_width: int
    model_layers: int
    vocab_size: int
    width: int = SIZES["base"]["width"]
    layers: int = SIZES["base"]["layers"]
    heads: int = SIZES["base"]["heads"]
    intermediate: int = SIZES["base"]["intermediate"]
    layer_norm_eps: float = 1e-12
    norm: str = "post"
    standardize_inputs: bool = False
    known_tokens: int | None = None
    has_certain_lengths: bool = False
    thresholds: GuidanceThresholds = field(default_factory=GuidanceThresholds)
    quantization: Quantization | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        sizes = (
            "model_width",
            "model_layers",
            "vocab_size",
            "width",
            "layers",
            "heads",
            "intermediate",
        )
        for name in sizes if self.known_tokens is None else (*sizes, "known_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{name} of a predictor must be an integer >= 1, not {value!r}."
                )
        if (self.known_tokens or 0) > self.vocab_size:
            raise ValueError(
                f"A predictor cannot know {self.known_tokens:,} tokens of a vocabulary "
                f"of {self.vocab_size:,}."
            )
        if not isinstance(self.base_model, str):
            raise ValueError(f"base_model must be a text, not {self.base_model!r}.")
        eps = self.layer_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not eps > 0:
            raise ValueError(f"layer_norm_eps must be a number above 0, not {eps!r}.")
        if self.norm not in NORMS:
            raise ValueError(
                f"norm must be one of {', '.join(NORMS)}, not {self.norm!r}."
            )
        for name in ("standardize_inputs", "has_certain_lengths"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}.")
        if self.has_certain_lengths and self.known_tokens is None:
            raise ValueError(
                "has_certain_lengths needs known_tokens, which the lengths are of."
            )
        if self.quantization is not None:
            _check_quantization(self.quantization)
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} attention heads do not divide the predictor's width of "
                f"{self.width}: pass --predictor-heads with a divisor of {self.width}."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PredictorConfig":
        """Builds a configuration from the contents of `predictor_config.json`.

        Raises:
            ValueError: On an unknown or missing key, a bad value, or a format version
                newer than this release reads.
        """
        version = values.get("format_version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"format_version must be an integer >= 1, not {version!r}")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"its format version {version} is newer than the {FORMAT_VERSION} that "
                f"this release reads: upgrade with `{install_command(is_upgrade=True)}`"
            )
        values = dict(values)
        thresholds = values.pop("thresholds", {})
        if not isinstance(thresholds, dict):
            raise ValueError(f"thresholds must be an object, not {thresholds!r}")
        _check_keys(cls, {*values, "thresholds"}, "")
        _check_keys(GuidanceThresholds, thresholds, " in thresholds")
        return cls(**values, thresholds=GuidanceThresholds(**thresholds))

    @classmethod
    def from_file_contents(
        cls, file: Path, values: dict[str, Any]
    ) -> "PredictorConfig":
        """`from_dict`, with errors in one line that names the file."""
        try:
            return cls.from_dict(values)
        except (ValueError, TypeError) as e:
            raise ValueError(f"{file} cannot be read: {str(e).rstrip('.')}.") from None


def _check_quantization(settings: Any) -> None:
    if not isinstance(settings, dict) or set(settings) != {"group_size", "bits"}:
        raise ValueError(
            'quantization must be null or {"group_size": ..., "bits": ...}, not '
            f"{settings!r}."
        )
    for name, allowed in (("bits", (4, 8)), ("group_size", (32, 64, 128))):
        if settings[name] not in allowed:
            raise ValueError(
                f"quantization of a predictor: {name} must be one of {allowed}, not "
                f"{settings[name]!r}."
            )


def _check_keys(cls: type, keys: Iterable[str], where: str) -> None:
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(keys) - known):
        raise ValueError(f"unknown key {unknown[0]!r}{where}")
