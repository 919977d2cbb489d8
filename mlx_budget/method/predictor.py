"""What guidance asks of a predictor of thinking lengths, of whatever kind.

Every kind gives, for each candidate next token, a Gamma distribution of log(L + 1),
where L counts the candidate, the thinking tokens after it and the closing marker.
Knows what the kinds have in common and how a folder tells which one it holds; nothing
of language models, tokenizers or generation.

B is the batch, N decoder layers, D model width, P the width of an encoding, K the
number of candidates, R that of the tokens a predictor knows, V vocabulary.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import mlx.core as mx

from ..files.texts import read_json
from ..installing import install_command
from . import guidance
from .guidance import GuidanceThresholds, Tokens, Window

CONFIG_FILE = "predictor_config.json"
WEIGHTS_FILE = "predictor.safetensors"

# By the `kind` that the configuration names: its module and class. Kinds are imported
# when a folder holds one.
_KINDS = {
    "encoder": ("encoder_predictor", "EncoderPredictor"),
    "table": ("table", "TablePredictor"),
    "linear": ("linear", "LinearPredictor"),
}

P = TypeVar("P", bound="Predictor")
Outputs = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class ReplyProgress:
    """How far a reply has come.

    Attributes:
        thinking_tokens: Tokens of thinking before the candidate.
        budget: Tokens of thinking that the reply is to have in all; None if unknown.
    """

    thinking_tokens: int = 0
    budget: int | None = None


class Predictor:
    """A predictor of thinking lengths.

    Attributes:
        reads_states: Whether it reads the model's hidden states.
        follows_progress: Whether what it says depends on how far the reply has come,
            besides the hidden states.
    """

    reads_states: ClassVar[bool] = True
    follows_progress: ClassVar[bool] = False

    @property
    def base_model(self) -> str:
        """Name of the language model that it was made for."""
        raise NotImplementedError

    @property
    def thresholds(self) -> GuidanceThresholds:
        """Which of its predictions guidance trusts."""
        return NO_THRESHOLDS

    @property
    def knows_lengths(self) -> bool:
        """Whether it can tell how long thinking will take, without a budget."""
        return True

    @property
    def known_tokens(self) -> int | None:
        """R, if guidance may favour no other tokens; None if it may favour any."""
        return None

    def check_sizes(self, width: int, layers: int, vocab_size: int) -> None:
        """Checks that a language model of these sizes is the one it was made for.

        Args:
            width (int): D.
            layers (int): N.
            vocab_size (int): V.

        Raises:
            ValueError: Naming the size that differs.
        """
        raise NotImplementedError

    def check_vocabulary(self, vocab_size: int) -> None:
        """`check_sizes`, of a predictor that reads no hidden states."""
        raise NotImplementedError

    def encode(self, hidden_states: mx.array) -> mx.array:
        """Encodes the hidden states of one position of each row.

        Args:
            hidden_states (mx.array): ``[h_0; ...; h_N]``, shape (B, N + 1, D).

        Returns:
            mx.array: Shape (B, P).
        """
        raise NotImplementedError

    def outputs(
        self,
        encoding: mx.array | None,
        progress: ReplyProgress,
        tokens: mx.array | None = None,
    ) -> Outputs:
        """What `log_weights` and `parameters_of` need.

        Args:
            encoding (mx.array, optional): From `encode`, shape (B, P); None if it reads
                no hidden states.
            progress (ReplyProgress): Of the reply.
            tokens (mx.array, optional): Candidates, shape (B, K); by default all.

        Returns:
            tuple[mx.array, mx.array]: Shape (B, K), or (B, R) for all, each.
        """
        raise NotImplementedError

    def log_weights(self, outputs: Outputs, window: Window | Tokens) -> mx.array:
        """Log-weights of the candidates, in nats.

        Args:
            outputs (tuple): From `outputs`.
            window: As in `mlx_budget.method.guidance.log_weights`.

        Returns:
            mx.array: float32, of the outputs' shape; -inf where the weight is 0.
        """
        return guidance.log_weights(*outputs, window, self.thresholds)

    def parameters_of(self, outputs: Outputs) -> Outputs:
        """Concentration and rate of every token, from the `outputs` of all.

        Returns:
            tuple[mx.array, mx.array]: float32, shape (B, V) each; 0 for unknown tokens.
        """
        concentration, rate = outputs
        return concentration, rate

    def over_vocabulary(self, values: mx.array, unknown: float) -> mx.array:
        """Puts values of the R known tokens in their places.

        Args:
            values (mx.array): Shape (B, R).
            unknown (float): Value of all other tokens.

        Returns:
            mx.array: Shape (B, V).
        """
        return values

    def tensors(self) -> dict[str, mx.array]:
        """Its arrays, by the names by which a file has them."""
        raise NotImplementedError

    def save(
        self, path: str | Path, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Writes `predictor.safetensors` and `predictor_config.json` into a folder.

        Args:
            path: The folder, made if it is not there. Each file appears whole or not
                at all.
            progress: Called with the bytes of each tensor written.
        """
        raise NotImplementedError

    @classmethod
    def load(cls: type[P], path: str | Path) -> P:
        """Loads a predictor, of the kind that the folder holds.

        Raises:
            ValueError: If a file is missing or damaged, or does not hold what the
                configuration says, or if the predictor is not of this class.
        """
        path = Path(path)
        values = read_config(path)
        kind = values.get("kind", "encoder")
        if kind not in _KINDS:
            raise ValueError(
                f"{path / CONFIG_FILE} is of a kind {kind!r} that this release does "
                f"not read: upgrade with `{install_command(is_upgrade=True)}`."
            )
        module, name = _KINDS[kind]
        found = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        if not issubclass(found, cls):
            raise ValueError(f"{path} holds a predictor of the kind {kind!r}.")
        return found._load(path, values)

    @classmethod
    def _load(cls: type[P], path: Path, values: dict[str, Any]) -> P:
        raise NotImplementedError


NO_THRESHOLDS = GuidanceThresholds(min_rate=0.0, min_concentration=0.0, min_mode=0.0)


def check_size(base_model: str, what: str, expected: int, found: int) -> None:
    """Checks a size of the language model that a predictor shall read.

    Args:
        base_model (str): Of the predictor.
        what (str): Such as "a vocabulary of".
        expected (int): That of the model it was made for.
        found (int): That of this model.

    Raises:
        ValueError: If they differ.
    """
    if expected != found:
        raise ValueError(
            f"The predictor was made for another model ({base_model}): it expects "
            f"{what} {expected:,}, and this model has {found:,}."
        )


WIDTH, LAYERS, VOCABULARY = (
    "hidden states of width",
    "a number of layers of",
    "a vocabulary of",
)


def is_predictor_folder(path: Path) -> bool:
    """Whether a folder holds a predictor, alone or beside a model."""
    return (path / CONFIG_FILE).exists() or (path / WEIGHTS_FILE).exists()


def read_config(path: Path) -> dict[str, Any]:
    """The contents of a folder's `predictor_config.json`.

    Raises:
        ValueError: In one line, if it is missing or damaged.
    """
    file = path / CONFIG_FILE
    values = read_json(
        file,
        f"{path} is not a predictor folder: it has no {file.name}. Make one with "
        "`mlx-budget convert` or `mlx-budget train`.",
    )
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object.")
    return values
