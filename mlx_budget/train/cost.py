"""How far a reply was moved from the model's own distribution to keep its budget.

Knows replies, predictors and the model's probabilities; nothing of what is made of it.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import BatchReply
from ..engine.recorder import hidden_states_at
from ..engine.settings import PREFILL_STEP_SIZE, Sampling, ThinkingBudget
from ..engine.thinking import ThinkingTracker, find_markers
from ..method import guidance
from ..method.predictor import Predictor, ReplyProgress


def steering_cost(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None,
    thinking: ThinkingBudget,
    sampling: Sampling,
    prompt: list[int],
    reply: BatchReply,
) -> float:
    """The log of how much likelier a reply was under its budget than without one.

    It is summed over the steps that were guided, and that at which thinking was closed
    by force: log q - log p, with p the model's own probability of the token and q that
    under guidance, 1 where it was forced. Its mean is the Kullback-Leibler divergence
    of the steered replies from the model's own. Of all ways to end thinking within a
    budget, exact conditioning has the least, minus the log of the probability that the
    model does so by itself (docs/method.md).

    Args:
        model, tokenizer: Whose reply it is.
        predictor (Predictor or False): What guided it, to at most the budget.
        thinking (ThinkingBudget): Its budget.
        sampling (Sampling): Its temperature.
        prompt (list[int]): What it replied to.
        reply (BatchReply): The reply.

    Returns:
        float: In nats.
    """
    markers = find_markers(tokenizer, thinking.start, thinking.end)
    tracker = ThinkingTracker(tokenizer, markers, prompt)
    budget = thinking.tokens
    assert isinstance(budget, int)
    steps: list[tuple[int, int]] = []  # place in the reply, thinking tokens before it
    forced = None
    for i, token in enumerate(reply.tokens):
        used = tracker.thinking_tokens
        if tracker.starts_line and used < budget:
            steps.append((i, used))
        is_close = token == markers.end_tokens[0] and tracker.thinking
        if is_close and reply.closed_by == "budget":
            forced = i
        tracker.update(token)
        if tracker.closed_by is not None:
            break
    steps = [step for step in steps if step[0] != forced]
    if not isinstance(predictor, Predictor):
        steps = []
    places = [i for i, _ in steps] + ([] if forced is None else [forced])
    if not places:
        return 0.0
    states, logits = _observe(model, [*prompt, *reply.tokens], len(prompt), places)
    temp = sampling.temp or 1.0
    own = logits.astype(mx.float32) / temp
    own = own - mx.logsumexp(own, axis=-1, keepdims=True)
    total = 0.0
    for row, (i, used) in enumerate(steps):
        assert isinstance(predictor, Predictor)
        encoding = None
        if predictor.reads_states:
            encoding = predictor.encode(states[row : row + 1])
        else:
            predictor.check_vocabulary(own.shape[-1])
        outputs = predictor.outputs(encoding, ReplyProgress(used, budget))
        weights = predictor.log_weights(outputs, max(1, budget - used))
        weights = predictor.over_vocabulary(weights, -mx.inf)
        guided = guidance.guided_logprobs(own[row : row + 1], weights)
        token = reply.tokens[i]
        total += float(np.array(guided[0, token] - own[row, token]))
    if forced is not None:
        total -= float(np.array(own[len(steps), reply.tokens[forced]]))
    return total


def _observe(
    model: nn.Module, tokens: list[int], prompt: int, places: list[int]
) -> tuple[mx.array, mx.array]:
    """Hidden states and logits before some places of a reply."""
    positions = [prompt + i - 1 for i in places]
    parts = list(hidden_states_at(model, tokens, positions, PREFILL_STEP_SIZE))
    states, logits = (mx.concatenate(list(p)) for p in zip(*parts, strict=True))
    return states, logits
