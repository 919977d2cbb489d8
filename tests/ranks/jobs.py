"""What is asked of a model alone and of one on several ranks: the answers are equal.

As a script it is a rank, which runs some of the jobs and prints what comes of them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_budget import batch_generate, load, plan, stream_generate
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.estimate import estimate
from mlx_budget.engine.priors import prior_for
from mlx_budget.engine.recorder import hidden_states_at
from mlx_budget.engine.scoring import score_tokens
from mlx_budget.engine.thinking import find_markers
from mlx_budget.ranks import current
from mlx_budget.ranks.joining import follow_to_the_end, join

REFERENCE = Path(__file__).parents[1] / "fixtures" / "bg-qwen2-tiny"
CASES = json.loads((REFERENCE / "golden.json").read_text(encoding="utf-8"))
PROMPT = CASES[0]["prompt_ids"]
SAMPLED = {"temp": 1.0, "top_p": 0.9, "max_tokens": 16}
Job = Callable[[Any, Any, Any], Any]


def golden(model, tokenizer, predictor) -> list[list[int]]:
    """The guided tokens of the reference's cases, greedy."""
    made = batch_generate(
        model,
        tokenizer,
        [case["prompt_ids"] for case in CASES],
        predictor=predictor,
        thinking_budget=[case["budget"] for case in CASES],
        max_tokens=[case["max_new"] for case in CASES],
        hard_stop=None,
    )
    return [reply.tokens for reply in made.replies]


def batch(model, tokenizer, predictor, **options: Any) -> list[Any]:
    """A batch whose rows have budgets and seeds of their own, and join and leave."""
    budgets = [None, 0, 5, 40, "auto", (8, 12), 30, 7, None, 9, "auto:0.5", 60]
    options = {"seed": list(range(12)), **SAMPLED, **options}
    made = batch_generate(
        model,
        tokenizer,
        [case["prompt_ids"] for case in CASES],
        predictor=predictor,
        thinking_budget=budgets,
        batch_size=5,
        **options,
    )
    return [[r.tokens, r.closed_by, r.thinking_budget] for r in made.replies]


def greedy_batch(model, tokenizer, predictor) -> list[Any]:
    return batch(model, tokenizer, predictor, temp=0.0, seed=None)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 3, **SAMPLED},
    "hard stop alone": {"predictor": False, "thinking_budget": 9},
    "prior": {"predictor": None, "thinking_budget": 9, "seed": 1, **SAMPLED},
    "message": {"thinking_budget": 6, "thinking_budget_message": "\nTime is up.\n"},
    "budget 0": {"thinking_budget": 0},
    "auto": {"thinking_budget": "auto", "seed": 2, **SAMPLED},
    "floor": {"min_thinking_tokens": 12, "seed": 4, **SAMPLED},
    "window": {"thinking_budget": "8-12", "seed": 5, **SAMPLED},
    "no tolerance": {"thinking_budget": 10, "guidance_tolerance": 0},
    "limited cache": {"thinking_budget": 10, "max_kv_size": 24},
    "small chunks": {"thinking_budget": 10, "prefill_step_size": 3},
    "xtc": {"thinking_budget": 10, "seed": 6, "xtc_probability": 0.5, **SAMPLED},
}


def kinds(model, tokenizer, predictor) -> dict[str, list[int]]:
    """Replies of every kind."""
    return {
        name: [
            r.token
            for r in stream_generate(
                model,
                tokenizer,
                PROMPT,
                **{"predictor": predictor, "max_tokens": 18, **options},
            )
        ]
        for name, options in KINDS.items()
    }


def left_early(model, tokenizer, predictor) -> list[int]:
    """A reply that nobody reads to its end, and one after it."""
    for r in stream_generate(model, tokenizer, PROMPT, max_tokens=50):
        if r.generation_tokens == 5:
            break
    left = stream_generate(model, tokenizer, PROMPT, predictor=predictor, seed=1)
    del left
    return one(model, tokenizer, predictor)


def one(model, tokenizer, predictor) -> list[int]:
    responses = stream_generate(
        model, tokenizer, PROMPT, predictor=predictor, thinking_budget=20, max_tokens=16
    )
    return [r.token for r in responses]


def refused(model, tokenizer, predictor) -> list[str]:
    """What is wrong with a request is said, and the next one is answered."""
    said = []
    for options in ({"top_k": 10**6, "temp": 1.0}, {"max_tokens": 5, "temp": -1}, {}):
        try:
            list(
                stream_generate(model, tokenizer, PROMPT if options else [], **options)
            )
        except ValueError as e:
            said.append(str(e))
    return [*said, str(one(model, tokenizer, predictor))]


def planned(model, tokenizer, predictor) -> list[Any]:
    """A reply in two stretches, with what became of them."""
    reply = plan(
        model,
        tokenizer,
        "What is 14 + 7?",
        predictor=predictor,
        plan={"parts": ["14", "+ 7"]},
        thinking_budget=40,
        rollover=True,
        seed=5,
        **{**SAMPLED, "max_tokens": 60},
    )
    return [reply.text, [stretch.used for stretch in reply.stretches]]


def sent(model, tokenizer, predictor) -> list[int]:
    """A reply with what rank 0 alone has made for it."""
    prior = prior_for(tokenizer, find_markers(tokenizer))
    return one(model, tokenizer, prior)


def side_by_side(model, tokenizer, predictor) -> list[list[int]]:
    """Two replies that are generated in turns."""
    options = {"predictor": predictor, "thinking_budget": 6, "max_tokens": 8}
    replies = [
        stream_generate(model, tokenizer, case["prompt_ids"], **options)
        for case in CASES[:2]
    ]
    return [[a.token, b.token] for a, b in zip(*replies, strict=True)]


def lengths(model, tokenizer, predictor) -> list[float]:
    found = [estimate(model, tokenizer, predictor, c["prompt_ids"]) for c in CASES[::4]]
    return [round(f.median, 2) for f in found]


def talk(model, tokenizer, predictor) -> list[Any]:
    """A chat of several turns, one of them stopped, forgotten and begun again."""
    chat = Conversation(model, tokenizer, predictor, seed=3, **SAMPLED)
    said: list[Any] = []

    def ask(question: str, **options: Any) -> None:
        said.append([r.token for r in chat.ask(question, 12, **options)])

    ask("What is 1 + 2?")
    ask("And 3 more?")
    seen = iter([False] * 6 + [True] * 9)
    ask("And 4 more?", stopped=lambda: next(seen))
    chat.system_prompt = "Be brief."
    ask("And then?")
    chat.reset()
    ask("What is 1 + 2?")
    said.append(len(chat.messages))
    return said


def scores(model, tokenizer, predictor) -> list[Any]:
    return [
        [s.token, s.logprob and round(s.logprob, 3)]
        for s in score_tokens(model, PROMPT, 2)
    ]


def states(model, tokenizer, predictor) -> list[float]:
    """Hidden states of some positions, as training reads them."""
    found = hidden_states_at(model, PROMPT, [1, 4, 9, 15], 6)
    return [round(float(h.sum().item()), 2) for chunk, _ in found for h in chunk]


def unseeded(model, tokenizer, predictor) -> bool:
    """Whether draws without a seed differ from one another: of equality see `Team`."""
    # So hot that equal draws are as good as impossible.
    hot = {"temp": 5.0, "max_tokens": 16}
    options = {"thinking_budget": 30, "predictor": predictor, **hot}
    drawn = {
        tuple(r.token for r in stream_generate(model, tokenizer, PROMPT, **options))
        for _ in range(2)
    }
    return len(drawn) > 1


JOBS: dict[str, Job] = {
    job.__name__: job
    for job in (
        golden,
        batch,
        greedy_batch,
        kinds,
        one,
        left_early,
        refused,
        sent,
        planned,
        side_by_side,
        lengths,
        talk,
        scores,
        states,
        unseeded,
    )
}


def run(parts: tuple, names: list[str]) -> dict[str, Any]:
    """What comes of some jobs, as JSON has it."""
    return json.loads(json.dumps({name: JOBS[name](*parts) for name in names}))


def main(model: str, pipeline: str, led: str, *names: str) -> None:
    if led == "led":
        team = join(is_led=True)
        if not team.leads:
            follow_to_the_end(team)
    made = run(load(model, pipeline=pipeline == "pipeline"), list(names))
    print(json.dumps(made))
    current().leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
