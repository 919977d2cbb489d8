"""What a command asks of a model, checked before the model is downloaded.

Knows options and tokenizers; nothing of downloads or weights.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..engine.fields import keywords_of
from ..engine.settings import ModelSource, PromptOptions, ThinkingBudget
from .prior import learned_prior

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..engine.messages import Chat
    from ..models.fetching import Ahead


def reply_check(
    source: ModelSource,
    thinking: ThinkingBudget,
    template: PromptOptions,
    prompts: "Sequence[str | Chat]",
    *,
    learn_prior: bool = False,
    needs_chat: bool = False,
    draft_model: str | None = None,
    max_kv_size: int | None = None,
    check: "Callable[[TokenizerWrapper], None]" = lambda _: None,
    **encoding: Any,
) -> "Callable[[Ahead], None]":
    """What checks that a reply can be given, for `load`.

    Args:
        source (ModelSource): The model and its predictor.
        thinking (ThinkingBudget): The budget.
        template (PromptOptions): How a prompt is made.
        prompts (Sequence): What is asked.
        learn_prior (bool): Whether a prior that has learnt may stand for a predictor.
        needs_chat (bool): Whether there has to be a chat template.
        draft_model (str, optional): Of speculative decoding.
        max_kv_size (int, optional): Most tokens of the KV cache.
        check (Callable): What else to check of the tokenizer.
        encoding: The other options of `encode_chat`.

    Returns:
        Callable: Raises a ValueError that says what cannot be honoured.
    """
    from ..engine.context import context_length
    from ..engine.conversation import check_chat
    from ..engine.enforcing import check_enforceable
    from ..engine.markers import find_markers
    from ..engine.prompts import encode_chat
    from ..engine.template import ask_template
    from ..models.fetching import find_model

    def check_all(ahead: "Ahead") -> None:
        tokenizer, predictor = ahead.tokenizer, ahead.predictor
        if needs_chat:
            check_chat(tokenizer)
        learned = learned_prior(learn_prior, source, tokenizer, thinking)
        if predictor is None and learned is not None:
            predictor = learned.predictor()
        if thinking.is_steered:
            find_markers(tokenizer, thinking.start, thinking.end)
            check_enforceable(thinking, predictor)
        check(tokenizer)
        asked, _ = ask_template(tokenizer, thinking, template)
        most = context_length(ahead.model, tokenizer, max_kv_size)
        chat = {**keywords_of(asked), **encoding, "most_tokens": most}
        for prompt in prompts:
            encode_chat(tokenizer, prompt, **chat)
        if draft_model is not None:
            find_model(draft_model)

    return check_all
