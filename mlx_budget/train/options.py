"""What a training run is told: one frozen dataclass.

Knows the options and their limits; nothing of how a run uses them.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from ..method.predictor_config import SIZES
from .schedules import SCHEDULES, make_schedule

CACHE_DTYPES = ("float16", "bfloat16")


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
        learning_rate: Highest learning rate.
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
    """

    model: str
    data: str
    output: Path
    adapter_path: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    thinking_start: str | None = None
    thinking_end: str | None = None
    system_prompt: str | None = None
    chat_template_config: dict | None = None
    positions: str | int = "newline"
    augment: str | None = None
    max_length: int = 16384
    limit: int | None = None
    strict: bool = False
    min_count: int = 2
    size: str = "base"
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    intermediate: int | None = None
    steps: int | None = None
    epochs: float = 10.0
    batch_size: int = 64
    learning_rate: float = 2e-4
    warmup: int | None = None
    schedule: str = "rex"
    phi: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    val_fraction: float = 0.1
    eval_every: int = 50
    save_every: int = 100
    keep: str = "best"
    prefill_step_size: int = 512
    cache_dir: Path | None = None
    cache_dtype: str | None = None
    resume: bool = False

    def __post_init__(self):
        object.__setattr__(self, "output", Path(self.output))
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", Path(self.cache_dir))
        for name, known in (
            ("size", tuple(SIZES)),
            ("schedule", SCHEDULES),
            ("augment", (None, "concise")),
            ("keep", ("best", "last")),
            ("cache_dtype", (None, *CACHE_DTYPES)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, known))}, not "
                    f"{getattr(self, name)!r}."
                )
        counts = ["max_length", "min_count", "batch_size", "eval_every", "save_every"]
        counts += ["prefill_step_size"]
        optional = ("limit", "steps", "width", "layers", "heads", "intermediate")
        counts += [name for name in optional if getattr(self, name) is not None]
        for name in counts:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, not {value!r}.")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be above 0, not {self.epochs!r}.")
        if not 0 < self.val_fraction < 1:
            raise ValueError(
                f"val_fraction must be between 0 and 1, not {self.val_fraction!r}: "
                "validation chooses the weights that are kept and fills the report."
            )
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, not {self.weight_decay!r}.")
        sizes = self.predictor_sizes()
        if sizes["width"] % sizes["heads"]:
            raise ValueError(
                f"heads must divide the predictor's width of {sizes['width']}, which "
                f"{sizes['heads']} does not."
            )
        # Raises what is wrong with these before time goes into hidden states.
        rest = self.steps or sys.maxsize, self.warmup or 0, self.phi
        make_schedule(self.schedule, self.learning_rate, *rest)

    def predictor_sizes(self) -> dict[str, int]:
        """The sizes of the predictor's encoder, as `PredictorConfig` takes them."""
        sizes = dict(SIZES[self.size])
        sizes.update({n: v for n in sizes if (v := getattr(self, n)) is not None})
        return sizes
