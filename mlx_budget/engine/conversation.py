"""A conversation: its history, and a KV cache of what the model has read of it.

Knows chat templates and mlx-lm's prompt caches; nothing of terminals.
"""

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing

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
from .generate import BudgetResponse, make_tracker, stream_generate
from .prompts import encode_chat
from .settings import DEFAULT_HARD_STOP, AutoBudget, check_budget, check_enforceable
from .thinking import find_markers, split_reply

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
        thinking_start: str | None = None,
        thinking_end: str | None = None,
        **options,
    ):
        """Begins a chat.

        Args:
            model, tokenizer, predictor: As `mlx_budget.load` returns them.
            system_prompt, chat_template_config: As in `encode_chat`.
            max_kv_size (int, optional): Most tokens in the KV cache.
            thinking_start, thinking_end, options: As in `stream_generate`.

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
        self._custom = (thinking_start, thinking_end)
        self._markers = None
        if tokenizer.has_thinking or thinking_start or thinking_end:
            self._markers = find_markers(tokenizer, thinking_start, thinking_end)
        self._options = options
        self._cache = _ConversationCache(model, max_kv_size)
        self.system_prompt = system_prompt
        self.messages: list[dict] = []
        self.prompt_tokens = 0

    def reset(self) -> None:
        """Forgets the history, and the cache with it."""
        self.messages = []
        self._cache.clear()

    def check_budget(
        self, budget: int | str | AutoBudget | None
    ) -> int | AutoBudget | None:
        """The budget as `check_budget` gives it.

        Raises:
            ValueError: If it is no budget, or cannot be honoured by this model.
        """
        budget = check_budget(budget)
        if budget is not None:
            hard_stop = self._options.get("hard_stop", DEFAULT_HARD_STOP)
            check_enforceable(budget, self._predictor, hard_stop)
            find_markers(self._tokenizer, *self._custom)
        return budget

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
        runs: list[tuple[bool, str]] = []

        def stop_early(*_) -> None:
            if stopped():
                raise _Stopped

        responses = stream_generate(
            self._model,
            self._tokenizer,
            ids[held:],
            predictor=self._predictor,
            thinking_budget=thinking_budget,
            prompt_cache=self._cache.layers,
            prompt_progress_callback=stop_early,
            thinking_start=self._custom[0],
            thinking_end=self._custom[1],
            **self._options,
        )
        self._cache.tokens = list(ids)
        try:
            with closing(responses):
                for response in responses:
                    self._cache.tokens.append(response.token)
                    runs.append((response.is_thinking, response.text))
                    yield response
                    stop_early()
        except _Stopped:
            pass
        except BaseException:
            # A layer may have been in the middle of its work.
            self._cache.clear()
            raise
        message = self._message(runs, ids[-last:])
        if message is not None:
            self.messages = [*asked, message]

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

    def _message(self, runs: list[tuple[bool, str]], prompt: list[int]) -> dict | None:
        """A reply as a message of the history, or None if it has no answer.

        A template that names a field for thinking gets thinking and answer apart; any
        other gets them as they came, the opening marker included.
        """
        thinking, answer = split_reply(runs, self._markers)
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
        text = self._opening(prompt) + "".join(text for _, text in runs)
        return {"role": "assistant", "content": text}

    def _opening(self, prompt: list[int]) -> str:
        """How the prompt itself opens thinking, as some templates make it do."""
        tracker = make_tracker(self._tokenizer, *self._custom, prompt)
        if tracker is None or not tracker.thinking or not self._markers.start:
            return ""
        text = self._tokenizer.decode(prompt)
        begin = text.rfind(self._markers.start)
        return text[begin:] if begin >= 0 else self._markers.start


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
