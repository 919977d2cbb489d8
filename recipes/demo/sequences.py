"""What the demo's language model is trained on: sequences, drawn anew for every batch.

Whole replies, and thinking that is closed by force as a budget may close it. Knows the
world and the chat format; nothing of the model or how it is trained.
"""

import random
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer

from mlx_budget.engine.closing import WIND_DOWNS
from mlx_budget.engine.prompts import BUDGET_PROMPT

from .chat import SPECIAL, make_chat, write_prompt, write_reply
from .exchanges import Exchange, draw_earlier, draw_exchange
from .others import draw_system_prompt
from .reasoning import FINAL, HABITS, OPENINGS, Habits, Thinking, careful_totals

MAX_LENGTH = 448
BATCH_SIZE = 16
# Sequences are drawn for several batches at a time and sorted by length.
_POOL = 8
_SHORT_LOOK = 0.6
# How often a budget is stated behind the question, of any size: words to be read over.
_STATED = 0.03
# How often there is a system prompt.
SYSTEM = 0.15
# The sentence for the family of the demo's chat template.
_WIND_DOWN = next(w.text for w in WIND_DOWNS if w.family == "Qwen3")
# What a budget may put before the closing marker, and how often.
MESSAGES = (
    (f"\n{FINAL}\n", 0.2),
    (_WIND_DOWN, 0.15),
    ("\nTime is up.\n", 0.05),
    ("\n\nI have to answer now.\n", 0.05),
    ("\nStop.\n", 0.05),
)
# Of closed thinking, how often there is none at all, by the template's own switch or
# by a budget, and how often it ends in its first tokens.
_SWITCHED_OFF, _EMPTY, _FIRST = 0.12, 0.12, 0.2
_FIRST_TOKENS = 20
# Of stray tokens, how often they begin a line of thinking, which leads back to it most.
_LEADING = 0.5


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        steps: Updates.
        learning_rate: The highest.
        seed: Of the problems, of the thinking about them and of initial weights.
        short_steps: Updates at the beginning with short thinking, which teaches the
            same operations in fewer tokens.
        mean_steps: Updates at the beginning in which a batch of short replies counts as
            much as one of long ones. From then on every token counts the same, so that
            the model learns how long replies really are.
        closed: Share of replies whose thinking is closed early, as a budget may close
            it, anywhere: before there is a result the answer says that it is a guess.
            Only the answer is learnt from these.
        earlier: Share of questions that come behind others of the same chat.
        habits: How to think.
        slip_weight: What a total that slipped counts, beside the other tokens: slips
            are shown often, so that the model learns to find them, and learnt rarely.
        careful_weight: What the total of a careful line counts.
        strays: Share of answers behind closed thinking with a token in them that
            chance may draw: the answer goes on as if it were not there.
        finals: Share of closed replies that end by a final line. Its first token is
            put at the beginning of any line, as guidance may do it, and the rest of the
            line, the closing marker and the answer are learnt.
    """

    steps: int
    learning_rate: float
    seed: int
    short_steps: int = 0
    mean_steps: int = 0
    closed: float = 0.0
    earlier: float = 0.0
    habits: Habits = HABITS
    slip_weight: float = 0.2
    careful_weight: float = 1.0
    strays: float = 0.0
    finals: float = 0.0


def close(tokenizer: Tokenizer, thinking: list[int], message: str) -> list[int]:
    """Thinking that is closed by force, as `mlx_budget.engine.closing` does it.

    Args:
        tokenizer (Tokenizer): Of the demo.
        thinking (list): Token ids so far; none if the block is closed at once.
        message (str): What is put before the closing marker.

    Returns:
        list: Token ids, with the closing marker and the white space behind it.
    """
    is_line_ended = (message or tokenizer.decode(thinking)).endswith("\n")
    written = message if is_line_ended else f"{message}\n"
    end = tokenizer.encode(f"{written}</think>\n\n").ids
    return thinking + end


class Pool:
    """Training sequences, by number: the same whenever they are asked for.

    Args:
        tokenizer (Tokenizer): Of the demo.
        stage (Stage): What to draw.
    """

    def __init__(self, tokenizer: Tokenizer, stage: Stage):
        self._tokenizer = tokenizer
        self._stage = stage
        tokens = range(len(SPECIAL), tokenizer.get_vocab_size())
        # Not digits: the number of an answer must stay the one that it begins with.
        self._others = [i for i in tokens if not _holds_digit(tokenizer.decode([i]))]
        self._openings = [tokenizer.encode(word).ids[0] for word in OPENINGS]
        self._number = -1
        self._batches: list[list[tuple[list[int], list[float]]]] = []

    def batch(self, step: int) -> tuple[mx.array, mx.array]:
        """Sequences and weights of a step.

        Returns:
            tuple[mx.array, mx.array]: Tokens, shape (B, S), and what predicting each
            counts, shape (B, S): 1 in the reply, less where it slips, 0 elsewhere.
        """
        number, place = divmod(step, _POOL)
        if number != self._number:
            habits = self._stage.habits
            if step < self._stage.short_steps:
                habits = habits._replace(look=_SHORT_LOOK)
            self._draw(number, habits)
        sequences = self._batches[place]
        length = max(len(ids) for ids, _ in sequences)
        length = -(-length // 32) * 32  # few shapes
        tokens = np.zeros((len(sequences), length), np.int32)
        wanted = np.zeros(tokens.shape, np.float32)
        for row, (ids, weights) in enumerate(sequences):
            tokens[row, : len(ids)] = ids
            wanted[row, : len(ids)] = weights
        return mx.array(tokens), mx.array(wanted)

    def _draw(self, number: int, habits: Habits) -> None:
        rng = random.Random(f"{self._stage.seed} {number}")
        sequences = []
        while len(sequences) < BATCH_SIZE * _POOL:
            is_closed = rng.random() < self._stage.closed
            exchange = draw_exchange(rng, habits.sure() if is_closed else habits)
            question = exchange.question
            if rng.random() < _STATED:
                budget = rng.randint(1, 300)
                question = BUDGET_PROMPT.format(question=question, budget=budget)
            earlier = draw_earlier(rng, self._stage.earlier)
            chat = make_chat(question, earlier, draw_system_prompt(rng, SYSTEM))
            write = self._closed if is_closed else self._whole
            ids, weights = write(rng, chat, exchange)
            if len(ids) <= MAX_LENGTH:
                sequences.append((ids, weights))
        sequences.sort(key=lambda s: len(s[0]))
        self._batches = [
            sequences[i : i + BATCH_SIZE] for i in range(0, len(sequences), BATCH_SIZE)
        ]
        rng.shuffle(self._batches)
        self._number = number

    def _whole(
        self, rng: random.Random, chat: list[dict], exchange: Exchange
    ) -> tuple[list[int], list[float]]:
        """A reply that ends its thinking itself, of which all is learnt."""
        prompt = self._encode(write_prompt(chat))
        reply = self._tokenizer.encode(write_reply(exchange))
        weights = self._weigh(exchange.thinking, reply.offsets)
        return prompt + reply.ids, [0.0] * len(prompt) + weights

    def _closed(
        self, rng: random.Random, chat: list[dict], exchange: Exchange
    ) -> tuple[list[int], list[float]]:
        """Thinking closed somewhere by force, of which the answer alone is learnt."""
        if self._stage.finals and rng.random() < self._stage.finals:
            return self._ended(rng, chat, exchange)
        kind = rng.random()
        if kind < _SWITCHED_OFF:
            read = self._encode(write_prompt(chat, thinks=False))
            return self._answered(rng, read, exchange.guess)
        read = self._encode(write_prompt(chat))
        thinking = self._tokenizer.encode(exchange.thinking.text)
        count = len(thinking.ids)
        if kind < _SWITCHED_OFF + _EMPTY:
            place = 0
        elif kind < _SWITCHED_OFF + _EMPTY + _FIRST:
            place = rng.randint(0, min(_FIRST_TOKENS, count))
        else:
            place = rng.randint(0, count)
        seen = thinking.offsets[place - 1][1] if place else 0
        read += close(self._tokenizer, thinking.ids[:place], self._message(rng))
        return self._answered(rng, read, _said(exchange, seen))

    def _ended(
        self, rng: random.Random, chat: list[dict], exchange: Exchange
    ) -> tuple[list[int], list[float]]:
        """Thinking that ends by a final line at the beginning of any of its lines."""
        text = exchange.thinking.text
        starts = [0] + [i for i, sign in enumerate(text, 1) if sign == "\n"][:-1]
        seen = rng.choice(starts)
        read = self._encode(write_prompt(chat)) + self._encode(text[:seen])
        ended = f"{FINAL}\n</think>\n\n{_said(exchange, seen)}<|im_end|>"
        opened, *learnt = self._encode(ended)
        read.append(opened)
        return read + learnt, [0.0] * len(read) + [1.0] * len(learnt)

    def _answered(
        self, rng: random.Random, read: list[int], answer: str
    ) -> tuple[list[int], list[float]]:
        learnt = self._encode(f"{answer}<|im_end|>")
        weights = [1.0] * len(learnt)
        if self._stage.strays and rng.random() < self._stage.strays:
            place = rng.randrange(len(learnt))
            leads = rng.random() < _LEADING
            learnt.insert(place, rng.choice(self._openings if leads else self._others))
            weights.insert(place, 0.0)
        return read + learnt, [0.0] * len(read) + weights

    def _weigh(self, thinking: Thinking, offsets: list[tuple[int, int]]) -> list[float]:
        """What each token of a reply counts, by the characters that it stands for."""
        parts = (
            (careful_totals(thinking.text), self._stage.careful_weight),
            (thinking.slips, self._stage.slip_weight),
        )
        weights = [1.0] * len(offsets)
        for places, weight in parts:
            for i, (start, end) in enumerate(offsets):
                if any(a < end and start < b for a, b in places):
                    weights[i] = weight
        return weights

    def _message(self, rng: random.Random) -> str:
        """What a budget puts before the closing marker: mostly nothing."""
        place = rng.random()
        for message, share in MESSAGES:
            if (place := place - share) < 0:
                return message
        return ""

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


def _said(exchange: Exchange, seen: int) -> str:
    """What is answered behind so many characters of thinking."""
    return exchange.answer if seen >= exchange.known else exchange.guess


def _holds_digit(text: str) -> bool:
    return any(sign.isdigit() for sign in text)
