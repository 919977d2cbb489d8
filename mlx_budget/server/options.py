"""What a server is told when it starts. Knows options; nothing of what they do."""

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.budgets import EFFORT_TOKENS, with_tokens
from ..engine.fields import check_numbers, keywords_of, setting, take_all
from ..engine.settings import (
    ANSWER_TOKENS,
    PREFILL_STEP_SIZE,
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from .budget_fields import read_efforts
from .budgets import MAX_TOKENS, BudgetPolicy
from .guard import Access
from .limits import Limits

# Of the settings below, what makes no sense for all requests of a server.
NOT_SERVED = (
    "revision",
    "system_prompt",
    "ignore_chat_template",
    "seed",
    "xtc_probability",
    "xtc_threshold",
    "min_tokens_to_keep",
)


@dataclass(frozen=True)
class ServeOptions:
    """All options of a server, those of `mlx_lm.server` by its names.

    Attributes:
        source: The model.
        thinking: What requests get that do not say.
        access: Who may ask.
        limits: Of requests.
        sampling: What requests get that do not say.
        template: Arguments of the chat template.
    """

    GROUP: ClassVar[str] = "Replies"

    source: ModelSource = ModelSource()
    thinking: ThinkingBudget = ThinkingBudget(answer_anyway=True)
    learn_prior: bool = setting(
        False,
        "Count the lines of replies without a budget, and how long thinking went on, "
        "for the prior of a model without a predictor. Numbers are kept, in the "
        "user's cache, and no text.",
        group="Thinking",
    )
    max_thinking_budget: int | None = setting(
        None,
        "Ceiling of every request's budget, and the budget of those without one.",
        least=0,
        group="Thinking",
    )
    effort: str = setting(
        ",".join(f"{level}={tokens}" for level, tokens in EFFORT_TOKENS.items()),
        "Tokens of thinking for the levels that requests name (reasoning_effort and "
        "the like), where no predictor tells how long a question takes.",
        group="Thinking",
    )
    stop_in_thinking: bool = setting(
        False,
        "Let stop words end a reply in its thinking too; by default they wait for the "
        "answer.",
        group="Thinking",
    )
    reasoning_field: str = setting(
        "both",
        "In which field chat completions tell thinking.",
        choices=("reasoning", "reasoning_content", "both"),
    )
    access: Access = Access()
    limits: Limits = Limits()
    max_tokens: int | None = setting(
        None,
        "Most tokens of a reply, for requests that do not say.",
        least=1,
        shown=f"{MAX_TOKENS} without a budget; with one what thinking can take and "
        f"{ANSWER_TOKENS:,} more",
    )
    sampling: Sampling = Sampling()
    chat_template: str = setting("", "Chat template for the tokenizer.", group="Prompt")
    use_default_chat_template: bool = setting(
        False,
        "Use the tokenizer's default chat template if it has none.",
        group="Prompt",
    )
    template: PromptOptions = PromptOptions(chat_template_config={})
    decode_concurrency: int = setting(
        32, "Most replies to generate at a time.", least=1, group="Memory and speed"
    )
    prompt_concurrency: int = setting(
        8, "Most prompts to process at a time.", least=1, group="Memory and speed"
    )
    prefill_step_size: int = setting(
        PREFILL_STEP_SIZE,
        "Prompt tokens to process at a time.",
        least=1,
        group="Memory and speed",
    )
    prompt_cache_size: int = setting(
        10,
        "Most KV caches to keep for prompts to come.",
        least=1,
        group="Memory and speed",
    )
    prompt_cache_bytes: int | None = setting(
        None, "Most memory for them, such as 4GB.", least=0, group="Memory and speed"
    )
    kv_bits: int | None = setting(
        None, "Bits of a quantised KV cache.", least=2, most=8, group="Memory and speed"
    )
    kv_group_size: int = setting(
        64, "Group of a quantised KV cache.", least=1, group="Memory and speed"
    )
    quantized_kv_start: int = setting(
        5000,
        "Step from which the KV cache is quantised.",
        least=0,
        group="Memory and speed",
    )
    draft_model: str | None = setting(
        None, "Speculative decoding; not with budgets.", group="Memory and speed"
    )
    num_draft_tokens: int = setting(
        3, "Tokens to draft at a time.", least=0, group="Memory and speed"
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        read_efforts(self.effort)

    @property
    def policy(self) -> BudgetPolicy:
        """How thinking is treated."""
        efforts = read_efforts(self.effort)
        budget = with_tokens(self.thinking.tokens, efforts)
        return BudgetPolicy(
            replace(self.thinking, tokens=budget),
            self.max_thinking_budget,
            self.stop_in_thinking,
            self.reasoning_field,
            efforts,
        )

    def namespace(self) -> Namespace:
        """The options by the names that `mlx_lm.server` has for them."""
        found = {**keywords_of(self), "chat_template_args": {}}
        if self.template.chat_template_config:
            found["chat_template_args"] = self.template.chat_template_config
        del found["api_key"]  # which nobody else has to know
        return Namespace(**found)


def take_options(keywords: dict[str, Any]) -> ServeOptions:
    """The options that are given as keyword arguments.

    Raises:
        ValueError: Naming a value that is not allowed.
        TypeError: Naming a keyword that there is not.
    """
    for name in NOT_SERVED:
        if name in keywords:
            raise TypeError(f"There is no option {name!r}.")
    return take_all(ServeOptions, keywords)
