"""The server's generation thread: mlx-lm's, with budget samplers, and its idle time.

Knows the loaded model, predictors and samplers; nothing of HTTP or of loading.
"""

import gc
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import Empty, Queue
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm import server
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.caches import check_quantisable
from ..engine.closing import closing_of
from ..engine.context import check_length, check_tokens, check_unicode, context_length
from ..engine.drafts import check_draftable
from ..engine.draws import TokenDraw, random_seed
from ..engine.enforcing import for_predictor
from ..engine.follower import ReplyFollower
from ..engine.sampler import steer
from ..engine.scoring import score_tokens
from ..engine.settings import MAX_SEED, PromptOptions, Sampling, ThinkingBudget
from ..engine.template import ask_template
from ..engine.thinking import markers_of
from ..method.predictor import Predictor
from . import parts
from .budget_fields import check_template_arguments
from .budgets import leaving_room
from .errors import RequestError
from .provider import BudgetModelProvider
from .steering import SteeredArguments, SteeredRequest


class Learner(Protocol):
    """What learns of a model in idle time, token by token.

    Attributes:
        table: A predictor that it has made, until that is taken.
    """

    table: Predictor | None

    def step(self) -> bool:
        """Does a little; whether there is more to do."""

    def close(self) -> None:
        """Ends it."""


MakeLearner = Callable[[Any, TokenizerWrapper], Learner]


class BudgetResponseGenerator(server.ResponseGenerator):
    """mlx-lm's generation thread, for steered requests.

    A failure while it generates ends the requests that are there, not the thread.
    """

    model_provider: BudgetModelProvider

    def __init__(self, *args: Any, make_learner: MakeLearner | None = None):
        self._waiting: weakref.WeakSet[Queue] = weakref.WeakSet()
        self._make_learner = make_learner
        self._learner: Learner | None = None
        self._learns_of: Any = None
        # When the server is to end: no new requests, and then no more of the others.
        self.refuses = self.ends_replies = False
        self._stepped = time.monotonic()
        super().__init__(*args)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread is alive."""
        return self._generation_thread.is_alive()

    @property
    def status(self) -> str:
        """Of the server in a word: "ok", or why it generates nothing."""
        if not self.is_healthy:
            return "unavailable"
        if self.refuses:
            return "stopping"
        return "loading" if self.model_provider.is_loading else "ok"

    @property
    def seconds_since_step(self) -> float:
        """Since the thread last looked for requests, as it does between its steps."""
        return time.monotonic() - self._stepped

    def stop_within(self, seconds: float) -> bool:
        """Ends the thread after the step that it is at; whether it did so in time."""
        self._stop = True
        self._generation_thread.join(seconds)
        return not self._generation_thread.is_alive()

    def generate(
        self,
        request: server.CompletionRequest,
        generation_args: server.GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[server.GenerationContext, Iterator[server.Response]]:
        """As `mlx_lm.server.ResponseGenerator.generate`.

        Raises:
            RequestError: If the request cannot be honoured, or the server ends.
            RuntimeError: If generation has failed.
        """
        if self.refuses:
            raise RequestError("The server is being stopped.", status=503)
        return super().generate(request, generation_args, progress_callback)

    def _await_response(self, response_queue: Queue) -> Any:
        while True:
            if self.ends_replies:
                raise RequestError("The server is being stopped.", status=503)
            try:
                return response_queue.get(timeout=0.25)
            except Empty:
                if not self.is_healthy:
                    raise RuntimeError("The generation thread has died.") from None

    def _generate(self) -> None:
        while not self._stop:
            try:
                self._generate_once()
            except Exception as e:
                logging.exception("Generation failed.")
                self._end_all(RuntimeError(f"Generation failed: {e}"))
            # What is left of it must not keep its samplers.
            gc.collect()
        # A process that ends while a thread's streams are there may be aborted.
        if hasattr(mx, "clear_streams"):
            mx.synchronize()
            mx.clear_streams()

    def _generate_once(self) -> None:
        """Loads the default model, and serves until it is to stop or fails."""
        super()._generate()

    def _next_request(self, timeout: float | None = None) -> tuple | None:
        self._stepped = time.monotonic()
        if timeout is not None:
            self._use_idle_time(timeout)
        request = super()._next_request(timeout)
        if request is not None:
            self._waiting.add(request[0])
        return request

    def _use_idle_time(self, seconds: float) -> None:
        """Learns until a request comes, or so long."""
        provider, learner = self.model_provider, self._learner
        if self._make_learner is None:
            return
        if learner is not None and provider.model is not self._learns_of:
            # Another model was asked for: this one must not be kept for its sake.
            learner.close()
            self._learner = learner = self._learns_of = None
        if not provider.is_default or not self.requests.empty():
            return
        end = time.monotonic() + seconds
        try:
            if learner is None:
                self._learns_of = provider.model
                learner = self._make_learner(provider.model, provider.tokenizer)
                self._learner = learner
            while self.requests.empty() and not self._stop:
                if not learner.step():
                    logging.info("Nothing left to learn in idle time.")
                    self._make_learner = None
                    break
                if time.monotonic() > end:
                    break
        except Exception as e:
            self._make_learner = None
            logging.error("Learning in idle time has ended: %s", e)
        if learner is not None and learner.table is not None:
            provider.take_table(learner.table)
            learner.table = None

    def _end_all(self, error: Exception) -> None:
        while True:
            try:
                self._waiting.add(self.requests.get_nowait()[0])
            except Empty:
                break
        for queue in self._waiting:
            queue.put(error)
        self._waiting.clear()

    def _tokenize(
        self,
        tokenizer: TokenizerWrapper,
        request: SteeredRequest,
        args: SteeredArguments,
    ) -> tuple:
        """Makes the prompt of a request, and its sampler: the last step that may fail.

        Raises:
            RequestError: If there is no prompt in it, no way to keep its budget, or
                nobody to answer to.
        """
        if not self._has_client(request):
            raise RequestError("The client has hung up.")
        try:
            texts = list(_texts(request))
            for text in texts:
                check_unicode(text, "The request")
            most = context_length(self.model_provider.model, tokenizer)
            check_length(tokenizer, texts, most)
            self._ask_template(tokenizer, request, args)
            prompt, segments, types, state, *others = super()._tokenize(
                tokenizer, request, args
            )
            steering = request.steering
            if steering.prompt_ids is not None:
                prompt = self._checked_ids(steering.prompt_ids)
                segments = [prompt]
            if not prompt:
                raise RequestError("The prompt is empty.", "prompt")
            check_tokens(prompt, most)
            steering.prompt, steering.prompt_tokens = prompt, len(prompt)
            if steering.scores is not None:
                model = self.model_provider.model
                steering.prompt_scores = score_tokens(model, prompt, steering.scores)
            if request.steering.only_counts:
                raise RequestError("Nothing is generated for it.")
            args.max_tokens = _within_context(args.max_tokens, len(prompt), most)
            self._check(request, args, len(prompt))
            self._try(prompt, tokenizer, args)
            thinking = self._thinking(prompt, tokenizer, request, args)
            answer = request.steering.answer
            sampler = steer(
                self.model_provider.model,
                tokenizer,
                self.model_provider.predictor,
                prompt,
                thinking,
                _sampling(args, self.model_provider.vocabulary_size),
                answer.for_model(tokenizer) if answer is not None else None,
            )
            request.steering.constraint = sampler.constraint
            reply = ReplyFollower(
                tokenizer, markers_of(tokenizer, thinking), prompt, sampler.record
            )
        except RequestError:
            raise
        except Exception as e:  # templates raise what their authors like
            raise RequestError(str(e) or repr(e)) from e
        request.steering.reply = reply
        if reply.thinks:
            if reply.is_in_thinking and state == "normal":
                state = "reasoning"
            elif state == "reasoning" and not reply.is_in_thinking:
                # What a user writes opens no block.
                own = getattr(tokenizer, "response_initial_state", None)
                state = own or "normal"
        # The generator's batch is to be all that keeps it: it ends with its reply.
        args.sampler = sampler
        return prompt, segments, types, state, *others

    def _has_client(self, request: SteeredRequest) -> bool:
        return request.steering.has_client()

    def _checked_ids(self, ids: Sequence[int]) -> list[int]:
        most = self.model_provider.vocabulary_size
        if outside := [token for token in ids if token >= most]:
            raise RequestError(
                f"prompt: {outside[0]} is no token of the model, which has {most:,}.",
                "prompt",
            )
        return list(ids)

    def _ask_template(
        self,
        tokenizer: TokenizerWrapper,
        request: SteeredRequest,
        args: SteeredArguments,
    ) -> None:
        """Lets the chat template do what the budget asks, if it can.

        Raises:
            RequestError: If the request gives it an argument that means nothing to it.
        """
        if request.request_type == "chat":
            given, text = args.chat_template_kwargs or {}, str(tokenizer.chat_template)
            check_template_arguments(given, text)
        start, end = self.model_provider.named_markers
        thinking = replace(request.steering.request, start=start, end=end)
        asked = PromptOptions(chat_template_config=args.chat_template_kwargs)
        template, switch = ask_template(tokenizer, thinking, asked)
        args.chat_template_kwargs = template.chat_template_config
        if thinking.tokens == 0 and request.request_type == "chat":
            request.steering.left_out_by = switch

    def _make_state_machine(
        self, model_key: Any, tokenizer: TokenizerWrapper, *others: Any, **named: Any
    ) -> tuple:
        made = super()._make_state_machine(model_key, tokenizer, *others, **named)
        if not parts.SPLITS_TEXT:
            return made
        # The reply is split already.
        return made[0], parts.make_machine(tokenizer)

    def _check(
        self, request: SteeredRequest, args: SteeredArguments, prompt_tokens: int
    ) -> None:
        tokens = self.model_provider.vocabulary_size
        for token, bias in (args.logits.logit_bias or {}).items():
            if not 0 <= token < tokens or not math.isfinite(bias):
                raise RequestError(
                    f"logit_bias must be finite, for tokens from 0 to {tokens - 1}; "
                    f"not {bias} for {token}.",
                    "logit_bias",
                )
        is_drafted = self.model_provider.draft_model is not None
        if is_drafted and request.steering.request.prefix:
            raise RequestError(
                "Speculative decoding cannot be combined with a reply_prefix: leave "
                "out one of them.",
                "reply_prefix",
            )
        if is_drafted and request.steering.request.is_steered:
            raise RequestError(
                "Speculative decoding cannot be combined with a thinking budget: leave "
                "out one of them."
            )
        if is_drafted and request.steering.answer is not None:
            raise RequestError(
                "Speculative decoding cannot be combined with a response_format, nor "
                "with a tool that must be called: leave out one of them."
            )
        if is_drafted:
            cache = make_prompt_cache(self.model_provider.model)
            check_draftable(cache, prompt_tokens, args.max_tokens)
        check_quantisable(
            self.model_provider.model,
            self.model_provider.loop_options,
            prompt_tokens + args.max_tokens,
        )

    def _try(
        self, prompt: list[int], tokenizer: TokenizerWrapper, args: SteeredArguments
    ) -> None:
        """Lets whatever in a request's settings raises do so here, not in the batch."""
        self._make_state_machine(
            self.model_provider.model_key, tokenizer, args.stop_words
        )
        row = mx.zeros((1, self.model_provider.vocabulary_size))
        for process in server._make_logits_processors(args):
            row = process(mx.array(prompt[-2:]), row)
        draw = TokenDraw(_sampling(args, row.shape[-1]), tokenizer)
        mx.eval(draw(row, 0))

    def _thinking(
        self,
        prompt: list[int],
        tokenizer: TokenizerWrapper,
        request: SteeredRequest,
        args: SteeredArguments,
    ) -> ThinkingBudget:
        """How the request's thinking is held, with room for an answer."""
        steering = request.steering
        start, end = self.model_provider.named_markers
        thinking = replace(steering.request, start=start, end=end)
        thinking = for_predictor(thinking, self.model_provider.predictor)
        markers, forced = markers_of(tokenizer, thinking), 0
        if markers is not None and not thinking.is_free:
            close = closing_of(tokenizer, markers, prompt, thinking.message)
            forced = close.most(markers)
        steering.request = leaving_room(
            thinking, args.max_tokens, forced, steering.asked_floor
        )
        return steering.request

    def _is_batchable(self, args: server.GenerationArguments) -> bool:
        # Our draws are a request's own, so a seed is no reason to be served alone.
        return super()._is_batchable(replace(args, seed=None))


def _within_context(max_tokens: int, prompt_tokens: int, most: int) -> int:
    """So many tokens of a reply as the model's context has room for."""
    if prompt_tokens >= most:
        raise RequestError(
            f"The prompt has {prompt_tokens:,} tokens, all that the model reads: there "
            "is no room for a reply. Shorten it.",
            "messages",
        )
    return min(max_tokens, most - prompt_tokens)


def _sampling(args: server.GenerationArguments, vocabulary_size: int) -> Sampling:
    asked, seed = args.sampling, args.seed
    if seed is None:
        # mlx-lm seeds MLX's generator for requests with a seed that it serves alone:
        # they are not to decide the draws of those without.
        seed = random_seed()
    return Sampling(
        temp=asked.temperature,
        top_p=asked.top_p,
        min_p=asked.min_p,
        # As many as there are, or more, are all.
        top_k=asked.top_k if asked.top_k < vocabulary_size else 0,
        xtc_probability=asked.xtc_probability,
        xtc_threshold=asked.xtc_threshold,
        seed=seed & MAX_SEED,
    )


def _texts(request: server.CompletionRequest) -> Iterator[str]:
    """The texts of a request: its prompt has no fewer characters."""
    yield request.prompt
    for message in request.messages:
        content = message.get("content") or ""
        for part in [content] if isinstance(content, str) else content:
            yield part if isinstance(part, str) else part.get("text") or ""
