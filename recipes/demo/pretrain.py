"""Trains the demo's language model from scratch, in runs that can be stopped.

A small Qwen3 learns the replies to problems that are drawn anew for every batch, so
that it sees each about once. Knows the world, the architecture and the optimizer.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.qwen3 import Model, ModelArgs
from tokenizers import Tokenizer

from mlx_budget.engine.prompts import BUDGET_PROMPT
from mlx_budget.files.tensors import write_tensors
from mlx_budget.files.texts import write_json
from mlx_budget.train import checkpoints
from mlx_budget.train.schedules import make_schedule

from .chat import make_chat, write_prompt, write_reply
from .problems import draw_earlier, draw_trained
from .reasoning import FINAL, HABITS, Habits, end_of_first_result, write_thinking

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
_WARMUP = 200
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
            it, at a random place behind the first result. Only the answer that follows
            is learnt from these.
        earlier: Share of questions that come behind others of the same chat.
        habits: How to think.
        slip_weight: What a total that slipped counts, beside the other tokens: slips
            are shown often, so that the model learns to find them, and learnt rarely.
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


PRETRAINING = Stage(4500, 2e-3, seed=0, short_steps=1800, mean_steps=3800)
# In the end only terse lines slip, so that careful ones are the more reliable, and
# careful calculations turn terse more often, which leaves a way out as a budget ends.
CLOSING = Stage(
    1200,
    5e-4,
    seed=1,
    closed=0.5,
    earlier=0.25,
    habits=HABITS._replace(turn=0.16, doubt=0.0, careful_slip=0.0),
    slip_weight=0.12,
)


class Pool:
    """Training sequences, by number: the same whenever they are asked for.

    Args:
        tokenizer (Tokenizer): Of the demo.
        stage (Stage): What to draw.
    """

    def __init__(self, tokenizer: Tokenizer, stage: Stage):
        self._tokenizer = tokenizer
        self._stage = stage
        self._end = tokenizer.token_to_id("</think>")
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
            problem = draw_trained(rng)
            question = problem.question
            if rng.random() < _STATED:
                budget = rng.randint(10, 300)
                question = BUDGET_PROMPT.format(question=question, budget=budget)
            is_closed = self._stage.closed and rng.random() < self._stage.closed
            now = habits.sure() if is_closed else habits
            thinking = write_thinking(rng, problem, now)
            chat = make_chat(question, draw_earlier(rng, self._stage.earlier))
            prompt = self._encode(write_prompt(chat))
            reply = self._tokenizer.encode(write_reply(thinking.text, problem))
            ids = prompt + reply.ids
            weights = [0.0] * len(prompt)
            weights += _weigh(reply.offsets, thinking.slips, self._stage.slip_weight)
            if is_closed:
                known = thinking.text[: end_of_first_result(thinking.text)]
                start = len(prompt) + len(self._encode(known))
                ids, weights = self._close(rng, ids, start)
            if len(ids) <= MAX_LENGTH:
                sequences.append((ids, weights))
        sequences.sort(key=lambda s: len(s[0]))
        self._batches = [
            sequences[i : i + BATCH_SIZE] for i in range(0, len(sequences), BATCH_SIZE)
        ]
        rng.shuffle(self._batches)
        self._number = number

    def _close(
        self, rng: random.Random, ids: list[int], start: int
    ) -> tuple[list[int], list[float]]:
        """Thinking closed at or behind a place, of which the answer alone counts."""
        end = ids.index(self._end, start)
        closed = ids[: rng.randint(start, end)]
        if rng.random() < 0.5:
            closed += self._encode(f"\n{FINAL}\n")
        answer = len(ids) - end - 1
        return closed + ids[end:], [0.0] * (len(closed) + 1) + [1.0] * answer

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


def _weigh(
    offsets: list[tuple[int, int]],
    slips: tuple[tuple[int, int], ...],
    slip_weight: float,
) -> list[float]:
    """What each token of a reply counts, by the characters that it stands for."""
    return [
        slip_weight if any(a < end and start < b for a, b in slips) else 1.0
        for start, end in offsets
    ]


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
