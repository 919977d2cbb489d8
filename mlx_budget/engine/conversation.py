"""A conversation: its history, and a KV cache of what the model has read of it.

Knows chat templates and mlx-lm's prompt caches; nothing of terminals.
"""

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import (
    CacheList,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.predictor import Predictor
from .fields import keywords_of, take
from .follower import ReplyFollower
from .generate import BudgetResponse, stream_generate
from .prompts import encode_chat
from .sampler import check_enforceable
from .settings import MAX_SEED, AutoBudget, Budget, Sampling, ThinkingBudget
from .thinking import ThinkingTracker, find_markers, markers_of

# Layers of a cache whose cut is exact when mlx-lm makes one; of others it may not be.
_CUTTABLE = (KVCache, QuantizedKVCache, RotatingKVCache)


class _Stopped(Exception):
    """The reply shall end although its prompt is still being read."""


class Conversation:
    """The turns of a chat, with a cache of what the model has read of them.

    At each turn the chat template renders the whole conversation, so that thinking of
    earlier turns is left out where the template leaves it out. The cache is cut to
    what it shares with that, and only the rest is read: a reply is the one that the
    whole conversation gives from scratch. A cache that cannot be cut is made anew.

    A turn enters the history when it has an answer, were it a stopped one; a turn whose
    thinking never led to one leaves nothing behind.

    Attributes:
        messages: The history, as messages for the chat template.
        system_prompt: Put before the history, if any.
        prompt_tokens: Tokens of the last turn's whole prompt, cached ones included.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        predictor: Predictor | bool | None = None,
        *,
        system_prompt: str | None = None,
        chat_template_config: dict | None = None,
        max_kv_size: int | None = None,
        **options: Any,
    ):
        """Begins a chat.

        Args:
            model, tokenizer, predictor: As `mlx_budget.load` returns them.
            system_prompt, chat_template_config: As in `encode_chat`.
            max_kv_size (int, optional): Most tokens in the KV cache.
            options: As in `stream_generate`, the budget aside. With a seed the first
                turn draws as ``stream_generate`` with that seed does, and each later
                one with the next number.

        Raises:
            ValueError: If the model has no chat template, or the markers are bad.
        """
        if not tokenizer.has_chat_template:
            raise ValueError(
                "The model has no chat template, so it cannot chat: `mlx-budget "
                "generate` takes plain prompts."
            )
        self._model = model
        self._tokenizer = tokenizer
        self._predictor = predictor
        self._template_config = chat_template_config
        self._thinking = take(ThinkingBudget, options)
        self._sampling = take(Sampling, options)
        self._loop = options
        self._markers = markers_of(tokenizer, self._thinking)
        self._cache = _ConversationCache(model, max_kv_size)
        self.system_prompt = system_prompt
        self.messages: list[dict] = []
        self.prompt_tokens = 0
        self._turn = 0

    def reset(self) -> None:
        """Forgets the history, and the cache with it."""
        self.messages = []
        self._turn = 0
        self._cache.clear()

    def check_budget(self, budget: int | str | AutoBudget | None) -> Budget:
        """The budget as `mlx_budget.engine.settings.check_budget` gives it.

        Raises:
            ValueError: If it is no budget, or cannot be honoured by this model.
        """
        thinking = replace(self._thinking, tokens=budget)
        if thinking.tokens is not None:
            check_enforceable(thinking, self._predictor)
            find_markers(self._tokenizer, thinking.start, thinking.end)
        return thinking.tokens

    def ask(
        self,
        question: str,
        thinking_budget: int | str | AutoBudget | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[BudgetResponse, None, None]:
        """One turn: the reply, piece by piece. Closing it early forgets the turn.

        Args:
            question (str): What the user says, not blank.
            thinking_budget: As in `stream_generate`.
            stopped (Callable): Whether to end the reply here; asked between two
                tokens, and between two chunks of the prompt.

        Yields:
            BudgetResponse: As `stream_generate` does.

        Raises:
            ValueError: If the template cannot render the conversation, or the budget
                cannot be honoured. The history stays as it was.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        ids, last = self._encode(asked)
        self.prompt_tokens = len(ids)
        # The budget looks in what is read whether thinking is open already.
        held = self._cache.cut_to(ids[:-last], len(ids))
        reply: ReplyFollower | None = None
        thinking = replace(self._thinking, tokens=thinking_budget)

        def stop_early(*_: Any) -> None:
            if stopped():
                raise _Stopped

        responses = stream_generate(
            self._model,
            self._tokenizer,
            ids[held:],
            predictor=self._predictor,
            prompt_cache=self._cache.layers,
            prompt_progress_callback=stop_early,
            **keywords_of(thinking),
            **keywords_of(self._sampling_of_turn()),
            **self._loop,
        )
        self._cache.tokens = list(ids)
        try:
            with closing(responses):
                for response in responses:
                    self._cache.tokens.append(response.token)
                    reply = response.reply
                    yield response
                    stop_early()
        except _Stopped:
            pass
        except BaseException:
            # A layer may have been in the middle of its work.
            self._cache.clear()
            raise
        message = None if reply is None else self._message(reply, ids[-last:])
        if message is not None:
            self.messages = [*asked, message]

    def _sampling_of_turn(self) -> Sampling:
        turn, self._turn = self._turn, self._turn + 1
        if (seed := self._sampling.seed) is None:
            return self._sampling
        return replace(self._sampling, seed=(seed + turn) % (MAX_SEED + 1))

    def _encode(self, messages: list[dict]) -> tuple[list[int], int]:
        """The prompt, and how many of its tokens come from the last message on."""
        options = {
            "system_prompt": self.system_prompt,
            "chat_template_config": self._template_config,
        }
        ids = encode_chat(self._tokenizer, messages, **options)
        try:
            last = encode_chat(self._tokenizer, messages, suffix_only=True, **options)
        except ValueError:  # the template does not write messages as they are
            return ids, len(ids)
        return ids, min(max(len(last), 1), len(ids))

    def _message(self, reply: ReplyFollower, prompt: list[int]) -> dict | None:
        """A reply as a message of the history, or None if it has no answer.

        A template that names a field for thinking gets thinking and answer apart; any
        other gets them as they came, the opening marker included.
        """
        thinking, answer = reply.split()
        field = _thinking_field(self._tokenizer)
        if field == "thinking":
            # gpt-oss heads each part with its channel.
            thinking = thinking.rpartition("<|message|>")[2]
            answer = answer.rpartition("<|message|>")[2]
        if not answer.strip():
            return None
        if field is not None:
            answer = answer.lstrip("\n")
            return {"role": "assistant", "content": answer, field: thinking}
        return {"role": "assistant", "content": self._opening(prompt) + reply.text}

    def _opening(self, prompt: list[int]) -> str:
        """How the prompt itself opens thinking, as some templates make it do."""
        markers = self._markers
        if markers is None or not markers.start:
            return ""
        if not ThinkingTracker(self._tokenizer, markers, prompt).thinking:
            return ""
        text = self._tokenizer.decode(prompt)
        begin = text.rfind(markers.start)
        return text[begin:] if begin >= 0 else markers.start


class _ConversationCache:
    """A KV cache and the tokens that it was given.

    Attributes:
        layers: mlx-lm's prompt cache.
        tokens: What was fed to it; it may hold a token more or less.
    """

    def __init__(self, model: nn.Module, max_kv_size: int | None):
        self._model = model
        self._max_kv_size = max_kv_size
        self.clear()

    def clear(self) -> None:
        """Begins an empty cache."""
        self.layers = make_prompt_cache(self._model, self._max_kv_size)
        self.tokens: list[int] = []

    def cut_to(self, ids: list[int], length: int) -> int:
        """Keeps what the cache shares with the beginning of a prompt.

        Args:
            ids (list): The beginning.
            length (int): Tokens of the whole prompt.

        Returns:
            int: Tokens that are in the cache now: the first ones of ``ids``, or none.
        """
        held = self._held()
        shared = min(held, _common_prefix(self.tokens, ids))
        # Which tokens a cache that overflows forgets depends on how it was fed.
        limit = None if hasattr(self._model, "make_cache") else self._max_kv_size
        fits = limit is None or length <= limit
        if not shared or not fits or not self._drop(held - shared):
            self.clear()
            return 0
        self.tokens = self.tokens[:shared]
        return shared

    def _held(self) -> int:
        """Tokens in the cache by its own count; 0 if its layers have none in common."""
        # State-space layers have no offset, and layers that go unused none but 0.
        offsets = {getattr(c, "offset", 0) for c in _flat(self.layers)} - {0}
        return offsets.pop() if len(offsets) == 1 else 0

    def _drop(self, count: int) -> bool:
        """Drops the last tokens, if the cache can."""
        if count == 0:
            return True
        if not all(isinstance(c, _CUTTABLE) for c in _flat(self.layers)):
            return False
        return trim_prompt_cache(self.layers, count) == count


def _flat(layers) -> Iterator:
    for c in layers:
        yield from _flat(c.caches) if isinstance(c, CacheList) else (c,)


def _common_prefix(a: list[int], b: list[int]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _thinking_field(tokenizer: TokenizerWrapper) -> str | None:
    """The field of a message that the chat template reads thinking from, if any."""
    source = tokenizer.chat_template
    if source is None or "reasoning_content" in str(source):
        # mlx-lm's own renderers, which are not templates, read this one too.
        return "reasoning_content"
    found = re.search(
        r"""\b(?:message|msg|m)(?:\.|\.get\(['"]|\[['"])(reasoning|thinking)\b""",
        str(source),
    )
    return found[1] if found else None
