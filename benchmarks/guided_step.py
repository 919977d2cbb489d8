"""The guided step by its parts, against one decoding step and against PyTorch.

The predictor has BERT-base size. Against a decoding step it is made for SmolLM2-135M;
against PyTorch (``pip install -e ".[bench]"``) for a 7B model, V = 152,064: a Hugging
Face BERT encoder, two linear heads over the vocabulary and
``torch.distributions.Gamma.cdf``, as published code evaluates them. PyTorch runs in a
process of its own: in one process its threads and those of our BLAS slow each other.
"""

import importlib.util
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import click
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

import timing
import workload
from mlx_budget import Predictor
from mlx_budget.method import candidates, gamma, kernels
from mlx_budget.method.guidance import length_to_log

LEFT = 500  # tokens of budget


class GuidedStep:
    """One guided step over random hidden states, and its parts."""

    def __init__(self, predictor: Predictor, temp: float):
        config = predictor.config
        shape = (1, config.model_layers + 1, config.model_width)
        mx.random.seed(1)
        self.predictor, self.temp = predictor, temp
        self.states = mx.random.normal(shape)
        # A few likely tokens and a long tail, as at the start of a paragraph.
        logits = 4 * mx.random.normal((1, config.vocab_size))
        self.logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self.encoding = predictor.encode(self.states)
        count = min(candidates.CANDIDATES, config.vocab_size)
        self.tokens = mx.argpartition(-self.logprobs, count, axis=-1)[:, :count]
        self.outputs = predictor.head_outputs(self.encoding, self.tokens)
        mx.eval(self.states, self.logprobs, self.encoding, self.tokens, self.outputs)
        self.sample = make_sampler(1.0 if temp else 0.0)
        self.full_steps = 0

    def encode(self) -> mx.array:
        """The encoder."""
        return self.predictor.encode(self.states)

    def heads(self) -> tuple[mx.array, mx.array]:
        """The rows of the heads for the candidates."""
        return self.predictor.head_outputs(self.encoding, self.tokens)

    def weights(self) -> mx.array:
        """The weights of the candidates."""
        thresholds = self.predictor.config.thresholds
        return kernels.log_weights(*self.outputs, LEFT, thresholds)

    def after_encoding(
        self, tolerance: float = candidates.DEFAULT_TOLERANCE
    ) -> mx.array:
        """Selection, heads, weights, bound: the guided distribution."""

        def log_weights(tokens: mx.array | None) -> mx.array:
            self.full_steps += tokens is None
            outputs = self.predictor.head_outputs(self.encoding, tokens)
            return kernels.log_weights(*outputs, LEFT, self.predictor.config.thresholds)

        return candidates.guided_logprobs(
            self.logprobs, log_weights, self.temp, tolerance, candidates.CANDIDATES
        )

    def check_candidates(self) -> None:
        """Raises if what was timed as candidates was the whole vocabulary."""
        if self.full_steps:
            raise RuntimeError("The candidates were not enough: lower --temp.")

    def whole(self) -> mx.array:
        """All of it, in order, as the sampler does it."""
        self.encoding = self.encode()
        return self.sample(self.after_encoding())


def against_decoding(folder: Path, size: str, temp: float, rounds: int) -> list[dict]:
    """The parts of a guided step as shares of one decoding step of SmolLM2."""
    model, _ = workload.load_smollm2(folder)
    args = model.args
    step = GuidedStep(
        workload.make_predictor(
            args.hidden_size, args.num_hidden_layers, args.vocab_size, size
        ),
        temp,
    )
    cache = make_prompt_cache(model)
    mx.eval(model(mx.arange(100)[None], cache=cache))

    def decode() -> mx.array:
        logits = model(mx.array([[5]]), cache=cache)
        for c in cache:
            c.trim(1)
        return mx.argmax(logits, axis=-1)

    guided = step.after_encoding()
    step.check_candidates()
    parts: dict[str, Callable] = {
        "decoding step": decode,
        "encoder": step.encode,
        "heads of the candidates": step.heads,
        "weights of the candidates": step.weights,
        "selection, heads, weights, bound": step.after_encoding,
        "the same over the whole vocabulary": lambda: step.after_encoding(0),
        "sampling": lambda: step.sample(guided),
        "guided step": step.whole,
    }
    seconds = timing.run_rounds(
        {name: timing.evaluate(make) for name, make in parts.items()}, rounds
    )
    return [
        {
            "part": name,
            "ms": 1000 * timing.median(seconds[name]),
            "of a decoding step": timing.ratio(seconds, name, "decoding step"),
        }
        for name in parts
    ]


def against_torch(temp: float, rounds: int) -> list[dict]:
    """Our parts against PyTorch's, at the sizes of a 7B model."""
    width, layers, vocab_size = 3584, 28, 152064
    step = GuidedStep(workload.make_predictor(width, layers, vocab_size), temp)
    step.after_encoding()
    step.check_candidates()
    full = mx.random.uniform(20, 200, (1, vocab_size))
    rate = mx.random.uniform(5, 30, (1, vocab_size))
    mx.eval(full, rate)
    ours = {
        "encoder": timing.evaluate(step.encode),
        "heads and weights": timing.evaluate(step.after_encoding),
        "Gamma CDF of the vocabulary": timing.evaluate(
            lambda: gamma.cdf(length_to_log(LEFT), full, rate)
        ),
    }
    with TorchProcess(width, layers, vocab_size) as theirs:
        variants = {}
        for name, make in ours.items():
            variants[f"ours: {name}"] = settled(make)
            variants[f"PyTorch: {name}"] = settled(theirs.part(name))
        seconds = timing.run_rounds(variants, rounds)
    return [
        {
            "part": name,
            "ours, ms": 1000 * timing.median(seconds[f"ours: {name}"]),
            "PyTorch, ms": 1000 * timing.median(seconds[f"PyTorch: {name}"]),
            "ours : PyTorch": timing.ratio(
                seconds, f"ours: {name}", f"PyTorch: {name}"
            ),
        }
        for name in ours
    ]


def settled(part: Callable[[], float | None]) -> Callable[[], float]:
    """A variant timed when the threads of the one before it have gone to sleep."""

    def run() -> float:
        time.sleep(0.2)
        start = time.perf_counter()
        own = part()
        return time.perf_counter() - start if own is None else own

    return run


class TorchProcess:
    """PyTorch's parts, timed where they run."""

    def __init__(self, *sizes: int):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve_torch, args=(other, sizes))

    def __enter__(self) -> "TorchProcess":
        # PyTorch brings its own BLAS.
        preload = os.environ.pop("LD_PRELOAD", None)
        self._process.start()
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload
        return self

    def __exit__(self, *_) -> None:
        self._connection.send(None)
        self._process.join()

    def part(self, name: str) -> Callable[[], float]:
        """A variant for `timing.run_rounds`."""

        def run() -> float:
            self._connection.send(name)
            return self._connection.recv()

        return run


def _serve_torch(connection: Connection, sizes: tuple[int, int, int]) -> None:
    parts = _torch_parts(*sizes)
    while (name := connection.recv()) is not None:
        start = time.perf_counter()
        parts[name]()
        connection.send(time.perf_counter() - start)


def _torch_parts(width: int, layers: int, vocab_size: int) -> dict[str, Callable]:
    import torch
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    config = BertConfig(attn_implementation="sdpa")
    encoder, projection = BertEncoder(config).eval(), torch.nn.Linear(width, 768)
    heads = [torch.nn.Linear(768, vocab_size, bias=False) for _ in range(2)]
    states = torch.randn(1, layers + 2, width)
    encoding = torch.randn(1, 768)
    concentration = torch.rand(1, vocab_size) * 180 + 20
    rate = torch.rand(1, vocab_size) * 25 + 5
    x = torch.log1p(torch.tensor(float(LEFT)))

    def cdf(a, b) -> None:
        torch.distributions.Gamma(a, b).cdf(x)

    def heads_and_weights() -> None:
        a, b = (torch.nn.functional.softplus(head(encoding)) for head in heads)
        cdf(a + 1, b + 1)

    return {
        "encoder": lambda: _ignore(encoder(projection(states))),
        "heads and weights": heads_and_weights,
        "Gamma CDF of the vocabulary": lambda: cdf(concentration, rate),
    }


def _ignore(_) -> None:
    """Its time counts, its value does not."""


@click.command()
@click.option("--model", type=click.Path(path_type=Path), help="Folder of SmolLM2.")
@click.option("--size", default="base", show_default=True, help="Predictor size.")
@click.option("--temp", default=0.6, show_default=True)
@click.option("--rounds", default=31, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    model: Path | None, size: str, temp: float, rounds: int, output: Path | None
) -> None:
    """Times the guided step; against a decoding step if --model is given."""
    if model is not None:
        rows = against_decoding(model, size, temp, rounds)
        timing.report("A guided step by its parts", rows, output)
    elif importlib.util.find_spec("torch") is None:
        raise click.UsageError(
            'Give --model, or install PyTorch: pip install ".[bench]"'
        )
    else:
        timing.report("Against PyTorch", against_torch(temp, rounds), output)


if __name__ == "__main__":
    main()
