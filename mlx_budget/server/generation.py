"""The server's models and its generation thread: mlx-lm's, with budget samplers.

Knows models, predictors and samplers; nothing of HTTP.
"""

import argparse
import gc
import logging
import math
import os
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import mlx.core as mx
from mlx_lm import server
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model

from .. import demo
from ..engine.caches import check_quantisable
from ..engine.closing import closing_of
from ..engine.drafts import check_draftable
from ..engine.draws import TokenDraw
from ..engine.follower import ReplyFollower
from ..engine.priors import NOTICE, LearnedPrior
from ..engine.sampler import check_enforceable, steer
from ..engine.settings import MAX_SEED, PromptOptions, Sampling, ThinkingBudget
from ..engine.template import ask_template
from ..engine.thinking import ThinkingMarkers, find_markers, markers_of
from ..method.predictor import Predictor, is_predictor_folder
from ..models.loading import check_fits, fetch_model, load_predictor
from . import parts
from .budgets import BudgetPolicy, RequestError, leaving_room
from .steering import SteeredArguments, SteeredRequest

# What no prompt and no reply has, for mlx-lm to look for.
_NO_TEXT, _NO_TOKENS = "\0", (-1,)


class BudgetModelProvider(server.ModelProvider):
    """Loads models on demand, each with its predictor.

    Args:
        cli_args (argparse.Namespace): As `mlx_lm.server` has them, and `predictor`:
            folder or Hub name of the predictor of the default model, None for the one
            beside it, or False for none whatever the model. `thinking_start` and
            `thinking_end` are markers of the default model, None for the tokenizer's.
        policy (BudgetPolicy): What the default model must be able to honour.

    Attributes:
        predictor: Of the model that is loaded; None or False as `mlx_budget.load`.
        named_markers: The opening and the closing marker that were given for it, each
            None for the tokenizer's own.
        vocabulary_size: Of its tokenizer.
        longest_token: Characters of the longest token, at least.
    """

    # mlx-lm's class says nothing of these but that they begin as None.
    model: Any
    tokenizer: Any
    model_key: Any

    def __init__(self, cli_args: argparse.Namespace, policy: BudgetPolicy):
        super().__init__(cli_args)
        self.predictor: Predictor | bool | None = None
        self.named_markers: tuple[str | None, str | None] = None, None
        self.vocabulary_size = 0
        self.longest_token = 0
        self._policy = policy
        self._failure: Exception | None = None
        self._learned: LearnedPrior | None = None
        self._is_tried = threading.Event()

    @property
    def loop_options(self) -> dict[str, Any]:
        """Options of mlx-lm's loop."""
        return {**vars(self.cli_args), "draft_model": self.draft_model}

    def load_default(self) -> None:
        """Loads the default model; a failure is kept for `wait_until_loaded`."""
        try:
            super().load_default()
            thinking = self._policy.thinking.at_most(self._policy.most)
            if not thinking.is_free:
                if self.cli_args.draft_model is not None:
                    raise ValueError(
                        "Speculative decoding (--draft-model) cannot be combined with "
                        "a thinking budget: leave out one of them."
                    )
                find_markers(self.tokenizer, *self.named_markers)
                check_enforceable(thinking, self.predictor)
        except Exception as e:  # whatever a model's files make its loader raise
            self._failure = e
        finally:
            self._is_tried.set()

    def wait_until_loaded(self) -> None:
        """Waits for the default model.

        Raises:
            ValueError: Or what else loading it raised.
        """
        self._is_tried.wait()
        if self._failure is not None:
            raise self._failure

    def _load(
        self,
        model_path: str,
        adapter_path: str | None = None,
        draft_model_path: str | None = None,
    ) -> None:
        folder = fetch_model(
            model_path, trust_remote_code=self.cli_args.trust_remote_code
        )
        super()._load(str(folder), adapter_path, draft_model_path)
        # Known by its name again only when all of it is there.
        self.model_key = None
        check_quantisable(self.model, self.loop_options, tokens=0)
        if folder == demo.FOLDER:
            self.model = dequantize_model(self.model)
        self.named_markers = None, None
        if model_path == self.cli_args.model:
            self.named_markers = (
                self.cli_args.thinking_start,
                self.cli_args.thinking_end,
            )
        if self.named_markers != (None, None):
            markers = find_markers(self.tokenizer, *self.named_markers)
            _show_markers(self.tokenizer, markers)
        self._learned = None
        self.predictor = self._load_predictor(model_path, folder)
        vocabulary = self.tokenizer.get_vocab()
        self.vocabulary_size = len(vocabulary)
        self.longest_token = max(map(len, vocabulary))
        self.model_key = (model_path, adapter_path, draft_model_path)
        # A recorder's classes and what they refer to are garbage in cycles.
        gc.collect()

    def _named_thinking(self) -> ThinkingBudget:
        start, end = self.named_markers
        return ThinkingBudget(start=start, end=end)

    def _load_predictor(self, name: str, folder: Path) -> Predictor | bool | None:
        given = self.cli_args.predictor
        if given is False:
            return False
        predictor = None
        if given is not None and name == self.cli_args.model:
            predictor = load_predictor(given)
        elif is_predictor_folder(folder):
            predictor = load_predictor(folder)
        if predictor is not None:
            check_fits(predictor, self.model)
            return predictor
        markers = markers_of(self.tokenizer, self._named_thinking())
        if markers is not None:
            logging.info("%s", NOTICE)
        if markers is not None and self.cli_args.learn_prior:
            self._learned = LearnedPrior(name, self.tokenizer, markers)
            predictor = self._learned.predictor()
        return predictor

    def learn(self, reply: ReplyFollower) -> None:
        """Lets the prior learn from a reply that has ended, if it is to learn."""
        learned = self._learned
        if learned is not None and learned.learn(reply):
            self.predictor = learned.predictor()


def _show_markers(tokenizer: TokenizerWrapper, markers: ThinkingMarkers) -> None:
    """Lets mlx-lm split replies at markers that are not the tokenizer's own."""
    tokenizer._think_start = markers.start or _NO_TEXT
    tokenizer._think_start_tokens = markers.start_tokens or _NO_TOKENS
    tokenizer._think_end = markers.end
    tokenizer._think_end_tokens = markers.end_tokens


class BudgetResponseGenerator(server.ResponseGenerator):
    """mlx-lm's generation thread, for steered requests.

    A failure while it generates ends the requests that are there, not the thread.
    """

    model_provider: BudgetModelProvider

    def __init__(self, *args: Any):
        self._waiting: weakref.WeakSet[Queue] = weakref.WeakSet()
        super().__init__(*args)

    @property
    def is_healthy(self) -> bool:
        """Whether the thread is alive."""
        return self._generation_thread.is_alive()

    def _generate(self) -> None:
        while not self._stop:
            try:
                super()._generate()
            except Exception as e:
                if self._is_distributed:
                    raise
                logging.exception("Generation failed.")
                self._end_all(RuntimeError(f"Generation failed: {e}"))
            # What is left of it must not keep its samplers.
            gc.collect()

    def _next_request(self, timeout: float | None = None) -> tuple | None:
        request = super()._next_request(timeout)
        if request is not None:
            self._waiting.add(request[0])
        return request

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
        if not request.steering.has_client():
            raise RequestError("The client has hung up.")
        try:
            self._check_length(
                _characters(request) // self.model_provider.longest_token
            )
            self._ask_template(tokenizer, request, args)
            prompt, segments, types, state, *others = super()._tokenize(
                tokenizer, request, args
            )
            if not prompt:
                raise RequestError("The prompt is empty.", "prompt")
            self._check_length(len(prompt))
            self._check(request, args, len(prompt))
            self._try(prompt, tokenizer, args)
            thinking = self._thinking(prompt, tokenizer, request, args)
            sampler = steer(
                self.model_provider.model,
                tokenizer,
                self.model_provider.predictor,
                prompt,
                thinking,
                _sampling(args, self.model_provider.vocabulary_size),
            )
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

    def _ask_template(
        self,
        tokenizer: TokenizerWrapper,
        request: SteeredRequest,
        args: SteeredArguments,
    ) -> None:
        """Lets the chat template do what the budget asks, if it can."""
        start, end = self.model_provider.named_markers
        thinking = replace(request.steering.request, start=start, end=end)
        asked = PromptOptions(chat_template_config=args.chat_template_kwargs)
        template, _ = ask_template(tokenizer, thinking, asked)
        args.chat_template_kwargs = template.chat_template_config

    def _make_state_machine(
        self, model_key: Any, tokenizer: TokenizerWrapper, *others: Any, **named: Any
    ) -> tuple:
        made = super()._make_state_machine(model_key, tokenizer, *others, **named)
        if not parts.SPLITS_TEXT:
            return made
        # The reply is split already.
        return made[0], parts.make_machine(tokenizer)

    def _check_length(self, tokens: int) -> None:
        model = self.model_provider.model
        most = getattr(getattr(model, "args", None), "max_position_embeddings", None)
        if not isinstance(most, int):
            return
        if tokens > most:
            raise RequestError(
                f"The prompt has {tokens:,} tokens or more, and the model reads at "
                f"most {most:,}."
            )

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
        if is_drafted and not request.steering.request.is_free:
            raise RequestError(
                "Speculative decoding cannot be combined with a thinking budget: leave "
                "out one of them."
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


def _sampling(args: server.GenerationArguments, vocabulary_size: int) -> Sampling:
    asked, seed = args.sampling, args.seed
    if seed is None:
        # mlx-lm seeds MLX's generator for requests with a seed that it serves alone:
        # they are not to decide the draws of those without.
        seed = int.from_bytes(os.urandom(8), "little")
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


def _characters(request: server.CompletionRequest) -> int:
    """Of the texts in a request: its prompt has no fewer."""
    count = len(request.prompt)
    for message in request.messages:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else content
        texts = (p if isinstance(p, str) else p.get("text") or "" for p in parts)
        count += sum(map(len, texts))
    return count
