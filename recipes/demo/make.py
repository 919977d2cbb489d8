"""Makes the demo model end to end: tokenizer, model, traces, predictor, problems.

Run it with ``python -m recipes.demo.make all WORK``. It goes on where it was stopped
and puts the result into the package when all is done. Knows the order of the steps;
what they do is in the other modules and in the package's own tools.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import mlx_lm
from mlx_lm.utils import quantize_model, save_config

from mlx_budget.demo import FOLDER, PROBLEMS_FILE
from mlx_budget.files.texts import write_text
from mlx_budget.train import TrainOptions, train, write_traces

from .chat import make_chat, make_tokenizer
from .exchanges import draw_earlier, draw_exchange
from .others import draw_system_prompt
from .pretrain import CLOSING, PRETRAINING, Stage, pretrain, save_weights
from .problems import Problem, make_problem

Q_BITS, Q_GROUP_SIZE = 8, 64
TEST_PROBLEMS, TEST_SEED = 500, 2026
# How often a chat has begun before, and has a system prompt.
_EARLIER, _SYSTEM = CLOSING.earlier, 0.15
TRACE_PROBLEMS, TRACE_SEED, TRACE_TEMP = 4000, 1, 0.6
PREDICTOR = dict(
    width=128,
    layers=2,
    heads=4,
    intermediate=384,
    epochs=6,
    learning_rate=1e-3,
    batch_size=64,
    min_count=20,
    seed=0,
)
TIMES_FILE = "times.json"
_SHIPPED = ("*.json", "*.safetensors")


def make_demo(
    work: Path,
    stages: tuple[Stage, Stage] = (PRETRAINING, CLOSING),
    traces: int = TRACE_PROBLEMS,
) -> Path:
    """Makes the demo, or goes on with making it.

    Args:
        work (Path): Folder for all that is made on the way.
        stages (tuple): Of the training of the language model.
        traces (int): Questions whose replies the predictor is trained on.

    Returns:
        Path: The folder with model and predictor.
    """
    first_model, raw, model = work / "pretrained", work / "float32", work / "model"
    if not (raw / "config.json").exists():
        if not (first_model / "tokenizer_config.json").exists():
            with timed(work, "tokenizer"):
                make_tokenizer(first_model)
        raw.mkdir(parents=True, exist_ok=True)
        for file in first_model.glob("tokenizer*.json"):
            shutil.copy(file, raw)
        first, second = stages
        if not (first_model / "config.json").exists():
            with timed(work, "pretraining") as keep:
                steps = _shown(keep)
                pretrain(first_model, work / "pretraining", first, progress=steps)
        weights = first_model / "model.safetensors"
        with timed(work, "closing") as keep:
            steps = _shown(keep)
            pretrain(raw, work / "closing", second, weights, progress=steps)
    if not (raw / "predictor.safetensors").exists():
        train_predictor(raw, work, traces)
    with timed(work, "quantising"):
        quantise(raw, model)
    return model


@contextmanager
def timed(work: Path, stage: str) -> Iterator[Callable[..., None]]:
    """Adds the time that a stage takes to `TIMES_FILE`, that of parts of it as well.

    Gives what writes the time so far: called as the stage goes on, it leaves little to
    a kill.

    Args:
        work (Path): Folder of the file, a JSON object: for each stage its seconds, and
            those of the processor, of all its cores together.
        stage (str): Name of the stage.
    """
    file = work / TIMES_FILE
    times = json.loads(file.read_text()) if file.exists() else {}
    before = times.get(stage, {"seconds": 0.0, "processor_seconds": 0.0})
    begin = time.perf_counter(), time.process_time()

    def keep(*_: object) -> None:
        spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
        now = {
            k: round(v + s, 1) for (k, v), s in zip(before.items(), spent, strict=True)
        }
        work.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**times, stage: now}, indent=2) + "\n")

    try:
        yield keep
    finally:
        keep()


def quantise(source: Path, output: Path) -> None:
    """Writes a folder with the model of another in 8 bits, and its predictor."""
    model, _, config = mlx_lm.load(str(source), return_config=True)
    model, config = quantize_model(model, config, Q_GROUP_SIZE, Q_BITS)
    output.mkdir(parents=True, exist_ok=True)
    for pattern in ("tokenizer*.json", "predictor*"):
        for file in source.glob(pattern):
            shutil.copy(file, output)
    save_weights(output, model)
    save_config(config, output / "config.json")


def train_predictor(model: Path, work: Path, count: int) -> None:
    """Trains the predictor on the model's own replies to problems of training."""
    loaded, tokenizer = mlx_lm.load(str(model))
    rng = random.Random(TRACE_SEED)
    chats = []
    for _ in range(count):
        question, earlier = draw_exchange(rng).question, draw_earlier(rng, _EARLIER)
        chats.append(make_chat(question, earlier, draw_system_prompt(rng, _SYSTEM)))
    traces = work / "traces.jsonl"
    with timed(work, "traces") as keep:
        write_traces(
            loaded,
            tokenizer,
            chats,
            traces,
            temp=TRACE_TEMP,
            seed=TRACE_SEED,
            batch_size=32,
            max_tokens=1024,
            model_name="demo",
            progress=keep,
        )
    made = work / "predictor"
    if not (made / "predictor_config.json").exists():
        resume = (made / "training").exists()
        options = TrainOptions(
            str(model), str(traces), made, resume=resume, **PREDICTOR
        )
        with timed(work, "predictor") as keep:
            train(options, progress=keep)
    for name in ("predictor_config.json", "predictor.safetensors"):
        shutil.copy(made / name, model)


def draw_problems(count: int = TEST_PROBLEMS, seed: int = TEST_SEED) -> list[Problem]:
    """Problems whose chains are never trained on, no chain twice, half of them stories.

    Args:
        count (int): How many.
        seed (int): Of the draw.
    """
    rng, problems, chains = random.Random(seed), [], set()
    while len(problems) < count:
        problem = make_problem(rng, True, is_story=len(problems) % 2 == 1)
        if problem.chain not in chains:
            chains.add(problem.chain)
            problems.append(problem)
    return problems


def write_problems(file: Path, problems: list[Problem]) -> None:
    """Writes problems as JSON lines of `id`, `question` and `answer`."""
    rows = (
        {"id": str(i), "question": p.question, "answer": str(p.answer)}
        for i, p in enumerate(problems)
    )
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def install(model: Path) -> None:
    """Puts what was made into the package."""
    FOLDER.mkdir(exist_ok=True)
    for pattern in _SHIPPED:
        for file in model.glob(pattern):
            shutil.copy(file, FOLDER)
    write_problems(PROBLEMS_FILE, draw_problems())


def _shown(keep: Callable[[], None]) -> Callable[[int, float, float], None]:
    def show(step: int, loss: float, rate: float) -> None:
        if step % 25 == 0:
            print(
                f"step {step}, loss {loss:.4f}, {rate:,.0f} tokens/s", file=sys.stderr
            )
            keep()

    return show


@click.group()
def cli():
    """Make the demo model and its problems."""


@cli.command("all")
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--traces", default=TRACE_PROBLEMS, show_default=True)
@click.option("--install/--no-install", "is_installed", default=True)
def make_all(work: Path, traces: int, is_installed: bool):
    """Make everything in the folder WORK, and put it into the package."""
    model = make_demo(work, traces=traces)
    if is_installed:
        install(model)


@cli.command("problems")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--count", default=TEST_PROBLEMS, show_default=True)
@click.option("--seed", default=TEST_SEED, show_default=True)
def make_problems(file: Path, count: int, seed: int):
    """Write problems that were never trained on, as JSON lines."""
    write_problems(file, draw_problems(count, seed))


if __name__ == "__main__":
    cli()
