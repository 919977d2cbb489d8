"""A conversation: its history, and a KV cache of what the model has read of it.

Knows chat templates, and when to read, keep and go back; nothing of terminals, nor of
how a cache does it.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method.predictor import Predictor
from ..ranks import mirrored, share
from .budgets import BudgetLike
from .caches import READING, ConversationCache, check_quantisable, common_prefix
from .context import context_length
from .fields import check_limit, keywords_of, take
from .follower import ReplyFollower
from .generate import BudgetResponse, stream_generate
from .messages import Chat, Message
from .prompts import encode_chat
from .sampler import check_enforceable
from .settings import (
    MAX_SEED,
    Budget,
    PromptOptions,
    Sampling,
    ThinkingBudget,
    check_budget,
)
from .template import ask_template
from .thinking import find_markers, markers_of
from .turns import Turn, TurnWriter


def check_chat(tokenizer: TokenizerWrapper) -> None:
    """Raises a ValueError if a model cannot chat."""
    if not tokenizer.has_chat_template:
        raise ValueError(
            "The model has no chat template, so it cannot chat: `mlx-budget generate` "
            "takes plain prompts."
        )


class _Stopped(Exception):
    """The reply shall end although its prompt is still being read."""


def _never() -> bool:
    return False


class Conversation:
    """The turns of a chat, with a cache of what the model has read of them.

    At each turn the chat template renders the whole conversation, so that thinking of
    earlier turns is left out where the template leaves it out. The cache goes back to
    what it shares with that, and only the rest is read: a reply is the one that the
    whole conversation gives from scratch.

    Memory: one KV cache. Layers that cannot be cut, state-space layers and sliding
    windows that have overflowed, are copied at two places of each prompt, so that they
    can go back there: where the question begins, if the turn is forgotten, and where
    the next turn's prompt is expected to go on otherwise, if it is kept. That is up to
    three times the states and windows; a full KV cache is never copied.

    A turn enters the history when it has an answer, were it a stopped one; a turn whose
    thinking never led to one leaves nothing behind.

    Attributes:
        turns: The history.
        asked: Turns that were asked for, forgotten ones too: the seed counts them.
        system_prompt: Put before the history, if any.
        prompt_tokens: Tokens of the last turn's whole prompt, cached ones included.
        switch: The arguments with which the template did what the budget of the last
            turn asks, see `ask_template`; None where there are none.
    """

    is_on_every_rank = True

    @mirrored()
    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        predictor: Predictor | bool | None = None,
        *,
        system_prompt: str | None = None,
        chat_template_config: dict[str, Any] | None = None,
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
            ValueError: If the model has no chat template, the markers are bad, or its
                KV cache cannot be quantised as ``kv_bits`` asks.
        """
        check_chat(tokenizer)
        self._model = model
        self._tokenizer = tokenizer
        self._predictor = predictor
        self._template_config = chat_template_config or {}
        self._thinking = take(ThinkingBudget, options)
        self._sampling = take(Sampling, options)
        self._processors = options.pop("logits_processors", None) or []
        self._reading = {name: options[name] for name in READING if name in options}
        self._loop = options
        self._writer = TurnWriter(tokenizer, markers_of(tokenizer, self._thinking))
        check_quantisable(model, {**options, "max_kv_size": max_kv_size}, tokens=0)
        self._cache = ConversationCache(model, max_kv_size)
        self._most_tokens = context_length(model, tokenizer, max_kv_size)
        self.system_prompt = system_prompt
        self.turns: list[Turn] = []
        self.asked = 0
        self.prompt_tokens = 0
        self.switch: dict[str, Any] | None = None

    @property
    def messages(self) -> Chat:
        """The history, as messages for the chat template."""
        return [m for turn in self.turns for m in self._writer.messages_of(turn)]

    @property
    def options(self) -> dict[str, Any]:
        """What was asked of all replies, by keyword; not their budget."""
        keywords = keywords_of(self._thinking) | keywords_of(self._sampling)
        del keywords["thinking_budget"]
        keywords["chat_template_config"] = self._template_config
        return keywords | {"max_tokens": self._loop.get("max_tokens")}

    @property
    def read_again(self) -> int:
        """Tokens of the last turn's prompt that an earlier turn had read as well."""
        return self._cache.read_again

    @property
    def reason(self) -> str:
        """Why they had to be read again; empty if there are none."""
        return self._cache.reason if self.read_again else ""

    @mirrored()
    def reset(self) -> None:
        """Forgets the history, and the cache with it."""
        self.turns = []
        self.asked = 0
        self._cache.clear()

    def go_on_from(
        self,
        turns: list[Turn],
        asked: int,
        system_prompt: str | None,
        options: dict[str, Any],
    ) -> None:
        """Takes another history in place of its own.

        What the cache has read of it is not read again.

        Args:
            turns (list): The history.
            asked (int): Turns that were asked for.
            system_prompt (str, optional): Put before it.
            options (dict): As `options` gives them; what is left out has its default.

        Raises:
            ValueError: If an option is invalid or unknown, or the chat template cannot
                render the history. All stays as it was.
        """
        rest = dict(options)
        thinking, sampling = take(ThinkingBudget, rest), take(Sampling, rest)
        template_config = rest.pop("chat_template_config", None) or {}
        if not isinstance(template_config, dict):
            raise ValueError("chat_template_config must be an object.")
        max_tokens = check_limit(rest.pop("max_tokens", None))
        if rest:
            raise ValueError(f"there is no option {next(iter(rest))!r}.")
        writer = TurnWriter(self._tokenizer, markers_of(self._tokenizer, thinking))
        messages = [m for turn in turns for m in writer.messages_of(turn)]
        if messages:
            encode_chat(
                self._tokenizer,
                [*messages, {"role": "user", "content": "x"}],
                system_prompt=system_prompt,
                chat_template_config=template_config,
                most_tokens=self._most_tokens,
            )
        self.turns, self.asked, self.system_prompt = turns, asked, system_prompt
        self._thinking, self._sampling, self._writer = thinking, sampling, writer
        self._template_config = template_config
        self._loop["max_tokens"] = max_tokens

    def check_budget(self, budget: BudgetLike) -> Budget:
        """The budget as `mlx_budget.engine.settings.check_budget` gives it.

        Raises:
            ValueError: If it is no budget, or cannot be honoured by this model.
        """
        thinking = replace(self._thinking, tokens=check_budget(budget))
        if thinking.is_steered:
            check_enforceable(thinking, self._predictor)
            find_markers(self._tokenizer, thinking.start, thinking.end)
        return thinking.tokens

    @mirrored(stopped=lambda: _never)
    def ask(
        self,
        question: str,
        thinking_budget: BudgetLike = None,
        stopped: Callable[[], bool] = _never,
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
        self.system_prompt = share(self.system_prompt, "the system prompt")
        budget = self.check_budget(thinking_budget)
        self.switch = self._switch_for(budget)
        asked = [*self.messages, {"role": "user", "content": question}]
        ids, last = self._encode(asked)
        self.prompt_tokens = len(ids)
        sampling = self._sampling_of_turn()
        cache, said = self._cache, list[int]()
        reply: ReplyFollower | None = None
        held = 0

        def stop_early(*_: Any) -> None:
            if share(stopped(), "whether the reply is stopped"):
                raise _Stopped

        def note_progress(done: int, total: int) -> None:
            # With the end of the prompt the first token of the reply is read as well.
            if done < total:
                cache.tokens = ids[: held + done]
                stop_early()

        try:
            begin = held = cache.cut_to(ids)
            clock = time.perf_counter()
            parting = self._parting(asked, ids, last)
            for position in parting:
                if held < position < len(ids):
                    cache.read(ids[:position], stop_early, **self._reading)
                    held = position
                if held == position:
                    cache.keep(len(ids))
            seconds = time.perf_counter() - clock
            responses = stream_generate(
                self._model,
                self._tokenizer,
                ids,
                predictor=self._predictor,
                prompt_cache=cache.layers,
                cached_tokens=held,
                prompt_progress_callback=note_progress,
                logits_processors=self._processors_of(ids, held, len(ids) in parting),
                **keywords_of(replace(self._thinking, tokens=budget)),
                **keywords_of(sampling),
                **self._loop,
            )
            with closing(responses):
                for response in responses:
                    said.append(response.token)
                    reply = response.reply
                    cache.keep_windows()
                    _add_to_prompt(response, held - begin, seconds)
                    yield response
                    stop_early()
        except _Stopped:
            pass
        except BaseException:
            cache.give_up()
            raise
        if reply is not None:
            # What may be the beginning of a marker is read before it is yielded.
            cache.tokens = [*ids, *said, *reply.tokens[len(said) :]]
        turn = reply and self._writer.turn_of(question, reply, ids[-last:])
        if turn:
            turn = replace(
                turn,
                thinking_budget=response.thinking_budget,
                thinking_tokens=response.thinking_tokens,
                closed_by=response.closed_by,
            )
            self.turns = [*self.turns, turn]

    def _sampling_of_turn(self) -> Sampling:
        turn, self.asked = self.asked, self.asked + 1
        if (seed := self._sampling.seed) is None:
            return self._sampling
        return replace(self._sampling, seed=(seed + turn) % (MAX_SEED + 1))

    def _switch_for(self, budget: Budget) -> dict[str, Any] | None:
        thinking = replace(self._thinking, tokens=budget)
        template = PromptOptions(chat_template_config=self._template_config)
        return ask_template(self._tokenizer, thinking, template)[1]

    def _encode(self, messages: Chat) -> tuple[list[int], int]:
        """The prompt, and how many of its tokens come from the last message on."""
        ids = self._render(messages)
        try:
            last = self._render(messages, suffix_only=True)
        except ValueError:  # the template does not write messages as they are
            return ids, len(ids)
        return ids, min(max(len(last), 1), len(ids))

    def _render(self, messages: Chat, suffix_only: bool = False) -> list[int]:
        return encode_chat(
            self._tokenizer,
            messages,
            system_prompt=self.system_prompt,
            chat_template_config=self._template_config | (self.switch or {}),
            suffix_only=suffix_only,
            most_tokens=self._most_tokens,
        )

    def _parting(self, asked: Chat, ids: list[int], last: int) -> list[int]:
        """Where the next prompt may part from this one, in tokens; if that matters.

        If this turn is forgotten, that is where its question begins; if it is kept,
        where the template writes its reply otherwise than the model, which begins with
        the thinking that a template may leave out. Other texts show where that is.
        """
        if not self._cache.needs_copies(len(ids)):
            return []
        text = asked[-1]["content"].lstrip()
        other = {"role": "user", "content": "y" if text.startswith("x") else "x"}
        replies = self._writer.likely_replies(ids[-last:])

        def shared_with(*messages: Message) -> int:
            try:
                return common_prefix(ids, self._render(list(messages)))
            except ValueError:  # of a template that takes no such conversation
                return 0

        forgotten = shared_with(*asked[:-1], other)
        kept = min(shared_with(*asked, reply, other) for reply in replies)
        return sorted({forgotten, kept} - {0})

    def _processors_of(
        self, ids: list[int], held: int, keeps_at_end: bool
    ) -> list[Callable]:
        """The logits processors of a turn, which see its whole prompt.

        One more keeps the cache when all of the prompt is read and nothing else.
        """
        head = mx.array(ids[:held], dtype=mx.uint32)

        def with_head(
            process: Callable, tokens: mx.array, logits: mx.array
        ) -> mx.array:
            return process(mx.concatenate([head, tokens]), logits)

        processors: list[Callable] = [partial(with_head, p) for p in self._processors]

        def keep_once(tokens: mx.array, logits: mx.array) -> mx.array:
            processors.remove(keep_once)
            self._cache.tokens = list(ids)
            self._cache.keep(len(ids))
            return logits

        if keeps_at_end:
            processors.append(keep_once)
        return processors


def _add_to_prompt(response: BudgetResponse, tokens: int, seconds: float) -> None:
    """Counts what was read of the prompt before the response's own loop read on."""
    if tokens:
        seconds += response.prompt_tokens / response.prompt_tps
        response.prompt_tokens += tokens
        response.prompt_tps = response.prompt_tokens / seconds
