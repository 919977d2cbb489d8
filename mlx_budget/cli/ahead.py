"""What a command asks of a model, checked before the model is downloaded.

Knows options and tokenizers; nothing of downloads or weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
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
    max_tokens: int | None = None,
    loop: Mapping[str, Any] = MappingProxyType({}),
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
        max_tokens (int, optional): Most tokens of the reply.
        loop (Mapping): Options of mlx-lm's loop; those of the KV cache count.
        check (Callable): What else to check of the tokenizer.
        encoding: The other options of `encode_chat`.

    Returns:
        Callable: Raises a ValueError that says what cannot be honoured.
    """
    from mlx_lm.models.cache import make_prompt_cache

    from ..engine.caches import check_quantisable
    from ..engine.context import context_length
    from ..engine.conversation import check_chat
    from ..engine.drafts import check_draftable
    from ..engine.enforcing import check_enforceable
    from ..engine.markers import find_markers
    from ..engine.prompts import encode_chat
    from ..engine.template import ask_template

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
        most = context_length(ahead.model, tokenizer, loop.get("max_kv_size"))
        chat = {**keywords_of(asked), **encoding, "most_tokens": most}
        longest = max(len(encode_chat(tokenizer, p, **chat)) for p in prompts)
        limit = thinking.max_tokens if max_tokens is None else max_tokens
        if loop.get("kv_bits") is not None:
            tokens = math.inf if limit < 0 else longest + limit
            check_quantisable(ahead.make_model(), loop, tokens)
        if draft_model is not None:
            check_drafts(draft_model, source.model, tokenizer)
            caches = make_prompt_cache(ahead.make_model())
            check_draftable(caches, longest, limit)

    return check_all


def check_drafts(draft_model: str, model: str, tokenizer: "TokenizerWrapper") -> None:
    """Raises a ValueError if a draft model cannot draft for a model."""
    from ..models.fetching import find_model, read_tokenizer

    drafts = read_tokenizer(find_model(draft_model))
    if drafts.vocab_size != tokenizer.vocab_size:
        raise ValueError(f"The tokenizer of {draft_model} is not that of {model}.")
