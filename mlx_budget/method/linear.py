"""A predictor that is a table and one linear map of one layer's hidden state.

The map (a ridge probe) shifts the means of log(L + 1) for all candidates alike: the
hidden state is that before the candidate. The table holds what the map leaves. Knows
tables and arrays; nothing of language models or of how the map was found.

B is the batch, N decoder layers, D model width, K the number of tokens that were seen.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..files.tensors import read_tensors
from .predictor import LAYERS, WEIGHTS_FILE, WIDTH, check_size
from .table import LengthCounts, TablePredictor, check_config, read_counts


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map of one layer's hidden state.

    Attributes:
        layer: Which of h_0 to h_N it reads.
        layers: N.
        weight: float32, shape (D,).
        bias: What is added, in nats.
        spread: What the table's variances are to be multiplied by, since the map was
            fitted to the lengths that they were measured on.
    """

    layer: int
    layers: int
    weight: np.ndarray
    bias: float
    spread: float


class LinearPredictor(TablePredictor):
    """Predicts from the candidate, the length of the reply so far and a probe.

    Args:
        base_model, vocab_size, closing: As of `TablePredictor`.
        counts (LengthCounts): Of log(L + 1) without what the map makes of it.
        probe (Probe): The linear map.
    """

    reads_states = True

    def __init__(
        self,
        base_model: str,
        vocab_size: int,
        closing: int,
        counts: LengthCounts,
        probe: Probe,
    ):
        super().__init__(base_model, vocab_size, closing, counts)
        self.probe = probe
        self._weight = mx.array(probe.weight, mx.float32)

    def check_sizes(self, width: int, layers: int, vocab_size: int) -> None:
        """Checks that a language model of these sizes is the one it was made for.

        Raises:
            ValueError: Naming the size that differs.
        """
        self.check_vocabulary(vocab_size)
        check_size(self.base_model, WIDTH, len(self.probe.weight), width)
        check_size(self.base_model, LAYERS, self.probe.layers, layers)

    def encode(self, hidden_states: mx.array) -> mx.array:
        """What the map makes of hidden states.

        Args:
            hidden_states (mx.array): ``[h_0; ...; h_N]``, shape (B, N + 1, D).

        Returns:
            mx.array: In nats, float32, shape (B, 1).
        """
        return self.encode_layer(hidden_states[:, self.probe.layer])

    def encode_layer(self, states: mx.array | np.ndarray) -> mx.array:
        """`encode`, of the states of its layer alone, shape (B, D)."""
        states = mx.array(states, mx.float32)
        return (states * self._weight).sum(axis=-1, keepdims=True) + self.probe.bias

    def _shift(
        self, mean: mx.array, variance: mx.array, encoding: mx.array, rows: mx.array
    ) -> tuple[mx.array, mx.array]:
        is_certain = self._is_certain[rows]
        return (
            mx.where(is_certain, mean, mean + encoding),
            mx.where(is_certain, variance, variance * self.probe.spread),
        )

    def tensors(self) -> dict[str, mx.array]:
        """As `Predictor.tensors`."""
        probe = {
            "probe.weight": self._weight,
            "probe.bias": mx.array([self.probe.bias], mx.float32),
            "probe.spread": mx.array([self.probe.spread], mx.float32),
        }
        return {**super().tensors(), **probe}

    def _config(self) -> dict[str, Any]:
        sizes = {
            "model_width": len(self.probe.weight),
            "model_layers": self.probe.layers,
            "layer": self.probe.layer,
        }
        return {**super()._config(), "kind": "linear", **sizes}

    @classmethod
    def _load(cls, path: Path, values: dict[str, Any]) -> "LinearPredictor":
        names = "base_model", "vocab_size", "closing"
        sizes = "model_width", "model_layers", "layer"
        config = check_config(path, values, *names, *sizes)
        width, layers, layer = (config.pop(name) for name in sizes)
        file = path / WEIGHTS_FILE
        tensors = read_tensors(file)
        counts = read_counts(file, tensors)
        found = {}
        for name, shape in (("weight", (width,)), ("bias", (1,)), ("spread", (1,))):
            tensor = tensors.get(f"probe.{name}")
            if tensor is None:
                raise ValueError(f"{file} lacks the predictor tensor probe.{name}.")
            if tensor.shape != shape:
                raise ValueError(
                    f"{file}: predictor tensor probe.{name} has shape {tensor.shape}, "
                    f"expected {shape}."
                )
            found[name] = np.array(tensor.astype(mx.float32))
        bias, spread = float(found["bias"][0]), float(found["spread"][0])
        if layer > layers or not 0 < spread < np.inf:
            raise ValueError(
                f"{path} cannot be read: its layer or variance is invalid."
            )
        probe = Probe(layer, layers, found["weight"], bias, spread)
        try:
            return cls(counts=counts, probe=probe, **config)
        except ValueError as e:
            raise ValueError(f"{path} cannot be read: {e}") from None
