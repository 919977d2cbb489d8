"""The predictor of the paper: hidden states in, Gamma parameters per token out.

Knows its own layers and its two files; nothing of the language model that it reads, of
tokenizers or of generation.

Dimensions: B batch, N decoder layers, D model width, P predictor width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..files.tensors import named_tensors, read_header, read_tensors, write_tensors
from ..files.texts import write_json
from . import certain, kernels
from .encoder import EncoderLayer
from .guidance import GuidanceThresholds, Tokens, Window
from .predictor import (
    CONFIG_FILE,
    LAYERS,
    VOCABULARY,
    WEIGHTS_FILE,
    WIDTH,
    Outputs,
    Predictor,
    ReplyProgress,
    check_size,
)
from .predictor_config import PredictorConfig, Quantization


class EncoderPredictor(nn.Module, Predictor):
    """A BERT encoder over the hidden states of one position, with two heads.

    Architecture of the reference checkpoints of Budget Guidance (arXiv 2506.13752): a
    linear map from D to P, a post-LayerNorm BERT encoder without position embeddings
    and mask, read at a learned first vector, and two bias-free linear heads. Those of
    our own training have LayerNorms before the layers, and standardise the hidden
    states by ``input_mean`` and ``input_scale``, shape (N + 1, D). Of a predictor that
    does not know the whole vocabulary the heads have a row for each token in
    ``tokens``, shape (K,), and R below is K; else it is V. Of these tokens some may be
    certain to come with one length, in ``certain_lengths``, shape (K,), 0 for others.
    """

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.config = config
        self.cls = mx.zeros((config.model_width,))
        self.projection = nn.Linear(config.model_width, config.width)
        self.layers = [
            EncoderLayer(
                config.width,
                config.heads,
                config.intermediate,
                config.layer_norm_eps,
                config.norm,
            )
            for _ in range(config.layers)
        ]
        if config.norm == "pre":
            self.final_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        if config.standardize_inputs:
            shape = config.model_layers + 1, config.model_width
            self.input_mean, self.input_scale = mx.zeros(shape), mx.ones(shape)
            self.freeze(recurse=False, keys=["input_mean", "input_scale"])
        rows = config.known_tokens or config.vocab_size
        self.concentration_head = nn.Linear(config.width, rows, bias=False)
        self.rate_head = nn.Linear(config.width, rows, bias=False)
        if config.known_tokens:
            self.tokens = mx.arange(rows, dtype=mx.int32)
            self.freeze(recurse=False, keys="tokens")
        if config.has_certain_lengths:
            self.certain_lengths = mx.zeros((rows,), dtype=mx.int32)
            self.freeze(recurse=False, keys="certain_lengths")

    @property
    def base_model(self) -> str:
        """Name of the language model that it was made for."""
        return self.config.base_model

    @property
    def thresholds(self) -> GuidanceThresholds:
        """Which of its predictions guidance trusts."""
        return self.config.thresholds

    @property
    def known_tokens(self) -> int | None:
        """R, if guidance may favour no other tokens; None if it may favour any."""
        return self.config.known_tokens

    def encode(self, hidden_states: mx.array) -> mx.array:
        """Encodes the hidden states of one position of each row.

        Args:
            hidden_states (mx.array): ``[h_0; ...; h_N]``, shape (B, N + 1, D).

        Returns:
            mx.array: The encoder's output at the learned first vector, shape (B, P).
        """
        h = self._standardized(hidden_states, 0)
        cls = mx.broadcast_to(self.cls, (h.shape[0], 1, h.shape[-1]))
        return self._read(self.projection(mx.concatenate([cls, h], axis=1)))

    def project(self, hidden_states: mx.array, first: int) -> mx.array:
        """The first step of `encode`, for some of the layers.

        Args:
            hidden_states (mx.array): ``[h_i; h_i+1; ...]``, shape (B, n, D).
            first (int): i.

        Returns:
            mx.array: Shape (B, n, P).
        """
        return self.projection(self._standardized(hidden_states, first))

    def encode_projected(self, projected: mx.array) -> mx.array:
        """The other steps of `encode`, of all layers, shape (B, N + 1, P)."""
        b, _, p = projected.shape
        cls = mx.broadcast_to(self.projection(self.cls[None, None]), (b, 1, p))
        return self._read(mx.concatenate([cls, projected], axis=1))

    def _standardized(self, hidden_states: mx.array, first: int) -> mx.array:
        h = hidden_states.astype(self.cls.dtype)
        if not self.config.standardize_inputs:
            return h
        here = slice(first, first + h.shape[1])
        return (h - self.input_mean[here]) * self.input_scale[here]

    def _read(self, x: mx.array) -> mx.array:
        """The encoder's output at the first position of x, shape (B, N + 2, P)."""
        *lower, last = self.layers
        for layer in lower:
            x = layer(x)
        encoding = last(x, outputs=1)[:, 0]
        return self.final_norm(encoding) if "final_norm" in self else encoding

    @property
    def last_norm(self) -> nn.LayerNorm:
        """The LayerNorm whose output is the encoding."""
        return self.final_norm if "final_norm" in self else self.layers[-1].output_norm

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
            found = heads[0](encoding), heads[1](encoding)
        else:
            found = _rows(heads[0], encoding, tokens), _rows(heads[1], encoding, tokens)
        if not self.config.has_certain_lengths:
            return found
        lengths = self.certain_lengths
        lengths = lengths[None] if tokens is None else lengths[tokens]
        # So far from 0 softplus changes nothing.
        known = certain.parameters_of(lengths)
        concentration, rate = (
            mx.where(lengths > 0, k, f) for k, f in zip(known, found, strict=True)
        )
        return concentration, rate

    def outputs(
        self,
        encoding: mx.array | None,
        progress: ReplyProgress,
        tokens: mx.array | None = None,
    ) -> Outputs:
        """`head_outputs`, which do not depend on the progress."""
        return self.head_outputs(cast(mx.array, encoding), tokens)

    def log_weights(self, outputs: Outputs, window: Window | Tokens) -> mx.array:
        """Log-weights of the candidates, in nats, in one kernel on a GPU."""
        return kernels.log_weights(*outputs, window, self.thresholds)

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
        return self.parameters_of(self.head_outputs(self.encode(hidden_states)))

    def parameters_of(
        self, outputs: tuple[mx.array, mx.array]
    ) -> tuple[mx.array, mx.array]:
        """The result of a call, from the `head_outputs` of all R rows.

        Returns:
            tuple[mx.array, mx.array]: As `__call__`.
        """
        concentration, rate = (
            self.over_vocabulary(nn.softplus(o.astype(mx.float32)), 0.0)
            for o in outputs
        )
        return concentration, rate

    def check_sizes(self, width: int, layers: int, vocab_size: int) -> None:
        """Checks that a language model of these sizes is the one it was made for.

        Raises:
            ValueError: Naming the size that differs.
        """
        c = self.config
        check_size(c.base_model, WIDTH, c.model_width, width)
        check_size(c.base_model, LAYERS, c.model_layers, layers)
        check_size(c.base_model, VOCABULARY, c.vocab_size, vocab_size)

    def quantize(self, bits: int, group_size: int = 64) -> "EncoderPredictor":
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
        settings = Quantization(group_size=group_size, bits=bits)
        config = replace(self.config, quantization=settings)
        other = EncoderPredictor(self.config)
        other.update(self.parameters())
        _quantize_layers(other, settings)
        other.config = config
        other.eval()
        return other

    def tensors(self) -> dict[str, mx.array]:
        """As `Predictor.tensors`."""
        return named_tensors(self.parameters())

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
        write_tensors(path / WEIGHTS_FILE, self.tensors(), progress)
        write_json(path / CONFIG_FILE, asdict(self.config))

    @classmethod
    def _load(cls, path: Path, values: dict[str, Any]) -> "EncoderPredictor":
        """Raises a ValueError if a tensor is missing, extra, or not of the shape that
        the configuration gives it.
        """
        config = PredictorConfig.from_file_contents(path / CONFIG_FILE, values)
        predictor = cls(config)
        if config.quantization:
            _quantize_layers(predictor, config.quantization)
        file = path / WEIGHTS_FILE
        found = {k: t.shape for k, t in read_header(file).items()}
        check_tensors(found, _shapes(predictor), str(file))
        predictor.load_weights(list(read_tensors(file).items()))
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
        cast(mx.array, head.biases)[tokens],  # which affine quantisation has
        transpose=True,
        group_size=head.group_size,
        bits=head.bits,
    )
    return out[:, 0]


def _check_tokens(predictor: EncoderPredictor, file: Path) -> None:
    is_int32 = predictor.tokens.dtype == mx.int32
    # NumPy cannot hold every type that may be in the file.
    tokens = np.array(predictor.tokens.astype(mx.int32))
    in_order = is_int32 and np.all(np.diff(tokens) > 0)
    if not in_order or tokens[0] < 0 or tokens[-1] >= predictor.config.vocab_size:
        raise ValueError(
            f"{file}: tokens must be different ids below "
            f"{predictor.config.vocab_size:,}, in ascending order, as int32."
        )
    if not predictor.config.has_certain_lengths:
        return
    lengths = predictor.certain_lengths
    if lengths.dtype != mx.int32 or np.any(np.array(lengths.astype(mx.int32)) < 0):
        raise ValueError(f"{file}: certain_lengths must be 0 or more, as int32.")


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


def _shapes(predictor: EncoderPredictor) -> dict[str, tuple[int, ...]]:
    return {k: v.shape for k, v in named_tensors(predictor.parameters()).items()}


def _quantize_layers(predictor: EncoderPredictor, settings: Quantization) -> None:
    nn.quantize(
        predictor,
        settings["group_size"],
        settings["bits"],
        class_predicate=lambda _, m: (
            isinstance(m, nn.Linear)
            and m.weight.shape[-1] % settings["group_size"] == 0
        ),
    )
