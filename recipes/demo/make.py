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
from dataclasses import asdict
from pathlib import Path

import click
import mlx_lm
from mlx_lm.utils import quantize_model, save_config

from mlx_budget.demo import FOLDER, PROBLEMS_FILE
from mlx_budget.files.texts import write_json, write_text
from mlx_budget.train import TrainOptions, train, write_traces

from .chat import make_chat, make_tokenizer
from .exchanges import draw_earlier, draw_exchange
from .others import draw_system_prompt
from .pretrain import CLOSING, PRETRAINING, STEADYING, pretrain, save_weights
from .problems import Problem, make_problem
from .sequences import SYSTEM, Stage

Q_BITS, Q_GROUP_SIZE = 8, 64
TEST_PROBLEMS, TEST_SEED = 500, 2026
# How often a chat has begun before.
_EARLIER = CLOSING.earlier
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
STAGES = {"pretraining": PRETRAINING, "closing": CLOSING, "steadying": STEADYING}
TIMES_FILE, RECIPE_FILE = "times.json", "recipe.json"
PREDICTOR_FILES = ("predictor_config.json", "predictor.safetensors")
_SAVE_SECONDS = 5.0
_SHIPPED = ("*.json", "*.safetensors")


def make_demo(
    work: Path,
    stages: tuple[Stage, ...] = tuple(STAGES.values()),
    traces: int = TRACE_PROBLEMS,
) -> Path:
    """Makes the demo, or goes on with making it.

    A folder or file that ends a stage appears whole, and its stage is not run again.

    Args:
        work (Path): Folder for all that is made on the way.
        stages (tuple): Of the training of the language model, one for each of `STAGES`.
        traces (int): Questions whose replies the predictor is trained on.

    Returns:
        Path: The folder with model and predictor.

    Raises:
        ValueError: If what is in the folder was begun with other stages or traces.
    """
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    _check_recipe(work / RECIPE_FILE, stages, traces)
    folder, model = work / "tokenizer", work / "model"
    if not (folder / "tokenizer_config.json").exists():
        with timed(work, "tokenizer"):
            make_tokenizer(folder)
    for name, stage in zip(STAGES, stages, strict=True):
        before, folder = folder, work / f"after_{name}"
        if not (folder / "config.json").exists():
            train_stage(work, name, stage, before, folder)
    predictor = train_predictor(folder, work, traces)
    if not (model / "config.json").exists():
        with timed(work, "quantising"):
            quantise(folder, predictor, model)
    return model


def train_stage(
    work: Path, name: str, stage: Stage, before: Path, folder: Path
) -> None:
    """Trains the model of one folder, or a new one, and writes it to another.

    Args:
        work (Path): Gets checkpoints, in a folder of the stage's name.
        name (str): Of the stage.
        stage (Stage): How to train.
        before (Path): Folder of the tokenizer, and of the weights to begin with.
        folder (Path): Where to write.
    """
    folder.mkdir(exist_ok=True)
    for file in before.glob("tokenizer*.json"):
        shutil.copy(file, folder)
    weights = before / "model.safetensors"
    known = weights if weights.exists() else None
    with timed(work, name) as keep:
        pretrain(folder, work / name, stage, known, progress=_shown(keep))


def _check_recipe(file: Path, stages: tuple[Stage, ...], traces: int) -> None:
    """Writes down how a folder is made, or compares it with what is written there."""
    asked = json.loads(json.dumps({"stages": list(map(asdict, stages)), "n": traces}))
    if not file.exists():
        write_json(file, asked)
    elif json.loads(file.read_text(encoding="utf-8")) != asked:
        raise ValueError(
            f"{file.parent} was begun with other stages or traces ({file.name} has "
            "them): choose another folder."
        )


@contextmanager
def timed(work: Path, stage: str) -> Iterator[Callable[..., None]]:
    """Adds the time that a stage takes to `TIMES_FILE`, that of parts of it as well.

    Yields a function that saves the time so far, so that a kill loses little. It writes
    every few seconds at most. What is done again after a kill counts again.

    Args:
        work (Path): Folder of the file, a JSON object: for each stage its seconds, and
            those of the processor, of all its cores together.
        stage (str): Name of the stage.
    """
    file = work / TIMES_FILE
    times = json.loads(file.read_text()) if file.exists() else {}
    before = times.get(stage, {"seconds": 0.0, "processor_seconds": 0.0})
    begin = time.perf_counter(), time.process_time()

    def save() -> None:
        spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
        now = {
            k: round(v + s, 1) for (k, v), s in zip(before.items(), spent, strict=True)
        }
        write_json(file, {**times, stage: now})

    def keep(*_: object) -> None:
        nonlocal saved
        if time.perf_counter() - saved > _SAVE_SECONDS:
            save()
            saved = time.perf_counter()

    saved = begin[0]
    try:
        yield keep
    finally:
        save()


def quantise(source: Path, predictor: Path | None, output: Path) -> None:
    """Writes a folder with a model in 8 bits, and its predictor.

    Args:
        source (Path): Folder of the model.
        predictor (Path, optional): Folder of its predictor.
        output (Path): Where to write them; the configuration of the model comes last.
    """
    model, _, config = mlx_lm.load(str(source), return_config=True)
    model, config = quantize_model(model, config, Q_GROUP_SIZE, Q_BITS)
    output.mkdir(parents=True, exist_ok=True)
    for file in source.glob("tokenizer*.json"):
        shutil.copy(file, output)
    for name in PREDICTOR_FILES if predictor else ():
        shutil.copy(predictor / name, output)
    save_weights(output, model)
    written = output / "config.json.incomplete"
    save_config(config, written)
    written.replace(output / "config.json")


def train_predictor(model: Path, work: Path, count: int) -> Path:
    """Trains the predictor on the model's own replies to problems of training.

    Returns:
        Path: Its folder.
    """
    made = work / "predictor"
    if (made / "predictor_config.json").exists():
        return made
    loaded, tokenizer = mlx_lm.load(str(model))
    rng = random.Random(TRACE_SEED)
    chats = []
    for _ in range(count):
        question, earlier = draw_exchange(rng).question, draw_earlier(rng, _EARLIER)
        chats.append(make_chat(question, earlier, draw_system_prompt(rng, SYSTEM)))
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
    resume = (made / "training").exists()
    options = TrainOptions(str(model), str(traces), made, resume=resume, **PREDICTOR)
    with timed(work, "predictor") as keep:
        train(options, progress=keep)
    return made


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
    try:
        model = make_demo(work, traces=traces)
    except ValueError as e:
        raise click.ClickException(str(e)) from None
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
