"""Asks a model for plans: one call for the parts of a question, one for their worth.

Both are asked without thinking, and held to a JSON schema where llguidance is there.
Knows the engine's batches; nothing of how plans are followed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import BatchReply, stream_batch_generate
from ..engine.fields import keywords_of
from ..engine.markers import markers_of
from ..engine.prompts import encode_chat
from ..engine.settings import PromptOptions, Sampling, ThinkingBudget, seed_of
from ..engine.template import ask_template
from .plans import PLAN_SCHEMA, UNREAD, Plan, rate, rating_schema, read_parts
from .prompts import planning_prompt, rating_prompt

# Of one call: five parts of a sentence and a hint each have room.
MOST_TOKENS = 512
_FREE, _GREEDY, _PLAIN = ThinkingBudget(), Sampling(), PromptOptions()


def make_plans(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    questions: Sequence[str],
    *,
    thinking: ThinkingBudget = _FREE,
    sampling: Sampling = _GREEDY,
    template: PromptOptions = _PLAIN,
    seeds: Sequence[int | None] | None = None,
    batch_size: int = 32,
) -> list[Plan]:
    """Has a model plan questions, several at a time.

    Args:
        model, tokenizer: As `mlx_budget.load` returns them.
        questions (Sequence[str]): What is to be planned.
        thinking (ThinkingBudget): Its markers count alone: planning does not think.
        sampling (Sampling): How tokens are drawn.
        template (PromptOptions): How a question becomes a prompt.
        seeds (Sequence, optional): One for each question; that of ``sampling`` for all
            by default.
        batch_size (int): Most questions at a time.

    Returns:
        list[Plan]: One for each question. What a model wrote wrongly is mended, and
        named in the plan's ``problems``; nothing of it is an error.
    """
    if seeds is None:
        seeds = [sampling.seed] * len(questions)
    ask = _Planner(model, tokenizer, thinking, sampling, template, batch_size)
    replies = ask(
        [planning_prompt(question) for question in questions],
        [PLAN_SCHEMA] * len(questions),
        seeds,
    )
    read = [
        read_parts(reply.answer, question)
        for reply, question in zip(replies, questions, strict=True)
    ]
    # What could not plan is not asked to rate. A plan of one part is: the rating says
    # how hard the question is, too.
    rated = [i for i, (_, problems) in enumerate(read) if not UNREAD & {*problems}]
    ratings = ask(
        [rating_prompt(questions[i], read[i][0]) for i in rated],
        [rating_schema(len(read[i][0])) for i in rated],
        [None if (s := seeds[i]) is None else seed_of(s, "rating") for i in rated],
    )
    plans = [
        Plan(tuple(parts), problems=tuple(problems), tokens=len(reply.tokens))
        for (parts, problems), reply in zip(read, replies, strict=True)
    ]
    for i, rating in zip(rated, ratings, strict=True):
        plan = rate(*read[i], rating.answer)
        tokens = plans[i].tokens + len(rating.tokens)
        plans[i] = replace(plan, tokens=tokens)
    return plans


class _Planner:
    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        thinking: ThinkingBudget,
        sampling: Sampling,
        template: PromptOptions,
        batch_size: int,
    ):
        self._loaded = model, tokenizer
        self._sampling = sampling
        self._batch_size = batch_size
        at_once = ThinkingBudget(0, start=thinking.start, end=thinking.end)
        thinks = markers_of(tokenizer, at_once) is not None
        self._thinking = at_once if thinks else ThinkingBudget()
        self._template = template
        if thinks:
            self._template, _ = ask_template(tokenizer, at_once, template)

    def __call__(
        self,
        prompts: Sequence[str],
        schemas: Sequence[dict[str, Any]],
        seeds: Sequence[int | None],
    ) -> list[BatchReply]:
        """A reply to each prompt, held to its schema if it can be."""
        model, tokenizer = self._loaded
        options: dict[str, Any] = {
            **keywords_of(self._thinking),
            **keywords_of(self._sampling),
            "seed": list(seeds),
        }
        ids = [
            encode_chat(tokenizer, prompt, **keywords_of(self._template))
            for prompt in prompts
        ]
        ways: tuple[dict[str, Any], ...] = ({"json_schema": list(schemas)}, {})
        for held in ways:
            found: dict[int, BatchReply] = {}
            try:
                for reply in stream_batch_generate(
                    model,
                    tokenizer,
                    ids,
                    predictor=False,
                    max_tokens=MOST_TOKENS,
                    batch_size=self._batch_size,
                    **options,
                    **held,
                ):
                    found[reply.index] = reply
            except ValueError:
                # llguidance is not there, or cannot read the tokenizer: the model is
                # asked all the same, and what it writes is read strictly.
                if not held:
                    raise
                continue
            return [found[i] for i in range(len(ids))]
        raise AssertionError("The second way returns or raises.")
