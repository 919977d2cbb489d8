"""Generates many replies at once, each with a thinking budget of its own.

Continuous batching by mlx-lm's `BatchGenerator`: requests join as others finish. Knows
that generator and the budget sampler; nothing of files, Hub or terminal.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, BatchStats
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.predictor import Predictor
from .generate import default_max_tokens, make_tracker
from .sampler import BudgetSampler, encode_prompt, make_budget_sampler
from .settings import DEFAULT_HARD_STOP, AutoBudget, check_budget
from .thinking import ThinkingTracker, find_markers

Prompt = str | list[int] | mx.array
Budget = int | str | AutoBudget | None
# What BatchGenerator takes for "no limit".
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class BatchReply:
    """A finished reply of a batch.

    Attributes:
        index: Place of its prompt among the prompts, from 0.
        text: The reply, its thinking and the closing marker included.
        tokens: Its token ids, without the one that ended it.
        prompt_tokens: Length of the prompt, in tokens.
        finish_reason: "stop" if the model ended it, "length" at the limit on tokens,
            "closed" if it was to end with its thinking.
        is_thinking: Whether it ended inside its thinking, so that there is no answer.
        thinking_tokens: Tokens of thinking, markers not counted.
        thinking_budget: The budget in tokens, or None.
        closed_by: "model" or "budget" if thinking has ended, else None.
        guided_tokens: Number of tokens that were chosen under guidance.
        answer_tokens: Tokens behind the thinking, or of all of a reply without any.
    """

    index: int
    text: str
    tokens: list[int]
    prompt_tokens: int
    finish_reason: str
    is_thinking: bool
    thinking_tokens: int
    thinking_budget: int | None
    closed_by: str | None
    guided_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class BatchReplies:
    """What `batch_generate` returns.

    Attributes:
        texts: The replies' texts, in the order of the prompts.
        replies: The replies, in the order of the prompts.
        stats: mlx-lm's statistics of the whole run.
    """

    texts: list[str]
    replies: list[BatchReply]
    stats: BatchStats


def batch_generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    *,
    verbose: bool = False,
    **kwargs,
) -> BatchReplies:
    """Generates a reply to each prompt, several at a time.

    Greedy replies are those that the prompts would get alone, to the rounding of the
    model's own batched arithmetic.

    Args:
        model, tokenizer, prompts, kwargs: As in `stream_batch_generate`.
        verbose (bool): Whether to print progress and statistics.
    """
    replies: list[BatchReply | None] = [None] * len(prompts)
    stats = BatchStats()
    finished = stream_batch_generate(model, tokenizer, prompts, stats=stats, **kwargs)
    for done, reply in enumerate(finished, 1):
        replies[reply.index] = reply
        if verbose:
            print(f"Finished {done} of {len(prompts)}", end="\r", flush=True)
    if verbose and prompts:
        print(
            f"\nPrompt: {stats.prompt_tokens} tokens, {stats.prompt_tps:.3f} "
            f"tokens-per-sec\nGeneration: {stats.generation_tokens} tokens, "
            f"{stats.generation_tps:.3f} tokens-per-sec\n"
            f"Peak memory: {stats.peak_memory:.3f} GB"
        )
    return BatchReplies([r.text for r in replies], replies, stats)


def stream_batch_generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Iterable[Prompt],
    *,
    predictor: Predictor | bool | None = None,
    thinking_budget: Budget | Sequence[Budget] = None,
    max_tokens: int | None | Sequence[int | None] = None,
    hard_stop: float | None = DEFAULT_HARD_STOP,
    thinking_start: str | None = None,
    thinking_end: str | None = None,
    batch_size: int = 32,
    prefill_batch_size: int = 8,
    prefill_step_size: int = 2048,
    max_kv_size: int | None = None,
    logits_processors: list | None = None,
    stop_after_thinking: bool = False,
    stats: BatchStats | None = None,
    seed: int | None | Sequence[int | None] = None,
    make_sampler: Callable[..., BudgetSampler] = make_budget_sampler,
    **sampling,
) -> Generator[BatchReply, None, None]:
    """Generates replies, several at a time, and yields each when it is finished.

    Prompts are taken from ``prompts`` as there is room for them.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them.
        prompts (Iterable): Prompts, chat template applied, as texts or token ids.
        thinking_budget (int or sequence, optional): As in `make_budget_sampler`; one
            for all prompts, or one for each.
        max_tokens (int or sequence, optional): As in `stream_generate`, likewise.
        hard_stop, thinking_start, thinking_end: As in `make_budget_sampler`.
        batch_size (int): Most replies to generate at a time.
        prefill_batch_size (int): Most prompts to process at a time.
        prefill_step_size (int): Prompt tokens to process at a time.
        max_kv_size (int, optional): Most tokens that the KV cache of a reply keeps.
        logits_processors (list, optional): mlx-lm's, for every reply.
        stop_after_thinking (bool): Whether to end each reply as soon as its thinking is
            closed, without an answer.
        stats (BatchStats, optional): Filled with mlx-lm's statistics at the end; what
            the caller does between two replies counts as time of generation.
        seed (int or sequence, optional): As in `make_budget_sampler`; one for each
            prompt, so that the draws of a reply are its own whatever runs beside it.
        make_sampler (Callable): In place of `make_budget_sampler`.
        sampling: The other options of `make_budget_sampler`: ``temp``, ``top_p``,
            ``thinking_budget_message`` and so on.

    Yields:
        BatchReply: In the order in which they finish.

    Raises:
        ValueError: If a budget cannot be honoured, with the reason and the way out.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("prefill_batch_size", prefill_batch_size),
    ):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}.")
    if isinstance(prompts, str):
        raise ValueError("prompts must be a sequence of prompts: put it in a list.")
    budgets = _Values("thinking_budget", thinking_budget, prompts, check_budget)
    limits = _Values("max_tokens", max_tokens, prompts, _check_limit)
    seeds = _Values("seed", seed, prompts, lambda value: value)

    def requests() -> Generator["_Request", None, None]:
        for index, prompt in enumerate(prompts):
            budget, limit = budgets[index], limits[index]
            if isinstance(prompt, int):
                raise ValueError("prompts must be a sequence of prompts: this is one.")
            ids = encode_prompt(tokenizer, prompt)
            if not ids:
                raise ValueError(f"Prompt {index} is empty.")
            if limit is None:
                limit = default_max_tokens(budget, hard_stop)
            sampler = make_sampler(
                model,
                tokenizer,
                predictor,
                prompt=ids,
                thinking_budget=budget,
                hard_stop=hard_stop,
                thinking_start=thinking_start,
                thinking_end=thinking_end,
                seed=seeds[index],
                **sampling,
            )
            tracker = make_tracker(tokenizer, thinking_start, thinking_end, ids)
            if stop_after_thinking and tracker is None:
                find_markers(tokenizer)  # says what is missing
            limit = _NO_LIMIT if limit == -1 else limit
            yield _Request(index, ids, limit, sampler, tracker, stop_after_thinking)

    generator = BatchGenerator(
        model,
        stop_tokens=[[t] for t in tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=min(prefill_batch_size, batch_size),
        prefill_step_size=prefill_step_size,
        max_kv_size=max_kv_size,
        logits_processors=logits_processors,
    )
    waiting, running = requests(), {}

    def fill() -> None:
        while len(running) < batch_size:
            if (request := next(waiting, None)) is None:
                return
            (uid,) = generator.insert(
                [request.ids], [request.limit], samplers=[request.sampler]
            )
            running[uid] = request

    try:
        fill()
        if not running:
            return
        with generator.stats() as measured:
            while running:
                for response in generator.next_generated():
                    request = running[response.uid]
                    reply = request.take(response, tokenizer)
                    if reply is not None:
                        if response.finish_reason is None:
                            generator.remove([response.uid])
                        request.sampler.close()
                        del running[response.uid]
                        yield reply
                fill()
        if stats is not None:
            vars(stats).update(vars(measured))
    finally:
        for request in running.values():
            request.sampler.close()
        generator.close()


@dataclass
class _Request:
    index: int
    ids: list[int]
    limit: int
    sampler: BudgetSampler
    tracker: ThinkingTracker | None
    stop_after_thinking: bool

    def __post_init__(self):
        self.tokens: list[int] = []
        self._answer_tokens = 0

    def take(self, response, tokenizer: TokenizerWrapper) -> BatchReply | None:
        """Adds a token; the reply, if it was the last."""
        if response.finish_reason != "stop":
            is_answer = True
            if self.tracker is not None:
                was_thinking = self.tracker.thinking
                forced = len(self.tokens) in self.sampler.forced_steps
                self.tracker.update(response.token, forced=forced)
                is_answer = not was_thinking and not self.tracker.thinking
            self._answer_tokens += is_answer
            self.tokens.append(response.token)
        tracker, finish_reason = self.tracker, response.finish_reason
        if finish_reason is None and self.stop_after_thinking and tracker.closed_by:
            finish_reason = "closed"
        if finish_reason is None:
            return None
        # The loop runs a step past the last token.
        guided = [s for s in self.sampler.guided_steps if s < len(self.tokens)]
        return BatchReply(
            index=self.index,
            text=_decode(tokenizer, self.tokens),
            tokens=self.tokens,
            prompt_tokens=len(self.ids),
            finish_reason=finish_reason,
            is_thinking=tracker is not None and tracker.thinking,
            thinking_tokens=tracker.thinking_tokens if tracker else 0,
            thinking_budget=self.sampler.budget,
            closed_by=tracker.closed_by if tracker else None,
            guided_tokens=len(guided),
            answer_tokens=self._answer_tokens,
        )


def _decode(tokenizer: TokenizerWrapper, tokens: list[int]) -> str:
    """The text that ``stream_generate`` gives in pieces."""
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    for token in tokens:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return detokenizer.text


class _Values:
    """One value for all prompts or one for each, checked before anything is run."""

    def __init__(self, name: str, given, prompts, check: Callable):
        self._name = name
        self._is_many = isinstance(given, Sequence) and not isinstance(given, str)
        self._values = [check(v) for v in (given if self._is_many else [given])]
        if self._is_many and hasattr(prompts, "__len__"):
            self._check_count(len(prompts), len(prompts) == len(given))

    def __getitem__(self, index: int):
        if not self._is_many:
            return self._values[0]
        self._check_count(index + 1, index < len(self._values))
        return self._values[index]

    def _check_count(self, prompts: int, is_right: bool) -> None:
        if not is_right:
            raise ValueError(
                f"{self._name} has {len(self._values)} values for {prompts} prompts: "
                "give one for each prompt, or one for all."
            )


def _check_limit(max_tokens: int | None) -> int | None:
    is_number = isinstance(max_tokens, int) and not isinstance(max_tokens, bool)
    if max_tokens is not None and (not is_number or max_tokens < -1 or not max_tokens):
        raise ValueError(
            f"max_tokens must be 1 or more, or -1 for no limit, not {max_tokens!r}."
        )
    return max_tokens
