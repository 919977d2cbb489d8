"""Generates text with a thinking budget, on mlx-lm's own generation loop.

Knows mlx-lm's loop and the budget sampler; nothing of files, Hub or terminal.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.nn as nn
import mlx_lm
from mlx_lm.generate import GenerationResponse
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.predictor import Predictor
from ..ranks import mirrored
from .answers import AnswerFormat
from .caches import check_quantisable
from .context import context_length, vocabulary_size
from .drafts import check_draftable, flat_caches
from .enforcing import for_predictor
from .fields import check_count, check_limit, take
from .follower import ReplyFollower
from .keywords import ReplyOptions
from .markers import markers_of
from .memory import tell_of_size
from .plain import ReplySampler
from .prompts import wrapped
from .sampler import Prompt, encode_prompt, steer
from .settings import Sampling, ThinkingBudget

if TYPE_CHECKING:
    from typing_extensions import Unpack


class StreamOptions(ReplyOptions, total=False):
    """The keyword arguments of `stream_generate`, for type checkers."""

    prompt_cache: Any
    cached_tokens: int
    max_kv_size: int | None
    kv_bits: int | None
    kv_group_size: int
    quantized_kv_start: int
    prefill_step_size: int
    prompt_progress_callback: Any
    logits_processors: Any
    input_embeddings: Any
    draft_model: Any
    num_draft_tokens: int
    sampler: Any


@dataclass
class BudgetResponse(GenerationResponse):
    """A response of mlx-lm's with the state of the thinking block after its token.

    Attributes:
        is_thinking: Whether the token belongs to the thinking block, its markers
            included.
        thinking_tokens: Tokens of thinking so far, markers not counted.
        thinking_budget: The budget in tokens, or None; an automatic one from the first
            thinking token on.
        closed_by: "model", "budget" or "loop" once thinking has ended, else None.
        after_close_tokens: Tokens that were reasoned on behind the close so far.
        answer_tokens: Tokens of the answer so far.
        no_answer: In the last response, why the reply has no answer, if it has none.
        reply: Follows the reply; ``reply.split()`` gives thinking and answer so far.
    """

    is_thinking: bool = False
    thinking_tokens: int = 0
    thinking_budget: int | None = None
    closed_by: str | None = None
    after_close_tokens: int = 0
    answer_tokens: int = 0
    no_answer: str | None = None
    reply: ReplyFollower | None = field(default=None, repr=False, compare=False)


@mirrored(
    own=("prompt_cache", "draft_model", "sampler"),
    prompt_progress_callback=lambda: None,
)
def stream_generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: Prompt,
    *,
    predictor: Predictor | bool | None = None,
    max_tokens: int | None = None,
    max_answer_tokens: int | None = None,
    make_sampler: Callable[..., ReplySampler] = steer,
    **options: "Unpack[StreamOptions]",
) -> Generator[BudgetResponse, None, None]:
    """Generates a reply, piece by piece, with its thinking steered to a budget.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them. Without a
            predictor a prior guides; False asks for the hard stop alone.
        prompt (str, list or mx.array): The prompt, chat template applied.
        max_tokens (int, optional): Most tokens to generate, thinking included; -1 for
            no limit. By default what thinking can take and 2,048 more, or 8,192 where
            nothing bounds thinking.
        max_answer_tokens (int, optional): Most tokens behind the closing marker, of
            whatever the reply does there; None for no limit of their own.
        make_sampler (Callable): In place of `mlx_budget.engine.sampler.steer`.
        options: ``thinking_budget``, ``budget_mode``, ``min_thinking_tokens``,
            ``hard_stop``, ``thinking_budget_message``, ``thinking_start``,
            ``thinking_end``, ``temp``, ``seed`` and the other options of
            `make_budget_sampler`, ``json_schema`` among them; and those of
            ``mlx_lm.stream_generate``: ``prompt_cache``, ``max_kv_size``, ``kv_bits``,
            ``logits_processors`` and so on. With ``cached_tokens`` the prompt is the
            whole one and ``prompt_cache`` holds so many of its tokens already, the
            last one excepted.

    Yields:
        BudgetResponse: mlx-lm's response with the state of the thinking block.

    Raises:
        ValueError: If the budget cannot be honoured, with the reason and the way out.
    """
    loop: dict[str, Any] = dict(options)
    tokenizer = wrapped(tokenizer)
    thinking, sampling = take(ThinkingBudget, loop), take(Sampling, loop)
    thinking = for_predictor(thinking, predictor)
    answer = take(AnswerFormat, loop)
    if not answer.is_free:
        for name in ("draft_model", "sampler"):
            if loop.get(name) is not None:
                raise ValueError(
                    f"An answer by a JSON schema cannot be combined with {name}: leave "
                    "out one of them."
                )
    is_own = loop.get("sampler") is not None or loop.get("draft_model") is not None
    if thinking.prefix and is_own:
        raise ValueError(
            "A reply_prefix cannot be combined with speculative decoding (draft_model) "
            "nor with a sampler: leave out one of them."
        )
    if thinking.is_steered:
        if loop.get("draft_model") is not None:
            raise ValueError(
                "Speculative decoding (draft_model) cannot be combined with a thinking "
                "budget, nor with stop_loops: leave out one of them."
            )
        if loop.get("sampler") is not None:
            raise ValueError(
                "A thinking budget brings its own sampler: give temp, top_p, min_p, "
                "top_k instead of sampler."
            )
    cached = loop.pop("cached_tokens", 0)
    most = context_length(model, tokenizer, loop.get("max_kv_size"))
    ids = encode_prompt(tokenizer, prompt, most, vocabulary_size(model))
    if not ids:
        raise ValueError("The prompt is empty.")
    if isinstance(cached, bool) or not isinstance(cached, int):
        raise ValueError(f"cached_tokens must be a whole number, not {cached!r}.")
    if not 0 <= cached < len(ids):
        raise ValueError(
            f"cached_tokens must be from 0 to {len(ids) - 1}, one less than the "
            f"prompt has, not {cached}."
        )
    _check_cached(loop.get("prompt_cache"), cached)
    for name in ("prefill_step_size", "max_kv_size", "num_draft_tokens"):
        if loop.get(name) is not None:
            loop[name] = check_count(name, loop[name])
    if max_answer_tokens is not None:
        max_answer_tokens = check_count("max_answer_tokens", max_answer_tokens)
    max_tokens = check_limit(max_tokens)
    if max_tokens is None:
        max_tokens = thinking.max_tokens
    thinking.check_room(max_tokens)
    tokens = math.inf if max_tokens < 0 else len(ids) + max_tokens
    check_quantisable(model, loop, tokens)
    if loop.get("draft_model") is not None:
        cache = loop.get("prompt_cache")
        cache = make_prompt_cache(model) if cache is None else cache
        cache = cache[: len(model.layers)]
        check_draftable(cache, len(ids) - cached, max_tokens)
    tell_of_size(model, predictor)
    sampler = make_sampler(model, tokenizer, predictor, ids, thinking, sampling, answer)
    if loop.get("sampler") is None:
        loop["sampler"] = sampler
    reply = ReplyFollower(
        tokenizer, markers_of(tokenizer, thinking), ids, sampler.record
    )
    held: list[BudgetResponse] = []
    told = 0  # characters of the text that mlx-lm has told
    try:
        for response in mlx_lm.stream_generate(
            model, tokenizer, ids[cached:], max_tokens=max_tokens, **loop
        ):
            if response.finish_reason != "stop":
                reply.take(response.token)
            told += len(response.text)
            is_full = response.finish_reason is None and reply.has_answered(
                max_answer_tokens
            )
            if is_full:
                response.finish_reason = "length"
                response.text += reply.text[told:]  # what waited for a character's end
            held.append(_respond(response, reply))
            # The beginning of a marker waits until it is known to be one.
            if response.finish_reason is None and reply.is_holding:
                continue
            for r in held:
                r.is_thinking = held[-1].is_thinking
                yield r
            held.clear()
            if is_full:
                return
        sampler.check_answer()
    finally:
        sampler.close()


def generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: Prompt,
    *,
    verbose: bool = False,
    **kwargs: Any,
) -> str:
    """Generates a complete reply: `stream_generate` in one piece.

    Args:
        model, tokenizer, prompt, kwargs: As in `stream_generate`.
        verbose (bool): Whether to print the text as it comes, and statistics.

    Returns:
        str: The reply, its thinking and the closing marker included.
    """
    text = ""
    if verbose:
        print("=" * 10)
    for response in stream_generate(model, tokenizer, prompt, **kwargs):
        text += response.text
        if verbose:
            print(response.text, end="", flush=True)
    if verbose:
        print("\n" + "=" * 10)
        print(statistics(response))
    return text


def statistics(response: BudgetResponse) -> str:
    """What a run took, in mlx-lm's wording, and how its thinking ended.

    Args:
        response (BudgetResponse): The last response of the run.
    """
    lines = [
        f"Prompt: {response.prompt_tokens} tokens, "
        f"{response.prompt_tps:.3f} tokens-per-sec",
        f"Generation: {response.generation_tokens} tokens, "
        f"{response.generation_tps:.3f} tokens-per-sec",
        f"Peak memory: {response.peak_memory:.3f} GB",
    ]
    if response.thinking_budget is not None or response.thinking_tokens:
        lines.append(thinking_line(response))
    return "\n".join(lines)


def _check_cached(caches: Any, cached: int) -> None:
    """Raises a ValueError if a prompt cache does not hold so many tokens.

    Caches of state-space layers do not say how many they hold.
    """
    held = [getattr(layer, "offset", cached) for layer in flat_caches(caches or ())]
    if cached and (not held or min(held) < cached):
        raise ValueError(
            f"cached_tokens is {cached}, and prompt_cache holds "
            f"{min(held, default=0)} tokens: give the cache that has read them."
        )


def _respond(response: GenerationResponse, reply: ReplyFollower) -> BudgetResponse:
    """A response of mlx-lm's with the state of the reply after its token."""
    has_ended = response.finish_reason == "stop"
    return BudgetResponse(
        **vars(response),
        is_thinking=reply.is_in_thinking if has_ended else reply.is_thinking,
        thinking_tokens=reply.thinking_tokens,
        thinking_budget=reply.thinking_budget,
        closed_by=reply.closed_by,
        after_close_tokens=reply.after_close_tokens,
        answer_tokens=reply.answer_tokens,
        no_answer=reply.why_no_answer(response.finish_reason),
        reply=reply,
    )


def default_max_tokens(budget: Any, hard_stop: float | None) -> int:
    """Room for all the thinking that a budget allows, and for an answer."""
    return ThinkingBudget(budget, hard_stop=hard_stop).max_tokens


def thinking_line(response: BudgetResponse) -> str:
    """How long the model thought, of which budget, and what ended it."""
    used = f"Thinking: {response.thinking_tokens}"
    if response.thinking_budget is not None:
        used += f" of {response.thinking_budget}"
    used += " tokens"
    if response.closed_by is not None:
        line = f"{used}, closed by the {response.closed_by}"
        if response.closed_by == "loop":
            line = f"{used}, closed because it was in a loop"
        if response.after_close_tokens:
            line += f", and {response.after_close_tokens} more behind the close"
        is_empty = response.finish_reason == "stop" and response.no_answer is not None
        if is_empty and response.closed_by != "model":
            line += f"; there is no answer: {response.no_answer}"
        if response.finish_reason == "length" and response.no_answer is not None:
            line += "; cut off by the limit on tokens: there is no answer"
        return line
    if response.after_close_tokens:
        return f"{used}, and {response.after_close_tokens} more that were not opened"
    if not response.is_thinking:
        is_left_out = response.reply is not None and response.reply.is_left_out
        why = "the prompt leaves it out" if is_left_out else "the model did not think"
        return f"{used}, {why}"
    if response.finish_reason == "length":
        return f"{used}, cut off by the limit on tokens: there is no answer"
    if response.finish_reason == "stop":
        return f"{used}, the model ended its reply there: there is no answer"
    return f"{used}, interrupted"
