"""Generates many replies at once, each with a thinking budget of its own.

Continuous batching by mlx-lm's `BatchGenerator`: requests join as others finish. Knows
that generator and the budget sampler; nothing of files, Hub or terminal.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import mlx.nn as nn
from mlx_lm.generate import (
    BatchGenerator,
    BatchStats,
    GenerationBatch,
    PromptProcessingBatch,
)
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.predictor import Predictor
from ..ranks import current, mirrored, shared
from .answers import AnswerFormat
from .budgets import BudgetLike
from .context import context_length, vocabulary_size
from .enforcing import for_predictor
from .fields import check_count, check_limit, take
from .follower import ReplyFollower
from .keywords import SharedOptions
from .known_prompts import KnownPrompts
from .memory import tell_of_size
from .plain import ReplySampler
from .prompts import wrapped
from .sampler import Prompt, encode_prompt, steer
from .settings import Sampling, ThinkingBudget
from .thinking import find_markers, markers_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
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
        closed_by: "model", "budget" or "loop" if thinking has ended, else None.
        guided_tokens: Number of tokens that were chosen under guidance.
        answer_tokens: Tokens behind the thinking, or of all of a reply without any.
        thinking, answer: The two parts of the text, without markers.
        after_close_tokens: Tokens that were reasoned on behind the close.
        no_answer: Why the reply has no answer, if it has none.
        forced_tokens: Tokens that were put in.
        marker_tokens: Tokens of the markers that the model itself wrote. The five
            counts together are the number of ``tokens``.
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
    thinking: str = field(default="", compare=False)
    answer: str = field(default="", compare=False)
    after_close_tokens: int = 0
    no_answer: str | None = field(default=None, compare=False)
    forced_tokens: int = 0
    marker_tokens: int = 0


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
    prompts: Iterable[Prompt],
    *,
    verbose: bool = False,
    **kwargs: Any,
) -> BatchReplies:
    """Generates a reply to each prompt, several at a time.

    Greedy replies are those that the prompts would get alone, to the rounding of the
    model's own batched arithmetic.

    Args:
        model, tokenizer, prompts, kwargs: As in `stream_batch_generate`.
        verbose (bool): Whether to print progress and statistics.
    """
    found: dict[int, BatchReply] = {}
    stats = BatchStats()
    finished = stream_batch_generate(model, tokenizer, prompts, stats=stats, **kwargs)
    for reply in finished:
        found[reply.index] = reply
        if verbose:
            of = f" of {len(prompts)}" if isinstance(prompts, Sized) else ""
            print(f"Finished {len(found)}{of}", end="\r", flush=True)
    if verbose and found:
        print(
            f"\nPrompt: {stats.prompt_tokens} tokens, {stats.prompt_tps:.3f} "
            f"tokens-per-sec\nGeneration: {stats.generation_tokens} tokens, "
            f"{stats.generation_tps:.3f} tokens-per-sec\n"
            f"Peak memory: {stats.peak_memory:.3f} GB"
        )
    replies = [found[index] for index in range(len(found))]
    return BatchReplies([r.text for r in replies], replies, stats)


@mirrored(prompts=lambda: iter(()), stats=lambda: None, known_prompts=lambda: None)
def stream_batch_generate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    prompts: Iterable[Prompt],
    *,
    predictor: Predictor | bool | None = None,
    thinking_budget: BudgetLike | Sequence[BudgetLike] = None,
    max_tokens: int | None | Sequence[int | None] = None,
    max_answer_tokens: int | None = None,
    seed: int | None | Sequence[int | None] = None,
    json_schema: Any = None,
    batch_size: int = 32,
    prefill_batch_size: int = 8,
    prefill_step_size: int = 2048,
    max_kv_size: int | None = None,
    logits_processors: list | None = None,
    stop_after_thinking: bool = False,
    stats: BatchStats | None = None,
    known_prompts: KnownPrompts | None = None,
    keeps_prompts: bool = True,
    make_sampler: Callable[..., Any] | Sequence[Callable[..., Any]] = steer,
    **options: "Unpack[SharedOptions]",
) -> Generator[BatchReply, None, None]:
    """Generates replies, several at a time, and yields each when it is finished.

    Prompts are taken from ``prompts`` as there is room for them.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them.
        prompts (Iterable): Prompts, chat template applied, as texts or token ids.
        thinking_budget (int or sequence, optional): As in `make_budget_sampler`; one
            for all prompts, or one for each. Two numbers are the budgets of two
            prompts: a range for all is "800-1000", and (800, 1000) one for a prompt.
        max_tokens (int or sequence, optional): As in `stream_generate`, likewise.
        max_answer_tokens (int, optional): As in `stream_generate`, for all prompts.
        seed (int or sequence, optional): As in `make_budget_sampler`; one for all
            prompts, so that equal prompts get equal replies, or one for each. None
            leaves a prompt's draws to MLX's generator, whatever seeds the others have.
        json_schema (dict, str, class or list, optional): As in `make_budget_sampler`;
            one for all prompts, or a list with one, or None, for each.
        batch_size (int): Most replies to generate at a time.
        prefill_batch_size (int): Most prompts to process at a time.
        prefill_step_size (int): Prompt tokens to process at a time.
        max_kv_size (int, optional): Most tokens that the KV cache of a reply keeps.
        logits_processors (list, optional): mlx-lm's, for every reply.
        stop_after_thinking (bool): Whether to end each reply as soon as its thinking is
            closed, without an answer.
        stats (BatchStats, optional): Filled with mlx-lm's statistics at the end; what
            the caller does between two replies counts as time of generation.
        known_prompts (KnownPrompts, optional): What has been read of prompts before,
            and is not read again; it gets these prompts as well. Of no effect on
            several ranks.
        keeps_prompts (bool): Whether it gets them.
        make_sampler (Callable or sequence): In place of
            `mlx_budget.engine.sampler.steer`; one for all prompts, or one for each.
        options: ``budget_mode``, ``min_thinking_tokens``, ``hard_stop``,
            ``thinking_budget_message``, ``temp``, ``top_p`` and the other options of
            `make_budget_sampler`, for all prompts.

    Yields:
        BatchReply: In the order in which they finish.

    Raises:
        ValueError: If a budget cannot be honoured, with the reason and the way out.
    """
    batch_size = check_count("batch_size", batch_size)
    prefill_batch_size = check_count("prefill_batch_size", prefill_batch_size)
    prefill_step_size = check_count("prefill_step_size", prefill_step_size)
    if max_kv_size is not None:
        max_kv_size = check_count("max_kv_size", max_kv_size)
    if max_answer_tokens is not None:
        max_answer_tokens = check_count("max_answer_tokens", max_answer_tokens)
    if isinstance(prompts, str):
        raise ValueError("prompts must be a sequence of prompts: put it in a list.")
    tokenizer = wrapped(tokenizer)
    keywords: dict[str, Any] = dict(options)
    thinking, sampling = take(ThinkingBudget, keywords), take(Sampling, keywords)
    if keywords.pop("kv_bits", None) is not None:
        raise ValueError(
            "mlx-lm cannot quantise the KV cache of a batch: leave out kv_bits, or "
            "take `stream_generate` for one prompt at a time."
        )
    if keywords:
        raise TypeError(f"There is no option {next(iter(keywords))!r}.")
    budgets = _Values(
        "thinking_budget",
        thinking_budget,
        prompts,
        lambda b: for_predictor(replace(thinking, tokens=b), predictor),
    )
    limits = _Values("max_tokens", max_tokens, prompts, check_limit)
    draws = _Values("seed", seed, prompts, lambda s: replace(sampling, seed=s))
    answers = _Values("json_schema", json_schema, prompts, AnswerFormat)
    samplers = _Values("make_sampler", make_sampler, prompts, lambda made: made)
    markers = markers_of(tokenizer, thinking)
    if stop_after_thinking and markers is None:
        find_markers(tokenizer)  # says what is missing

    most = context_length(model, tokenizer, max_kv_size)
    vocab_size = vocabulary_size(model)

    def requests() -> Generator[_Request, None, None]:
        for index, prompt in enumerate(shared(prompts, "a prompt")):
            if isinstance(prompt, int):
                raise ValueError("prompts must be a sequence of prompts: this is one.")
            ids = encode_prompt(tokenizer, prompt, most, vocab_size)
            if not ids:
                raise ValueError(f"Prompt {index} is empty.")
            budget, limit = budgets[index], limits[index]
            if limit is None:
                limit = budget.max_tokens
            budget.check_room(limit)
            answer = () if (wanted := answers[index]).is_free else (wanted,)
            sampler = samplers[index](
                model, tokenizer, predictor, ids, budget, draws[index], *answer
            )
            reply = ReplyFollower(tokenizer, markers, ids, sampler.record)
            limit = _NO_LIMIT if limit == -1 else limit
            yield _Request(index, ids, limit, sampler, reply)

    tell_of_size(model, predictor)
    known = KnownPrompts(0) if known_prompts is None or current() else known_prompts
    generator = BatchGenerator(
        model,
        stop_tokens=[[t] for t in tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=min(prefill_batch_size, batch_size),
        prefill_step_size=prefill_step_size,
        max_kv_size=max_kv_size,
        logits_processors=logits_processors,
    )
    waiting = requests()
    running: dict[int, _Request] = {}

    def fill() -> None:
        while len(running) < batch_size:
            if (request := next(waiting, None)) is None:
                return
            caches, rest = known.nearest(request.ids)
            (uid,) = generator.insert(
                [rest],
                [request.limit],
                caches=None if caches is None else [caches],
                all_tokens=[request.ids[: -len(rest)]],
                samplers=[request.sampler],
            )
            running[uid] = request

    def keep(read: Iterable[PromptProcessingBatch.Response]) -> None:
        # All of a prompt but its last token, with which its reply begins.
        ends = [r.uid for r in read if r.end_of_segment and not r.end_of_prompt]
        for caches, tokens in generator.extract_cache(ends).values():
            known.keep(tokens, caches)

    thread = threading.get_ident()
    try:
        fill()
        if not running:
            return
        with generator.stats() as measured:
            while running:
                prompts_read, responses = generator.next()
                if known.max_bytes and keeps_prompts:
                    keep(prompts_read)
                for response in responses:
                    request = running[response.uid]
                    finish_reason = request.take(
                        response, stop_after_thinking, max_answer_tokens
                    )
                    if finish_reason is None:
                        continue
                    if response.finish_reason is None:
                        generator.remove([response.uid])
                    request.sampler.close()
                    request.sampler.check_answer()
                    del running[response.uid]
                    yield request.finish(finish_reason)
                    if threading.get_ident() != thread:
                        raise ValueError(
                            "A batch has to be consumed in the thread in which it was "
                            "begun, to which MLX's streams belong: take its replies "
                            "there, and hand them on."
                        )
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
    sampler: ReplySampler
    reply: ReplyFollower

    def take(
        self,
        response: GenerationBatch.Response,
        stop_after_thinking: bool,
        max_answer_tokens: int | None,
    ) -> str | None:
        """Takes a token; why the reply ends with it, or None."""
        if response.finish_reason != "stop":
            self.reply.take(response.token)
        if response.finish_reason is not None:
            return response.finish_reason
        if stop_after_thinking and self.reply.closed_by:
            return "closed"
        return "length" if self.reply.has_answered(max_answer_tokens) else None

    def finish(self, finish_reason: str) -> BatchReply:
        """The finished reply."""
        reply = self.reply
        thinking, answer = reply.split()
        return BatchReply(
            index=self.index,
            text=reply.text,
            thinking=thinking,
            answer=answer,
            tokens=reply.tokens,
            prompt_tokens=len(self.ids),
            finish_reason=finish_reason,
            is_thinking=reply.is_in_thinking,
            thinking_tokens=reply.thinking_tokens,
            thinking_budget=reply.thinking_budget,
            closed_by=reply.closed_by,
            guided_tokens=reply.guided_tokens,
            answer_tokens=reply.answer_tokens,
            after_close_tokens=reply.after_close_tokens,
            no_answer=reply.why_no_answer(finish_reason),
            forced_tokens=reply.forced_tokens,
            marker_tokens=reply.marker_tokens,
        )


class _Values(Generic[T]):
    """One value for all prompts or one for each, checked before anything is run."""

    def __init__(
        self,
        name: str,
        given: Any,
        prompts: Iterable[Prompt],
        check: Callable[[Any], T],
    ):
        self._name = name
        if hasattr(given, "tolist"):  # an array of NumPy's or MLX's
            given = given.tolist()
        self._is_many = isinstance(given, Sequence) and not isinstance(given, str)
        self._values = [check(v) for v in (given if self._is_many else [given])]
        if self._is_many and isinstance(prompts, Sized):
            self._check_count(len(prompts), len(prompts) == len(given))

    def __getitem__(self, index: int) -> T:
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
