"""What is known of a model, without its weights: values, and what follows from them.

Knows names and sizes; nothing of how they are found or told.
"""

from dataclasses import dataclass, field
from typing import Any

from .lookup import Config
from .published import PublishedPredictor

# Tokens for which the memory of a KV cache is told.
CACHED_TOKENS = 8192
# Above this share of what a program may hold mlx-lm warns that it can be slow.
TIGHT = 0.9


@dataclass(frozen=True)
class MarkerFacts:
    """The texts between which a model thinks.

    Attributes:
        start, end: The markers.
        are_tokens: Whether each is a token of its own.
        tools: What begins a tool call, which ends thinking too; empty if the model has
            no format of its own.
    """

    start: str
    end: str
    are_tokens: bool
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Template:
    """What a chat template does about thinking.

    Attributes:
        opens_thinking: Whether the prompt opens thinking, so that a reply begins in it.
        leaves_out_by: Arguments that leave thinking out; None if it has none.
        lets_think_by: Arguments without which it leaves thinking out; None if it needs
            none.
        drops_earlier_thinking: Whether the thinking of earlier turns is left out of
            later prompts; None if that cannot be told.
        takes_system_prompt: Whether a system prompt gets into the prompt.
    """

    opens_thinking: bool
    leaves_out_by: dict[str, Any] | None
    lets_think_by: dict[str, Any] | None
    drops_earlier_thinking: bool | None
    takes_system_prompt: bool


@dataclass(frozen=True)
class PredictorFacts:
    """The predictor that would guide.

    Attributes:
        name: Where it is: a folder or a Hub name.
        kind: "table", "linear" or "encoder".
        base_model: The model that it was made for.
        knows_lengths: Whether it can tell how long thinking will take.
        bytes: Of its weights.
        problem: Why it cannot be used, if it cannot.
    """

    name: str
    kind: str = ""
    base_model: str = ""
    knows_lengths: bool = True
    bytes: int = 0
    problem: str = ""


@dataclass
class ModelFacts:
    """A model as far as it could be looked into; what could not be is None.

    Attributes:
        name: As it was given.
        place: "built in", "folder", or "Hub".
        commit: On the Hub.
        is_here: Whether its weights are on this machine.
        config: Its `config.json`.
        model_type: Of its architecture.
        quantization: Bits and group, if it is quantised.
        width, layers, vocab_size: D, N and V.
        context: Most tokens that it was made to read.
        weight_files: Files that hold its weights.
        weight_bytes: Of these.
        missing_bytes: Of these, what has to be downloaded.
        cache_bytes: Of a KV cache of `CACHED_TOKENS` tokens in 16 bits.
        markers: How it thinks; None if it does not say.
        template: What its chat template does; None without one.
        records_states: Whether a predictor can read its hidden states.
        predictor: What would guide; None for a prior.
        prior_lines: Lines of replies that the prior has learnt from (--learn-prior).
        published: The published predictor that fits, if one does.
        is_reference: Whether it is a Budget Guidance checkpoint, not yet converted.
        problems: What is wrong with it, a line each.
    """

    name: str
    place: str = ""
    commit: str | None = None
    is_here: bool = False
    config: Config = field(default_factory=dict)
    model_type: str | None = None
    quantization: dict[str, Any] | None = None
    width: int | None = None
    layers: int | None = None
    vocab_size: int | None = None
    context: int | None = None
    weight_files: int | None = None
    weight_bytes: int | None = None
    missing_bytes: int | None = None
    cache_bytes: int | None = None
    markers: MarkerFacts | None = None
    template: Template | None = None
    records_states: bool | None = None
    predictor: PredictorFacts | None = None
    prior_lines: int = 0
    published: PublishedPredictor | None = None
    is_reference: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def needed_bytes(self) -> int | None:
        """Memory of weights, predictor and KV cache together."""
        if self.weight_bytes is None:
            return None
        predictor = self.predictor.bytes if self.predictor else 0
        return self.weight_bytes + predictor + (self.cache_bytes or 0)

    def fits(self, available: int | None) -> str | None:
        """Whether it fits into so many bytes: "yes", "tight" or "no"."""
        if available is None or self.needed_bytes is None:
            return None
        if self.needed_bytes > available:
            return "no"
        return "tight" if self.needed_bytes > TIGHT * available else "yes"
