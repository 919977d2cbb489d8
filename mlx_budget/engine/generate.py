"""Generates text with a thinking budget, on mlx-lm's own generation loop.

Knows mlx-lm's loop and the budget sampler; nothing of files, Hub or terminal.
"""

from collections.abc import Generator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from mlx_lm.generate import GenerationResponse
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.candidates import DEFAULT_TOLERANCE
from ..method.predictor import Predictor
from .sampler import encode_prompt, make_budget_sampler
from .settings import DEFAULT_HARD_STOP, AutoBudget, check_budget, thinking_limit
from .thinking import ThinkingTracker, find_markers

# Room for the answer after a budgeted block, and for a reply whose thinking nothing
# bounds, in tokens.
ANSWER_TOKENS = 2048
UNBOUNDED_TOKENS = 8192


@dataclass
class BudgetResponse(GenerationResponse):
    """A response of mlx-lm's with the state of the thinking block after its token.

    Attributes:
        is_thinking: Whether the token belongs to the thinking block, its markers
            included.
        thinking_tokens: Tokens of thinking so far, markers not counted.
        thinking_budget: The budget in tokens, or None; an automatic one from the first
            thinking token on.
        closed_by: "model" or "budget" once thinking has ended, else None.
    """

    is_thinking: bool = False
    thinking_tokens: int = 0
    thinking_budget: int | None = None
    closed_by: str | None = None


def stream_generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: str | list[int] | mx.array,
    *,
    predictor: Predictor | bool | None = None,
    thinking_budget: int | str | AutoBudget | None = None,
    hard_stop: float | None = DEFAULT_HARD_STOP,
    thinking_budget_message: str | None = None,
    thinking_start: str | None = None,
    thinking_end: str | None = None,
    guidance_tolerance: float = DEFAULT_TOLERANCE,
    temp: float = 0.0,
    seed: int | None = None,
    top_p: float = 0.0,
    min_p: float = 0.0,
    min_tokens_to_keep: int = 1,
    top_k: int = 0,
    xtc_probability: float = 0.0,
    xtc_threshold: float = 0.1,
    xtc_special_tokens: list[int] | None = None,
    max_tokens: int | None = None,
    **kwargs,
) -> Generator[BudgetResponse, None, None]:
    """Generates a reply, piece by piece, with its thinking steered to a budget.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them. A predictor is
            needed for a budget above 0, unless False asks for the hard stop alone.
        prompt (str, list or mx.array): The prompt, chat template applied.
        thinking_budget, hard_stop, thinking_budget_message, thinking_start,
            thinking_end, guidance_tolerance, seed: As in `make_budget_sampler`.
        temp, top_p, min_p, min_tokens_to_keep, top_k, xtc_probability, xtc_threshold,
            xtc_special_tokens: As in ``mlx_lm.sample_utils.make_sampler``; under
            guidance they apply to the guided distribution.
        max_tokens (int, optional): Most tokens to generate, thinking included; -1 for
            no limit. By default what thinking can take and 2,048 more, or 8,192 where
            nothing bounds thinking.
        kwargs: The other options of ``mlx_lm.stream_generate``: ``prompt_cache``,
            ``max_kv_size``, ``kv_bits``, ``logits_processors`` and so on.

    Yields:
        BudgetResponse: mlx-lm's response with the state of the thinking block.

    Raises:
        ValueError: If the budget cannot be honoured, with the reason and the way out.
    """
    budget = check_budget(thinking_budget)
    if budget is not None:
        if kwargs.get("draft_model") is not None:
            raise ValueError(
                "Speculative decoding (draft_model) cannot be combined with a thinking "
                "budget: leave out one of them."
            )
        if kwargs.get("sampler") is not None:
            raise ValueError(
                "A thinking budget brings its own sampler: give temp, top_p, min_p, "
                "top_k instead of sampler."
            )
    ids = encode_prompt(tokenizer, prompt)
    if not ids:
        raise ValueError("The prompt is empty.")
    sampler = make_budget_sampler(
        model,
        tokenizer,
        predictor,
        prompt=ids,
        thinking_budget=budget,
        hard_stop=hard_stop,
        thinking_budget_message=thinking_budget_message,
        thinking_start=thinking_start,
        thinking_end=thinking_end,
        guidance_tolerance=guidance_tolerance,
        temp=temp,
        seed=seed,
        top_p=top_p,
        min_p=min_p,
        min_tokens_to_keep=min_tokens_to_keep,
        top_k=top_k,
        xtc_probability=xtc_probability,
        xtc_threshold=xtc_threshold,
        xtc_special_tokens=xtc_special_tokens,
    )
    tracker = make_tracker(tokenizer, thinking_start, thinking_end, ids)
    if max_tokens is None:
        max_tokens = default_max_tokens(budget, hard_stop)
    if kwargs.get("sampler") is None:
        kwargs["sampler"] = sampler
    held: list[BudgetResponse] = []
    try:
        responses = mlx_lm.stream_generate(
            model,
            tokenizer,
            ids,
            max_tokens=max_tokens,
            **kwargs,
        )
        for step, response in enumerate(responses):
            was_thinking = tracker is not None and tracker.thinking
            if tracker is not None and response.finish_reason != "stop":
                tracker.update(response.token, forced=step in sampler.forced_steps)
            is_thinking = was_thinking or (tracker is not None and tracker.thinking)
            held.append(
                BudgetResponse(
                    **vars(response),
                    is_thinking=is_thinking,
                    thinking_tokens=tracker.thinking_tokens if tracker else 0,
                    thinking_budget=sampler.budget,
                    closed_by=tracker.closed_by if tracker else None,
                )
            )
            # The beginning of an opening marker waits until it is known to be one.
            if response.finish_reason is None and tracker and tracker.may_be_opening:
                continue
            for r in held:
                r.is_thinking = is_thinking
                yield r
            held.clear()
    finally:
        sampler.close()


def generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompt: str | list[int] | mx.array,
    *,
    verbose: bool = False,
    **kwargs,
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


def default_max_tokens(budget: int | AutoBudget | None, hard_stop: float | None) -> int:
    """Room for all the thinking that a budget allows, and for an answer."""
    limit = thinking_limit(budget, hard_stop)
    if limit is not None:
        return limit + ANSWER_TOKENS
    if isinstance(budget, AutoBudget):
        return UNBOUNDED_TOKENS
    return max(UNBOUNDED_TOKENS, 2 * (budget or 0) + ANSWER_TOKENS)


def make_tracker(
    tokenizer: TokenizerWrapper, start: str | None, end: str | None, ids: list[int]
) -> ThinkingTracker | None:
    """Follows a reply's thinking; None if the model has no thinking markers."""
    if not tokenizer.has_thinking and start is None and end is None:
        return None
    return ThinkingTracker(tokenizer, find_markers(tokenizer, start, end), ids)


def thinking_line(response: BudgetResponse) -> str:
    """How long the model thought, of which budget, and what ended it."""
    used = f"Thinking: {response.thinking_tokens}"
    if response.thinking_budget is not None:
        used += f" of {response.thinking_budget}"
    if response.closed_by is not None:
        return f"{used} tokens, closed by the {response.closed_by}"
    if not response.is_thinking:
        return f"{used} tokens, the model did not think"
    if response.finish_reason == "length":
        return f"{used} tokens, cut off by the limit on tokens: there is no answer"
    if response.finish_reason == "stop":
        return f"{used} tokens, the model ended its reply there: there is no answer"
    return f"{used} tokens, interrupted"
