"""The thinking-length predictor: hidden states in, Gamma parameters per token out.

Knows its own layers, its configuration and its two files; nothing of the language
model that it reads, of tokenizers or of generation.

Dimensions: B batch, N decoder layers, D model width, P predictor width, V vocabulary.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from . import checkpoint
from .encoder import EncoderLayer
from .guidance import GuidanceThresholds

FORMAT_VERSION = 1
WEIGHTS_FILE = "predictor.safetensors"
CONFIG_FILE = "predictor_config.json"

# Encoder sizes by name: BERT-base, as in the published checkpoints, and three of the
# smaller BERTs of Turc et al., "Well-Read Students Learn Better", arXiv 1908.08962.
SIZES = {
    "base": {"width": 768, "layers": 12, "heads": 12, "intermediate": 3072},
    "small": {"width": 512, "layers": 4, "heads": 8, "intermediate": 2048},
    "mini": {"width": 256, "layers": 4, "heads": 4, "intermediate": 1024},
    "tiny": {"width": 128, "layers": 2, "heads": 2, "intermediate": 512},
}


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
        known_tokens: K, the number of tokens that it knows, one row of the heads for
            each, and the only ones that guidance may favour; None if it knows all.
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
    known_tokens: int | None = None
    thresholds: GuidanceThresholds = field(default_factory=GuidanceThresholds)
    quantization: dict[str, int] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self):
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
        if self.quantization is not None:
            _check_quantization(self.quantization)
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} attention heads do not divide the predictor's width of "
                f"{self.width}: pass --predictor-heads with a divisor of {self.width}."
            )

    @classmethod
    def from_dict(cls, values: dict) -> "PredictorConfig":
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
                "this release reads: upgrade with `pip install -U mlx-budget`"
            )
        values = dict(values)
        thresholds = values.pop("thresholds", {})
        if not isinstance(thresholds, dict):
            raise ValueError(f"thresholds must be an object, not {thresholds!r}")
        _check_keys(cls, {*values, "thresholds"}, "")
        _check_keys(GuidanceThresholds, thresholds, " in thresholds")
        return cls(**values, thresholds=GuidanceThresholds(**thresholds))


class Predictor(nn.Module):
    """A BERT encoder over the hidden states of one position, with two heads.

    Architecture of the reference checkpoints of Budget Guidance (arXiv 2506.13752): a
    linear map from D to P, a post-LayerNorm BERT encoder without position embeddings
    and mask, read at a learned first vector, and two bias-free linear heads. Of a
    predictor that does not know the whole vocabulary the heads have a row for each
    token in ``tokens``, shape (K,), and R below is K; else it is V.
    """

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.config = config
        self.cls = mx.zeros((config.model_width,))
        self.projection = nn.Linear(config.model_width, config.width)
        self.layers = [
            EncoderLayer(
                config.width, config.heads, config.intermediate, config.layer_norm_eps
            )
            for _ in range(config.layers)
        ]
        rows = config.known_tokens or config.vocab_size
        self.concentration_head = nn.Linear(config.width, rows, bias=False)
        self.rate_head = nn.Linear(config.width, rows, bias=False)
        if config.known_tokens:
            self.tokens = mx.arange(rows, dtype=mx.int32)
            self.freeze(recurse=False, keys="tokens")

    def encode(self, hidden_states: mx.array) -> mx.array:
        """Encodes the hidden states of one position of each row.

        Args:
            hidden_states (mx.array): ``[h_0; ...; h_N]``, shape (B, N + 1, D).

        Returns:
            mx.array: The encoder's output at the learned first vector, shape (B, P).
        """
        h = hidden_states.astype(self.cls.dtype)
        cls = mx.broadcast_to(self.cls, (h.shape[0], 1, h.shape[-1]))
        x = self.projection(mx.concatenate([cls, h], axis=1))  # (B, N + 2, P)
        *lower, last = self.layers
        for layer in lower:
            x = layer(x)
        return last(x, outputs=1)[:, 0]

    def head_outputs(
        self, encoding: mx.array, tokens: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """What the two heads make of an encoding, before softplus.

        Args:
            encoding (mx.array): From `encode`, shape (B, P).
            tokens (mx.array, optional): Rows of the heads to evaluate for each row of
                the batch, shape (B, K); by default all R. Where the predictor knows
                the whole vocabulary these are token ids.

        Returns:
            tuple[mx.array, mx.array]: Of the concentration head and of the rate head,
            shape (B, K) or (B, R) each.
        """
        heads = self.concentration_head, self.rate_head
        if tokens is None:
            return heads[0](encoding), heads[1](encoding)
        return _rows(heads[0], encoding, tokens), _rows(heads[1], encoding, tokens)

    def over_vocabulary(self, values: mx.array, unknown: float) -> mx.array:
        """Puts values of the heads' rows in the places of their tokens.

        Args:
            values (mx.array): Shape (B, R).
            unknown (float): Value of the tokens that the predictor does not know.

        Returns:
            mx.array: Shape (B, V).
        """
        if not self.config.known_tokens:
            return values
        shape = len(values), self.config.vocab_size
        places = mx.broadcast_to(self.tokens, values.shape)
        filled = mx.full(shape, unknown, dtype=values.dtype)
        return mx.put_along_axis(filled, places, values, axis=-1)

    def __call__(self, hidden_states: mx.array) -> tuple[mx.array, mx.array]:
        """Predicts the remaining thinking length for every candidate next token.

        Args:
            hidden_states (mx.array): ``[h_0; ...; h_N]``, shape (B, N + 1, D).

        Returns:
            tuple[mx.array, mx.array]: Concentration and rate of the Gamma distribution
            of log(L + 1), float32, shape (B, V) each, where L counts the candidate, the
            thinking tokens after it and the closing marker; 0 for unknown tokens.
        """
        concentration, rate = (
            self.over_vocabulary(nn.softplus(o.astype(mx.float32)), 0.0)
            for o in self.head_outputs(self.encode(hidden_states))
        )
        return concentration, rate

    def check_sizes(self, width: int, layers: int, vocab_size: int) -> None:
        """Checks that a language model of these sizes is the one it was made for.

        Raises:
            ValueError: Naming the size that differs.
        """
        for what, ours, theirs in (
            ("hidden states of width", self.config.model_width, width),
            ("a number of layers of", self.config.model_layers, layers),
            ("a vocabulary of", self.config.vocab_size, vocab_size),
        ):
            if ours != theirs:
                raise ValueError(
                    "The predictor was made for another model "
                    f"({self.config.base_model}): it expects {what} {ours:,}, and "
                    f"this model has {theirs:,}."
                )

    def quantize(self, bits: int, group_size: int = 64) -> "Predictor":
        """A predictor with the same weights quantised; this one is left as it is.

        Args:
            bits: 4 or 8 bits per weight.
            group_size: Number of weights that share a scale, 32, 64 or 128; linear
                layers whose input width it does not divide stay as they are.

        Raises:
            ValueError: If it is quantised already, or not to such bits or groups.
        """
        if self.config.quantization:
            raise ValueError("The predictor is quantised already.")
        settings = {"group_size": group_size, "bits": bits}
        config = replace(self.config, quantization=settings)
        other = Predictor(self.config)
        other.update(self.parameters())
        _quantize_layers(other, settings)
        other.config = config
        return other.eval()

    def save(
        self, path: str | Path, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Writes `predictor.safetensors` and `predictor_config.json` into a folder.

        Args:
            path: The folder, made if it is not there. Each file appears whole or not
                at all.
            progress: Called with the bytes of each tensor written.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        weights = dict(tree_flatten(self.parameters()))
        checkpoint.write(path / WEIGHTS_FILE, weights, progress)
        text = json.dumps(asdict(self.config), indent=2) + "\n"
        checkpoint.write_text(path / CONFIG_FILE, text)

    @classmethod
    def load(cls, path: str | Path) -> "Predictor":
        """Loads a predictor from a folder written by `save`.

        Raises:
            ValueError: If a file is missing or damaged, or if a tensor is missing,
                extra, or not of the shape that the configuration gives it.
        """
        path = Path(path)
        config = _read_config(path / CONFIG_FILE)
        predictor = cls(config)
        if config.quantization:
            _quantize_layers(predictor, config.quantization)
        file = path / WEIGHTS_FILE
        found = {k: t.shape for k, t in checkpoint.read_header(file).items()}
        check_tensors(found, _shapes(predictor), str(file))
        predictor.load_weights(list(mx.load(str(file)).items()))
        if config.known_tokens:
            _check_tokens(predictor, file)
        predictor.eval()
        mx.eval(predictor.parameters())
        return predictor


def _rows(head: nn.Module, encoding: mx.array, tokens: mx.array) -> mx.array:
    """``head(encoding)`` at ``tokens`` alone; shape (B, K)."""
    if not isinstance(head, nn.QuantizedLinear):
        return (head.weight[tokens] @ encoding[..., None])[..., 0]
    out = mx.quantized_matmul(
        encoding[:, None],
        head.weight[tokens],
        head.scales[tokens],
        head.biases[tokens],
        transpose=True,
        group_size=head.group_size,
        bits=head.bits,
    )
    return out[:, 0]


def _check_tokens(predictor: Predictor, file: Path) -> None:
    is_int32 = predictor.tokens.dtype == mx.int32
    # NumPy cannot hold every type that may be in the file.
    tokens = np.array(predictor.tokens.astype(mx.int32))
    in_order = is_int32 and np.all(np.diff(tokens) > 0)
    if not in_order or tokens[0] < 0 or tokens[-1] >= predictor.config.vocab_size:
        raise ValueError(
            f"{file}: tokens must be different ids below "
            f"{predictor.config.vocab_size:,}, in ascending order, as int32."
        )


def check_tensors(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], where: str
) -> None:
    """Compares tensor names and shapes.

    Raises:
        ValueError: Naming the first tensor that is missing, extra or misshapen.
    """
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"{where} lacks the predictor tensor {name} {shape}.")
        if found[name] != shape:
            raise ValueError(
                f"{where}: predictor tensor {name} has shape {found[name]}, "
                f"expected {shape}."
            )
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(
            f"{where} has a tensor {name} {found[name]} that no predictor of this "
            "configuration has."
        )


def is_predictor_folder(path: Path) -> bool:
    """Whether a folder holds a predictor, alone or beside a model."""
    return (path / CONFIG_FILE).exists() or (path / WEIGHTS_FILE).exists()


def _check_quantization(settings: dict[str, int]) -> None:
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


def _shapes(predictor: Predictor) -> dict[str, tuple[int, ...]]:
    return {k: v.shape for k, v in tree_flatten(predictor.parameters())}


def _quantize_layers(predictor: Predictor, settings: dict[str, int]) -> None:
    nn.quantize(
        predictor,
        **settings,
        class_predicate=lambda _, m: (
            isinstance(m, nn.Linear)
            and m.weight.shape[-1] % settings["group_size"] == 0
        ),
    )


def _read_config(file: Path) -> PredictorConfig:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{file.parent} is not a predictor folder: it has no {file.name}. Make one "
            "with `mlx-budget convert`."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{file} is not valid JSON: {e}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object.")
    try:
        return PredictorConfig.from_dict(values)
    except (ValueError, TypeError) as e:
        raise ValueError(f"{file} cannot be read: {str(e).rstrip('.')}.") from None


def _check_keys(cls: type, keys: set[str] | dict, where: str) -> None:
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(keys) - known):
        raise ValueError(f"unknown key {unknown[0]!r}{where}")
