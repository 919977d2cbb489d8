"""Trains the demo's language model from scratch, in runs that can be stopped.

A small Qwen3 learns the replies to problems that are drawn anew for every batch, so
that it sees each about once. Knows the world, the architecture and the optimizer.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.qwen3 import Model, ModelArgs
from tokenizers import Tokenizer

from mlx_budget.engine.closing import WIND_DOWNS
from mlx_budget.engine.prompts import BUDGET_PROMPT
from mlx_budget.files.tensors import write_tensors
from mlx_budget.files.texts import write_json
from mlx_budget.train import checkpoints
from mlx_budget.train.schedules import make_schedule

from .chat import SPECIAL, make_chat, write_prompt, write_reply
from .exchanges import Exchange, draw_earlier, draw_exchange
from .others import draw_system_prompt
from .reasoning import FINAL, HABITS, OPENINGS, Habits, Thinking, careful_totals

SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "intermediate_size": 576,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
MAX_LENGTH = 448
BATCH_SIZE = 16
# Sequences are drawn for several batches at a time and sorted by length.
_POOL = 8
_SHORT_LOOK = 0.6
_MEAN_TOKENS = 160
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
_WARMUP = 200
# MLX reads this once, at its first evaluation. With its default, 20, it hands out one
# half of a batch before the other, and they do not run at the same time.
os.environ.setdefault("MLX_BFS_MAX_WIDTH", "200")
_LARGEST_GRADIENT = 1.0


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


PRETRAINING = Stage(4500, 2e-3, seed=0, short_steps=1800, mean_steps=3800)
# In the end only terse lines slip, so that careful ones are the more reliable, and
# careful calculations turn terse more often, which leaves a way out as a budget ends.
CLOSING = Stage(
    2500,
    5e-4,
    seed=1,
    closed=0.3,
    earlier=0.35,
    habits=HABITS._replace(turn=0.16, doubt=0.0, careful_slip=0.0),
    slip_weight=0.12,
)
# A stray token in an answer led back to calculating, one time in some thousand, and a
# final line that guidance opened was not one that the model would have written there.
# What slips in terse lines is not to be caught by careful ones.
STEADYING = replace(
    CLOSING,
    steps=600,
    learning_rate=3e-4,
    seed=2,
    slip_weight=0.2,
    careful_weight=4.0,
    closed=0.4,
    strays=0.7,
    finals=0.2,
)


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


def pretrain(
    folder: Path,
    work: Path,
    stage: Stage = PRETRAINING,
    weights: Path | None = None,
    save_every: int = 100,
    progress: Callable[[int, float, float], None] = lambda *_: None,
) -> None:
    """Trains the model, from its newest checkpoint on, and writes its folder.

    Args:
        folder (Path): With the tokenizer; gets weights and configuration.
        work (Path): For checkpoints.
        stage (Stage): How to train.
        weights (Path, optional): Where to begin; new ones by default.
        save_every (int): Updates between checkpoints.
        progress (Callable): Called with updates made, loss in nats, and tokens/s.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = {**SHAPE, "vocab_size": tokenizer.get_vocab_size()}
    mx.random.seed(stage.seed)
    model = Model(ModelArgs.from_dict(config))
    if weights is not None:
        model.load_weights(str(weights))
    steps = stage.steps
    warmup = min(_WARMUP, steps // 10)
    schedule = make_schedule("rex", stage.learning_rate, steps, warmup)
    optimizer = optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=0.1)
    optimizer.init(model.trainable_parameters())
    work.mkdir(parents=True, exist_ok=True)
    step = 0
    if (found := checkpoints.load_newest(work)) is not None:
        step, state = found
        model.update(state["model"])
        optimizer.state = state["optimizer"]

    def loss_of(tokens: mx.array, wanted: mx.array) -> mx.array:
        logits = model(tokens[:, :-1])
        losses = nn.losses.cross_entropy(logits, tokens[:, 1:])
        return (losses * wanted[:, 1:]).sum()

    loss_and_gradients = nn.value_and_grad(model, loss_of)
    # Halves of a batch on streams of their own: on the CPU, a stream is a thread.
    streams = [mx.new_stream(mx.default_device()) for _ in range(2)]

    def update(step: int, tokens: mx.array, wanted: mx.array) -> mx.array:
        parts = []
        for half, stream in enumerate(streams):
            with mx.stream(stream):
                parts.append(loss_and_gradients(tokens[half::2], wanted[half::2]))
        mx.eval(parts)
        predicted = wanted[:, 1:].sum()
        counted = predicted if step < stage.mean_steps else BATCH_SIZE * _MEAN_TOKENS
        losses, gradients = zip(*parts, strict=True)
        gradients = tree_map(lambda *each: sum(each) / counted, *gradients)
        gradients, _ = optim.clip_grad_norm(gradients, _LARGEST_GRADIENT)
        optimizer.update(model, gradients)
        return sum(losses) / predicted

    pool = Pool(tokenizer, stage)
    while step < steps:
        start = time.perf_counter()
        tokens, wanted = pool.batch(step)
        loss = update(step, tokens, wanted)
        mx.eval(model.parameters(), optimizer.state, loss)
        step += 1
        rate = tokens.size / (time.perf_counter() - start)
        progress(step, loss.item(), rate)
        if step % save_every == 0 or step == steps:
            state = {"model": model.parameters(), "optimizer": optimizer.state}
            checkpoints.save(work, step, state)
    write_model(folder, model, config, tokenizer)


def write_model(folder: Path, model: nn.Module, config: dict, tokenizer: Tokenizer):
    """Writes weights and configuration, as mlx-lm reads them."""
    config = {**config, "eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    save_weights(folder, model)
    write_json(folder / "config.json", config)


def save_weights(folder: Path, model: nn.Module) -> None:
    """Writes a model's weights under the name that mlx-lm looks for."""
    weights = dict(tree_flatten(model.parameters()))
    write_tensors(folder / "model.safetensors", weights)
