"""How long a model will think about a prompt, as its predictor reads it.

The predictor's distribution at the first thinking token, before any thinking: the
paper's reading of question difficulty. Knows nothing of files, Hub or terminal.
"""

from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import (
    can_trim_prompt_cache,
    make_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method import gamma
from ..method.guidance import log_to_length, quantile_lengths
from ..method.predictor import Predictor, ReplyProgress
from ..ranks import current, mirrored
from .context import context_length, vocabulary_size
from .errors import NoPredictorError
from .fields import check_count
from .known_prompts import KnownPrompts
from .memory import tell_of_size, wired
from .prompts import wrapped
from .recorder import HiddenStateRecorder
from .sampler import Prompt, encode_prompt
from .sharing import first_token
from .thinking import ThinkingTracker, find_markers

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class ThinkingEstimate:
    """A predicted thinking length, in tokens, the closing marker counted.

    Attributes:
        mode: The most likely value of log(L + 1), as a length.
        median: The length that half of such replies stay below.
        low: The 10 % quantile.
        high: The 90 % quantile.
        concentration: Of the Gamma distribution of log(L + 1).
        rate: Of the Gamma distribution of log(L + 1).
        token: The first thinking token that the prediction is for: the model's own
            choice at temperature 0, among the tokens that the predictor knows.
        trusted: Whether the prediction passes the predictor's guidance thresholds.
    """

    mode: float
    median: float
    low: float
    high: float
    concentration: float
    rate: float
    token: int
    trusted: bool


@mirrored(known_prompts=lambda: None)
def estimate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None,
    prompt: Prompt,
    *,
    thinking_start: str | None = None,
    thinking_end: str | None = None,
    prefill_step_size: int = 2048,
    known_prompts: KnownPrompts | None = None,
) -> ThinkingEstimate:
    """Predicts how long the model will think about a prompt.

    Where the prompt leaves it to the model to open the thinking block, the opening
    marker is put behind the prompt.

    Args:
        model, tokenizer, predictor: As `mlx_budget.load` returns them.
        prompt (str, list or mx.array): The prompt, chat template applied.
        thinking_start (str, optional): Opening marker, in place of the tokenizer's.
        thinking_end (str, optional): Closing marker, in place of the tokenizer's.
        prefill_step_size (int): Prompt tokens to process at a time.
        known_prompts (KnownPrompts, optional): As in `stream_batch_generate`.

    Raises:
        ValueError: If there is no predictor, the prompt is empty, or the model has no
            thinking markers.
    """
    predictor = check_predictor(predictor)
    prefill_step_size = check_count("prefill_step_size", prefill_step_size)
    tokenizer = wrapped(tokenizer)
    most = context_length(model, tokenizer)
    ids = encode_prompt(tokenizer, prompt, most, vocabulary_size(model))
    if not ids:
        raise ValueError("The prompt is empty.")
    markers = find_markers(tokenizer, thinking_start, thinking_end)
    if not ThinkingTracker(tokenizer, markers, ids).thinking:
        ids += markers.start_tokens
    seen: list[tuple[mx.array | None, int]] = []

    def observe(logprobs: mx.array) -> mx.array:
        forward = recorder.last
        if forward is None:
            raise ValueError("The model was not run on the last token of the prompt.")
        encoding = None
        if predictor.reads_states:
            predictor.check_sizes(*forward.sizes(), logprobs.shape[-1])
            # Here, on the stream of the pass: ranks may have to exchange them.
            encoding = predictor.encode(forward.states([0]))
        else:
            predictor.check_vocabulary(logprobs.shape[-1])
        seen.append((encoding, first_token(predictor, logprobs)))
        return mx.array([seen[0][1]])

    tell_of_size(model, predictor)
    known = KnownPrompts(0) if known_prompts is None or current() else known_prompts
    caches, rest = known.nearest(ids)
    caches = make_prompt_cache(model) if caches is None else caches
    recorder = HiddenStateRecorder.acquire(model, predictor.reads_states)
    try:
        with wired():
            # No token is generated: the prompt is read and sampled from once.
            for _ in generate_step(
                mx.array(rest),
                model,
                max_tokens=0,
                sampler=observe,
                prompt_cache=caches,
                prefill_step_size=prefill_step_size,
            ):
                pass
    finally:
        recorder.release()
    if can_trim_prompt_cache(caches) and trim_prompt_cache(caches, 1):
        known.keep(ids[:-1], caches)
    encoding, token = seen[0]
    outputs = predictor.outputs(encoding, ReplyProgress())
    concentration, rate = (p[0, token] for p in predictor.parameters_of(outputs))
    lengths = quantile_lengths(QUANTILES, concentration, rate)
    mode = log_to_length(gamma.mode(concentration, rate))
    trusted = predictor.thresholds.trust(concentration, rate).item()
    return ThinkingEstimate(
        mode=_number(mode),
        low=lengths[0],
        median=lengths[1],
        high=lengths[2],
        concentration=_number(concentration),
        rate=_number(rate),
        token=token,
        trusted=bool(trusted),
    )


def check_predictor(predictor: Predictor | bool | None) -> Predictor:
    """The predictor, which an estimate needs.

    Raises:
        ValueError: If there is none, or it knows no lengths.
    """
    if not isinstance(predictor, Predictor) or not predictor.knows_lengths:
        raise NoPredictorError(
            "An estimate needs a predictor, and none was found beside the model. Name "
            "one with --predictor."
        )
    return predictor


def _number(value: mx.array) -> float:
    return cast(float, value.item())
