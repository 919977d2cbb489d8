"""Trains the demo's language model from scratch, in runs that can be stopped.

A small Qwen3 learns the replies to problems that are drawn anew for every batch, so
that it sees each about once. Knows the architecture, the stages and the optimizer.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.qwen3 import Model, ModelArgs
from tokenizers import Tokenizer

from mlx_budget.files.tensors import write_tensors
from mlx_budget.files.texts import write_json
from mlx_budget.train import checkpoints
from mlx_budget.train.schedules import make_schedule

from .reasoning import HABITS
from .sequences import BATCH_SIZE, Pool, Stage

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
_MEAN_TOKENS = 160
_WARMUP = 200
# MLX reads this once, at its first evaluation. With its default, 20, it hands out one
# half of a batch before the other, and they do not run at the same time.
os.environ.setdefault("MLX_BFS_MAX_WIDTH", "200")
_LARGEST_GRADIENT = 1.0

PRETRAINING = Stage(4500, 2e-3, seed=0, short_steps=1800, mean_steps=3800)
# In the end only terse lines slip, and the totals of careful ones count more, so that
# careful ones are the more reliable. Careful calculations turn terse more often, which
# leaves a way out as a budget ends, and results are looked at a little more often, so
# that thinking is as long as before.
CLOSING = Stage(
    2500,
    5e-4,
    seed=1,
    closed=0.3,
    earlier=0.35,
    habits=HABITS._replace(turn=0.25, look=0.72, doubt=0.0, careful_slip=0.0),
    slip_weight=0.12,
    careful_weight=4.0,
)
# A stray token in an answer led back to calculating, one time in some thousand, and a
# final line that guidance opened was not one that the model would have written there.
# With 600 updates, and slips that counted twice as much, terse lines lost a budget of
# 60 % more than two points.
STEADYING = replace(
    CLOSING,
    steps=1200,
    learning_rate=3e-4,
    seed=2,
    habits=CLOSING.habits._replace(look=0.75),
    slip_weight=0.1,
    closed=0.4,
    strays=0.7,
    finals=0.2,
)


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
