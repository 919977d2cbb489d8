"""Tokens/s with guidance against plain mlx-lm on several ranks, and what a step moves.

Run it on all ranks::

    mlx.launch -n 2 -- python benchmarks/several_machines.py [--pipeline]

Model and predictor have random weights, which cost the same. Both variants generate the
same tokens, with a newline (a guided step) as every so-manieth, and take turns. Bytes
are those that each rank sends in our own gathers; mlx-lm's of the forward pass come on
top, in every step.
"""

from pathlib import Path

import click
import mlx.core as mx
import mlx_lm
from mlx_lm.generate import generation_stream
from mlx_lm.models.qwen2 import Model, ModelArgs
from mlx_lm.utils import load_tokenizer

import timing
import workload
from mlx_budget import demo, stream_generate
from mlx_budget.engine import stages
from mlx_budget.models.splitting import split
from mlx_budget.ranks.joining import join

TEXT = "Think about the sum of 17 and 26, step by step:"


class Gathered:
    """Counts what this rank sends to have hidden states gathered."""

    def __init__(self) -> None:
        self.bytes = self.gathers = 0
        gather = stages.Stages.gather

        def counted(of: stages.Stages, inputs: mx.array, final: mx.array) -> mx.array:
            rows = inputs.nbytes // inputs.shape[1]
            self.bytes += rows * max(of.counts)
            self.gathers += 1
            return gather(of, inputs, final)

        stages.Stages.gather = counted


def make_model(width: int, layers: int, vocab_size: int) -> Model:
    """A Qwen2 with random weights, the same on every rank."""
    mx.random.seed(1)
    sizes = {
        "model_type": "qwen2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * width,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "vocab_size": vocab_size,
    }
    fixed = {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": True}
    model = Model(ModelArgs(**sizes, **fixed))
    mx.eval(model.parameters())
    return model.eval()


@click.command()
@click.option("--pipeline", is_flag=True, help="Layers for each rank, not parts.")
@click.option("--width", default=512, show_default=True, help="D.")
@click.option("--layers", default=8, show_default=True, help="N.")
@click.option("--size", default="mini", show_default=True, help="Of the predictor.")
@click.option("--every", default=30, show_default=True, help="Tokens to a newline.")
@click.option("--tokens", default=60, show_default=True, help="Of each reply.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--json", "output", type=click.Path(dir_okay=False, path_type=Path))
def main(
    pipeline: bool,
    width: int,
    layers: int,
    size: str,
    every: int,
    tokens: int,
    rounds: int,
    output: Path | None,
) -> None:
    """Time guidance on several ranks."""
    team = join(is_led=False)
    if team is None:
        raise click.ClickException("Start it with mlx.launch, on several ranks.")
    tokenizer = load_tokenizer(demo.FOLDER)
    model = make_model(width, layers, len(tokenizer.get_vocab()))
    vocab_size = model.args.vocab_size
    predictor = workload.make_predictor(width, layers, vocab_size, size)
    split("the model", model, mx.distributed.init(), pipeline)
    if pipeline:
        counts = team.gather(len(model.layers), "layers")
        stages.note_stages(model, counts, team.rank)
    mx.eval(model.parameters())
    gathered = Gathered()
    prompt = tokenizer.encode(TEXT)
    newlines = workload.NewlineEvery(tokenizer, vocab_size, every, len(prompt))
    shared = {"max_tokens": tokens, "logits_processors": [newlines]}

    def plain() -> None:
        for _ in mlx_lm.stream_generate(model, tokenizer, prompt, **shared):
            pass
        mx.synchronize(generation_stream)

    def guided() -> None:
        budget = {"thinking_budget": 10**6, "predictor": predictor, **workload.MARKERS}
        for _ in stream_generate(model, tokenizer, prompt, **budget, **shared):
            pass

    seconds = timing.run_rounds({"plain": plain, "guided": guided}, rounds)
    if team.leads:
        ratio = timing.ratio(seconds, "plain", "guided")
        row = {
            "ranks": team.size,
            "split": "layers" if pipeline else "every layer",
            "plain, tokens/s": tokens / timing.median(seconds["plain"]),
            "guided, tokens/s": tokens / timing.median(seconds["guided"]),
            "guided over plain": ratio,
            "bytes from a rank at a guided step": gathered.bytes
            // max(gathered.gathers, 1),
        }
        title = f"D {width}, N {layers}, a newline every {every} tokens"
        timing.report(title, [row], output)
    team.leave()


if __name__ == "__main__":
    main()
