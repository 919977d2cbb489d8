"""What a run is told: the options of traces and of training, frozen.

Knows the options, their help and their limits; nothing of how a run uses them.
"""

import hashlib
import json
import math
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..engine.fields import check_numbers, keywords_of, like, setting, take
from ..engine.settings import (
    PREFILL_STEP_SIZE,
    UNBOUNDED_TOKENS,
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from ..method.sizes import SIZES, EncoderSizes
from .schedules import SCHEDULES, UBA_PHI, make_schedule

if TYPE_CHECKING:
    from ..engine.thinking import ThinkingMarkers

CACHE_DTYPES = ("float16", "bfloat16")
# Predictors that are not trained step by step.
WITHOUT_ENCODER = ("table", "linear")
ALL_SIZES = (*WITHOUT_ENCODER, *SIZES)
# Options of the updates of an encoder.
OF_UPDATES = (
    *("steps", "epochs", "batch_size", "learning_rate", "warmup", "schedule", "phi"),
    *("weight_decay", "eval_every", "save_every", "keep"),
)
# Adam moves every weight by about the learning rate, whatever its gradient. A layer
# adds up as many moves as it is wide, and the residual stream what all layers add: an
# encoder that is to change as much for an update needs a rate that is smaller in
# proportion (for the width see Yang et al., "Tensor Programs V", arXiv 2203.03466). At
# 2e-4 one of the base size loses its input within 50 updates.
HIGHEST_RATE, RATE_SIZE = 2e-4, 4 * 256


@dataclass(frozen=True)
class TraceOptions:
    """The options of `write_traces`.

    Attributes:
        num_samples: Replies to each prompt.
        limit: How many of the prompts to take, from the first; None for all.
        prompt_template: What to send in place of a prompt that is a text: its first
            ``{}`` stands for the prompt.
        batch_size: Most replies to generate at a time.
        max_tokens: Most tokens of a reply, thinking included; -1 for no limit.
        sampling: How replies are drawn. Predictions hold for the distribution that
            their training data was drawn from. Each reply has a seed of its own, which
            follows from this one, its prompt's index and its sample's; without a seed
            the draws differ from run to run.
        thinking_only: Whether to end each reply when its thinking is closed. That is
            faster, and leaves no answer to be concise with.
        start: Opening marker, in place of the tokenizer's.
        end: Closing marker, in place of the tokenizer's.
        prompt: How a prompt becomes a model's input.
        prefill_step_size: Prompt tokens to process at a time.
        model_name: What tells the model from others.

    Raises:
        ValueError: Naming the option that is not allowed.
    """

    GROUP: ClassVar[str] = "Replies"

    num_samples: int = setting(1, "Replies to each prompt.", least=1, group="Data")
    limit: int | None = setting(
        None, "Take the first so many prompts.", least=1, group="Data"
    )
    prompt_template: str | None = setting(
        None,
        "Text to send in place of each prompt that is a text; its first {} stands for "
        "the prompt.",
        group="Data",
    )
    batch_size: int = setting(
        8, "Most replies to generate at a time.", least=1, group="Memory and speed"
    )
    max_tokens: int = setting(
        UNBOUNDED_TOKENS,
        "Most tokens of a reply, thinking included; -1 for no limit.",
        flags=("--max-tokens", "-m"),
        least=-1,
    )
    sampling: Sampling = Sampling(temp=1.0)
    thinking_only: bool = setting(
        False,
        "End each reply when its thinking is closed: faster, but there is no answer "
        "for --augment concise.",
    )
    start: str | None = like(ThinkingBudget, "start")
    end: str | None = like(ThinkingBudget, "end")
    prompt: PromptOptions = PromptOptions()
    prefill_step_size: int = setting(
        PREFILL_STEP_SIZE,
        "Prompt tokens to process at a time.",
        least=1,
        group="Memory and speed",
    )
    model_name: str = setting("")

    def __post_init__(self) -> None:
        if self.max_tokens == 0:
            raise ValueError("max_tokens must be 1 or more, or -1 for no limit, not 0.")
        check_numbers(self)
        if self.sampling.temp == 0 and self.num_samples > 1:
            raise ValueError(
                f"At temp 0 all {self.num_samples} samples of a prompt would be the "
                "same: set a temperature above 0, or take one sample of each."
            )
        if self.prompt_template is not None and "{}" not in self.prompt_template:
            raise ValueError(
                f"The prompt template {self.prompt_template!r} has no {{}} to stand "
                "for the prompt."
            )

    @property
    def thinking(self) -> ThinkingBudget:
        """The markers of thinking, without a budget."""
        return ThinkingBudget(start=self.start, end=self.end)

    def settings(self, markers: "ThinkingMarkers") -> str:
        """A digest of what decides which replies a prompt can get."""
        default = keywords_of(Sampling())
        values = {
            name: float(value) if isinstance(value, int) else value
            for name, value in keywords_of(self.sampling).items()
            # What is not used is left out, so that files without it can be gone on
            # with. Any seed may go on: replies are drawn from the same distribution.
            if not name.startswith(("xtc_", "min_tokens", "seed"))
            or (value != default[name] and name != "seed")
        }
        values |= {
            "model": self.model_name,
            "max_tokens": self.max_tokens,
            "thinking_only": self.thinking_only,
            "markers": [markers.start, markers.end],
            "system_prompt": self.prompt.system_prompt,
            "template": [
                self.prompt.ignore_chat_template,
                self.prompt.chat_template_config or {},
            ],
        }
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TrainOptions:
    """The options of `train`.

    Attributes:
        model: Folder or Hub name of the language model.
        data: Chat records: a file, or a dataset or a file of one on the Hub.
        output: The predictor folder to make.
        adapter_path: Folder of LoRA adapters for the model.
        revision: Branch, tag or commit of the model on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        thinking_start: Opening marker, in place of the tokenizer's.
        thinking_end: Closing marker, in place of the tokenizer's.
        system_prompt: System prompt for records that have none.
        chat_template_config: More arguments for the chat template.
        positions: Where to train: "newline" where guidance acts, "all", or how many
            positions of each record to draw at random.
        augment: "concise" adds to each record one that thinks its answer alone.
        max_length: Tokens of a record, the prompt included; longer ones are cut.
        limit: Most records to read.
        strict: Whether to stop at the first record that cannot be used.
        min_count: How often a token has to come next, where guidance acts, to be one
            that guidance may favour.
        size: Name of the predictor's size.
        width, layers, heads, intermediate: Sizes in place of the named one's.
        steps: Updates to make; None for ``epochs``.
        epochs: Passes over the training positions, where ``steps`` is None.
        batch_size: Positions in an update.
        learning_rate: Highest learning rate; an encoder's default is `HIGHEST_RATE`,
            and less, in proportion, where width times layers are above `RATE_SIZE`.
        warmup: Updates over which the learning rate rises.
        schedule: How it falls.
        phi: Shape of the schedule "uba".
        weight_decay: AdamW's.
        seed: Of initial weights, order, split and drawn positions.
        val_fraction: Share of the prompts to validate on.
        eval_every: Updates between validations.
        save_every: Updates between checkpoints.
        keep: "best" for the weights of the lowest validation loss, or "last".
        prefill_step_size: Tokens that the model reads at a time.
        cache_dir: Folder for hidden states; by default within ``output``.
        cache_dtype: Their type; by default the model's own if it has 16 bits, else
            float16.
        resume: Whether to go on with the run that ``output`` holds.

    Raises:
        ValueError: Naming the option that is not allowed.
    """

    GROUP: ClassVar[str] = "Training"

    model: str = like(ModelSource, "model", MISSING, shown="")
    data: str = setting(
        help="Chat records with thinking: a file of `mlx-budget traces` or another "
        ".jsonl, .json, .csv, .tsv or .parquet with messages; or a dataset on the Hub, "
        "or a file or folder in one, as owner/name/path.",
        group="Data",
    )
    output: Path = setting(help="Predictor folder to make.", group="Output")
    adapter_path: str | None = like(ModelSource, "adapter_path")
    revision: str | None = like(ModelSource, "revision")
    trust_remote_code: bool = like(ModelSource, "trust_remote_code")
    thinking_start: str | None = like(ThinkingBudget, "start")
    thinking_end: str | None = like(ThinkingBudget, "end")
    system_prompt: str | None = like(PromptOptions, "system_prompt")
    chat_template_config: dict[str, Any] | None = like(
        PromptOptions, "chat_template_config"
    )
    positions: str | int = setting(
        "newline",
        "Where to train: newline (where guidance acts), all, or so many positions of "
        "each record drawn at random.",
        group="Data",
    )
    augment: str | None = setting(
        None,
        "Add to each record one whose thinking is its answer alone.",
        choices=("concise",),
        group="Data",
    )
    max_length: int = setting(
        16384,
        "Tokens of a record, the prompt included; longer ones are cut, their lengths "
        "stay.",
        least=2,
        group="Data",
    )
    limit: int | None = setting(
        None, "Take the first so many usable records.", least=1, group="Data"
    )
    strict: bool = setting(
        False, "Stop at the first record that cannot be used.", group="Data"
    )
    min_count: int = setting(
        2,
        "How often a token must come next where guidance acts to be one that guidance "
        "may favour.",
        least=1,
        group="Data",
    )
    size: str = setting(
        "tiny",
        "Size of the predictor: a table of lengths, from text alone; a linear probe of "
        "one layer beside it; or an encoder, of which base is BERT-base.",
        choices=ALL_SIZES,
        group="Predictor",
    )
    width: int | None = setting(
        None, "Its width, in place of the size's.", least=1, group="Predictor"
    )
    layers: int | None = setting(
        None, "Its layers, likewise.", least=1, group="Predictor"
    )
    heads: int | None = setting(
        None, "Its attention heads, likewise.", least=1, group="Predictor"
    )
    intermediate: int | None = setting(
        None, "Its feed-forward width, likewise.", least=1, group="Predictor"
    )
    steps: int | None = setting(None, "Updates to make, in place of --epochs.", least=1)
    epochs: float = setting(10.0, "Passes over the positions.")
    batch_size: int = setting(64, "Positions of an update.", least=1)
    learning_rate: float | None = setting(
        None,
        "Highest learning rate.",
        shown=f"{HIGHEST_RATE:g}, and less for encoders larger than mini",
    )
    warmup: int | None = setting(
        None,
        "Updates over which it rises.",
        least=0,
        shown="a tenth of all, at most 100",
    )
    schedule: str = setting("rex", "How it falls.", choices=SCHEDULES)
    phi: float = setting(UBA_PHI, "Shape of the schedule uba.")
    weight_decay: float = setting(0.01, "AdamW's.", least=0)
    seed: int = like(Sampling, "seed", 0, group="Training")
    val_fraction: float = setting(0.1, "Share of the prompts to validate on.")
    eval_every: int = setting(50, "Updates between validations.", least=1)
    save_every: int = setting(100, "Updates between checkpoints.", least=1)
    keep: str = setting(
        "best",
        "Which weights to keep: those of the lowest validation loss, or the last.",
        choices=("best", "last"),
    )
    prefill_step_size: int = setting(
        512, "Tokens that the model reads at a time.", least=1, group="Memory and speed"
    )
    cache_dir: Path | None = setting(
        None,
        "Folder for the hidden states.",
        shown="OUTPUT/training/states",
        group="Output",
    )
    cache_dtype: str | None = setting(
        None,
        "Their type.",
        choices=CACHE_DTYPES,
        shown="the model's if it has 16 bits, else float16",
        group="Output",
    )
    resume: bool = setting(
        False, "Go on with the run that OUTPUT holds.", group="Output"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output))
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", Path(self.cache_dir))
        check_numbers(self)
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be above 0, not {self.epochs!r}.")
        if not 0 < self.val_fraction < 1:
            raise ValueError(
                f"val_fraction must be between 0 and 1, not {self.val_fraction!r}: "
                "validation chooses the weights that are kept and fills the report."
            )
        if self.size in WITHOUT_ENCODER:
            for name in ("width", "layers", "heads", "intermediate"):
                if getattr(self, name) is not None:
                    raise ValueError(f"A {self.size} predictor has no {name}.")
            for field in fields(self):
                is_given = getattr(self, field.name) != field.default
                if field.name in OF_UPDATES and is_given:
                    raise ValueError(
                        f"A {self.size} predictor is not made by updates, so "
                        f"{field.name} has no effect: leave it out."
                    )
            return
        sizes = self.predictor_sizes()
        if sizes["width"] % sizes["heads"]:
            raise ValueError(
                f"heads must divide the predictor's width of {sizes['width']}, which "
                f"{sizes['heads']} does not."
            )
        object.__setattr__(self, "learning_rate", self.highest_rate)
        # Raises what is wrong with these before time goes into hidden states.
        rest = self.steps or sys.maxsize, self.warmup or 0, self.phi
        make_schedule(self.schedule, self.highest_rate, *rest)

    @property
    def source(self) -> ModelSource:
        """Where the language model comes from; its predictor is not needed."""
        return take(ModelSource, {**keywords_of(self), "predictor": False})

    @property
    def prompt(self) -> PromptOptions:
        """How the prompts of records become a model's input."""
        return take(PromptOptions, keywords_of(self))

    @property
    def thinking(self) -> ThinkingBudget:
        """The markers of thinking, without a budget."""
        return take(ThinkingBudget, keywords_of(self))

    @property
    def highest_rate(self) -> float:
        """The highest learning rate of an encoder."""
        if self.learning_rate is not None:
            return self.learning_rate
        sizes = self.predictor_sizes()
        return HIGHEST_RATE * min(1, RATE_SIZE / (sizes["width"] * sizes["layers"]))

    def predictor_sizes(self) -> EncoderSizes:
        """The sizes of the predictor's encoder, as `PredictorConfig` takes them."""
        size = SIZES[self.size]
        return EncoderSizes(
            width=self.width or size["width"],
            layers=self.layers or size["layers"],
            heads=self.heads or size["heads"],
            intermediate=self.intermediate or size["intermediate"],
        )
