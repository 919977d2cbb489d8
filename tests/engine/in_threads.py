"""Replies that are made in several threads at once: run with names of what is below.

A process of its own, since MLX may abort one that ends after threads have used it.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import GenerationBatch

from mlx_budget import batch_generate, estimate, load, make_budget_sampler
from mlx_budget import stream_generate as stream
from mlx_budget.engine.batch import stream_batch_generate
from mlx_budget.engine.recorder import active_recorder

QUESTIONS = (
    "What is 7 + 1 + 5 - 9 + 8 + 3?",
    "What is 2 + 3 + 4 - 1 + 6?",
    "What is 1 + 1?",
    "What is 9 - 3 + 2 + 2 - 5 + 1?",
)
BUDGET, ROUNDS = 10, 2
SAME = "same"


class Demo:
    """The built-in model, and what is asked of it, each by a name."""

    # What each gives alone: the same in whatever job it was found.
    alone: dict[tuple[str, int], object] = {}

    def __init__(self, loaded: tuple | None = None):
        self.model, self.tokenizer, self.predictor = loaded or load("demo")
        self.pair = self.model, self.tokenizer
        self.prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": q}], add_generation_prompt=True
            )
            for q in QUESTIONS
        ]
        guided = {"predictor": self.predictor, "thinking_budget": BUDGET}
        hard = {"predictor": False, "thinking_budget": BUDGET}
        drawn = {"temp": 1.0, "top_p": 0.9, "top_k": 20, "xtc_probability": 0.3}
        self.kinds: dict[str, Callable[[int], object]] = {
            "no budget": lambda i: self.say(i, predictor=False),
            "hard stop": lambda i: self.say(i, **hard),
            "guided": lambda i: self.say(i, **guided),
            "auto": lambda i: self.say(i, **{**guided, "thinking_budget": "auto:0.2"}),
            "seeded": lambda i: self.say(i, **guided, **drawn, seed=2**63 + i),
            "sampler": lambda i: self.sample(i, **guided),
            "hard sampler": lambda i: self.sample(i, **hard),
            "batch": lambda i: self.batch(i, **guided),
            "hard batch": lambda i: self.batch(i, **hard),
            "seeded batch": lambda i: self.batch(i, **guided, **drawn, seed=[4, i]),
            "estimate": lambda i: self.estimate(i),
        }
        self.classes = [type(module) for module in self.model.modules()]
        self.step = GenerationBatch._step

    def say(self, i: int, **options) -> list[int]:
        options = {"max_tokens": 2 * BUDGET, **options}
        return [r.token for r in stream(*self.pair, self.prompts[i], **options)]

    def sample(self, i: int, **options) -> list[int]:
        options = {"prompt": self.prompts[i], **options}
        sampler = make_budget_sampler(*self.pair, **options)
        try:
            return self.run(i, sampler)
        finally:
            sampler.close()

    def run(self, i: int, sampler) -> list[int]:
        options = {"sampler": sampler, "max_tokens": 2 * BUDGET}
        replies = mlx_lm.stream_generate(*self.pair, self.prompts[i], **options)
        return [r.token for r in replies]

    def batch(self, i: int, **options) -> list[list[int]]:
        prompts = [self.prompts[i], self.prompts[i - 1]]
        budgets = [options.pop("thinking_budget"), None]
        options |= {"thinking_budget": budgets, "max_tokens": 2 * BUDGET}
        found = batch_generate(*self.pair, prompts, **options)
        return [r.tokens for r in found.replies]

    def estimate(self, i: int) -> float:
        return estimate(*self.pair, self.predictor, self.prompts[i]).median

    def is_as_before(self) -> bool:
        classes = [type(module) for module in self.model.modules()]
        is_step = GenerationBatch._step is self.step
        return classes == self.classes and is_step and not active_recorder(self.model)

    def compare(self, name: str, i: int, found: object) -> str:
        if (name, i) not in self.alone:
            self.alone[name, i] = self.kinds[name](i)
        same = found == self.alone[name, i]
        return SAME if same else f"{name}: {found}, alone {self.alone[name, i]}"


def in_threads(jobs: list[Callable[[], object]]) -> list:
    """What each gives, or its error, in a thread of its own, all begun at once."""
    begin = threading.Barrier(len(jobs))

    def work(job: Callable[[], object]) -> object:
        begin.wait()
        try:
            return job()
        except Exception as e:
            return f"{type(e).__name__}: {e}"

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(work, jobs))


def in_a_thread(job: Callable[[], object]) -> object:
    return in_threads([job])[0]


def together() -> list[str]:
    """Every kind of request beside itself, and beside all others."""
    demo = Demo()
    names = list(demo.kinds)
    mixed = [[names[(r + 3 * t) % len(names)] for t in range(4)] for r in range(6)]
    found = []
    for kinds in [*([name] * 2 for name in names * ROUNDS), *mixed]:
        jobs = [lambda n=n, i=i: demo.kinds[n](i) for i, n in enumerate(kinds)]
        replies = in_threads(jobs)
        found += [demo.compare(n, i, replies[i]) for i, n in enumerate(kinds)]
        found.append(SAME if demo.is_as_before() else f"{kinds}: not as before")
    return found


def cold() -> list[str]:
    """The first that is done with a model is done in threads that did not load it."""
    demo = Demo()
    names = ["guided", "hard stop", "batch", "seeded"]
    replies = in_threads([lambda n=n: demo.kinds[n](0) for n in names])
    return [demo.compare(n, 0, r) for n, r in zip(names, replies, strict=True)]


def loaded_elsewhere() -> list[str]:
    """A model that a thread has loaded which is gone."""
    demo = Demo(in_a_thread(lambda: load("demo")))
    here = demo.kinds["guided"](0)
    there = in_a_thread(lambda: demo.kinds["guided"](0))
    return [SAME if here == there else f"{here} and {there}"]


def scaled(folder: str) -> list[str]:
    """A model with arrays that are no parameters: those of its rotary embedding."""
    model, tokenizer, _ = load(folder, predictor=False)
    options = {"predictor": False, "thinking_budget": 4, "max_tokens": 9}

    def reply() -> list[int]:
        return [r.token for r in stream(model, tokenizer, [5, 6, 7], **options)]

    there = in_a_thread(reply)
    return [SAME if there == reply() else str(there)]


def between(where: str) -> list[str]:
    """One request at a standstill somewhere while a thread makes a whole other one."""
    demo = Demo()
    layer = demo.model.layers[1]
    original = type(layer).__call__
    meet: list[Callable[[], object]] = []  # what runs at the standstill, once

    def stand_still(steps: int) -> None:
        if meet and steps >= 4:
            others.append(in_a_thread(meet.pop()))

    def call(self, x, *args, **kwargs):
        if self is layer and x.shape[1] == 1 and threading.get_ident() == here:
            passes.append(1)
            if where == "forward pass":
                stand_still(len(passes))
        return original(self, x, *args, **kwargs)

    def process(tokens, logits):
        if where == "sampling":
            stand_still(len(passes))
        return logits

    here, found = threading.get_ident(), []
    type(layer).__call__ = call
    for name in ("no budget", "hard stop", "guided"):
        for other in ("no budget", "hard stop", "guided", "batch", "hard batch"):
            passes: list[int] = []
            others: list[object] = []
            meet[:] = [lambda o=other: demo.kinds[o](1)]
            options = {
                "predictor": demo.predictor if name == "guided" else False,
                "thinking_budget": None if name == "no budget" else BUDGET,
                "max_tokens": 2 * BUDGET,
                "logits_processors": [process],
            }
            reply = []
            for r in stream(*demo.pair, demo.prompts[0], **options):
                reply.append(r.token)
                if where == "tokens":
                    stand_still(len(reply))
            found.append(demo.compare(name, 0, reply))
            found.append(demo.compare(other, 1, others[0]))
            found.append(SAME if demo.is_as_before() else "not as before")
    return found


def handed_over() -> list[str]:
    """Samplers that one thread makes and others use, and that a third one drops."""
    demo = Demo()
    found = []
    for name in ("sampler", "hard sampler"):
        predictor = demo.predictor if name == "sampler" else False
        samplers = [
            make_budget_sampler(
                *demo.pair, predictor, prompt=prompt, thinking_budget=BUDGET
            )
            for prompt in demo.prompts[:3]
        ]
        jobs = [lambda i=i, s=s: demo.run(i, s) for i, s in enumerate(samplers)]
        replies = in_threads(jobs)
        del jobs
        in_a_thread(samplers.clear)
        found.append(SAME if demo.is_as_before() else "not as before")
        found += [demo.compare(name, i, reply) for i, reply in enumerate(replies)]
    return found


def consumed_elsewhere() -> list[str]:
    """A batch that is asked for its replies in two threads."""
    demo = Demo()
    options = {"predictor": False, "thinking_budget": [2, 9], "max_tokens": 9}
    replies = stream_batch_generate(*demo.pair, demo.prompts[:2], **options)
    next(replies)
    message = in_a_thread(lambda: next(replies))
    return [message, SAME if demo.is_as_before() else "not as before"]


if __name__ == "__main__":
    # Threads change places as often as they can.
    sys.setswitchinterval(1e-5)
    mx.random.seed(0)
    found = []
    for job in sys.argv[1:]:
        name, *arguments = job.split(" ", 1)
        found.append(globals()[name](*arguments))
    Path(os.environ["FOUND"]).write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)
