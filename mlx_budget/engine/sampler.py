"""The budget sampler: an ordinary mlx-lm sampler that steers thinking to a budget.

The one stateful step of the method: it follows the reply, decides at each step whether
to leave the model alone, guide it or close its thinking, and returns the next token.
Knows mlx-lm's generation loop; nothing of files, Hub or terminal.
"""

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..method import candidates, kernels
from ..method.candidates import DEFAULT_TOLERANCE
from ..method.guidance import quantile_lengths
from ..method.predictor import Predictor
from .recorder import HiddenStateRecorder, active_recorder
from .settings import (
    DEFAULT_HARD_STOP,
    AutoBudget,
    check_budget,
    check_enforceable,
    check_hard_stop,
    check_temperature,
    check_tolerance,
    thinking_limit,
)
from .sharing import first_token, predict
from .thinking import ThinkingTracker, find_markers


def make_budget_sampler(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None = None,
    *,
    prompt: str | list[int] | mx.array,
    thinking_budget: int | str | AutoBudget | None = None,
    hard_stop: float | None = DEFAULT_HARD_STOP,
    thinking_budget_message: str | None = None,
    thinking_start: str | None = None,
    thinking_end: str | None = None,
    guidance_tolerance: float = DEFAULT_TOLERANCE,
    temp: float = 0.0,
    seed: int | None = None,
    **sampling,
) -> "BudgetSampler":
    """Makes a sampler for mlx-lm that steers one request's thinking to a budget.

    Use it with the stock loop, ``mlx_lm.stream_generate(model, tokenizer, prompt,
    sampler=sampler)``, or as one of the ``samplers`` of a `BatchGenerator`: there, make
    one for every request of the batch.

    Args:
        model (nn.Module): The mlx-lm model that will generate.
        tokenizer (TokenizerWrapper): Its tokenizer.
        predictor (Predictor or False): The predictor that guides; False for the hard
            stop alone.
        prompt (str, list or mx.array): The very prompt that will be generated from.
        thinking_budget (int or str, optional): Tokens of thinking: None or -1 for no
            budget, 0 to close thinking at once, N > 0 to steer to N tokens; "auto" for
            as many as the predictor expects this question to take (the median at the
            first thinking token), "auto:0.63" for that share of them.
        hard_stop (float, optional): Past the budget thinking is closed at the first
            newline, and at ``hard_stop * thinking_budget`` tokens wherever it is. None
            leaves it to guidance alone, as in the paper.
        thinking_budget_message (str, optional): Text put before the closing marker on
            a forced close.
        thinking_start (str, optional): Opening marker, in place of the tokenizer's.
        thinking_end (str, optional): Closing marker, in place of the tokenizer's.
        guidance_tolerance (float): Guided steps evaluate the likeliest tokens alone
            while the total variation distance to the result of the whole vocabulary,
            before top-p and the like, is at most this; at ``temp=0`` the token is the
            same, to the rounding of the predictor's type. 0 always evaluates the whole
            vocabulary.
        temp (float): Sampling temperature, 0 for the most likely token.
        seed (int, optional): 0 to 2^32 - 1: makes the draws of this request its own,
            whatever else is sampled beside it. It seeds MLX's global random generator
            at each of its steps.
        sampling: The other options of ``mlx_lm.sample_utils.make_sampler``.

    Returns:
        BudgetSampler: Log-probabilities (1, V) in, token (1,) out.

    Raises:
        ValueError: If the budget cannot be honoured, with the reason and the way out.
    """
    budget = check_budget(thinking_budget)
    check_hard_stop(hard_stop)
    check_temperature(temp)
    check_tolerance(guidance_tolerance)
    draws = _draws(seed)
    plain = _seeded(make_sampler(temp=temp, **sampling), draws)
    if budget is None:
        return BudgetSampler(model, plain)
    check_enforceable(budget, predictor, hard_stop)
    markers = find_markers(tokenizer, thinking_start, thinking_end)
    ids = encode_prompt(tokenizer, prompt)
    if not ids:
        raise ValueError("The prompt is empty.")
    # The closing marker follows anyway: a message that ends with it is not to have two.
    text = (thinking_budget_message or "").split(markers.end)[0]
    message = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
    return BudgetSampler(
        model,
        plain,
        # The guided distribution is at the temperature already.
        guided=_seeded(make_sampler(temp=1.0 if temp > 0 else 0.0, **sampling), draws),
        temp=temp,
        tolerance=guidance_tolerance,
        predictor=predictor or None,
        tracker=ThinkingTracker(tokenizer, markers, ids),
        last_prompt_token=ids[-1],
        budget=budget,
        hard_stop=hard_stop,
        message=message,
    )


@dataclass
class SteeringRecord:
    """What a sampler did to its reply: to be read while it runs and when it is gone.

    Attributes:
        budget: The budget in tokens; None without one, and as long as an automatic
            budget waits for the first thinking token.
        forced_steps: Indices, from 0, of the tokens it put in to close thinking.
        guided_steps: Indices of the tokens that were chosen under guidance.
        full_steps: Those of them for which the whole vocabulary, or all tokens that
            the predictor knows, were evaluated.
    """

    budget: int | None = None
    forced_steps: set[int] = field(default_factory=set)
    guided_steps: list[int] = field(default_factory=list)
    full_steps: list[int] = field(default_factory=list)


class BudgetSampler:
    """The state of one request: call it as mlx-lm calls a sampler.

    Attributes:
        record: What it did so far.
        budget, forced_steps, guided_steps, full_steps: As in the record.
        predictor: The predictor that guides it, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        plain,
        *,
        guided=None,
        temp: float = 0.0,
        tolerance: float = DEFAULT_TOLERANCE,
        predictor: Predictor | None = None,
        tracker: ThinkingTracker | None = None,
        last_prompt_token: int | None = None,
        budget: int | AutoBudget | None = None,
        hard_stop: float | None = None,
        message: tuple[int, ...] = (),
    ):
        self._model = model
        self._plain = plain
        self._guided = guided
        self._temp = temp
        self._tolerance = tolerance
        self.predictor = predictor
        self._tracker = tracker
        self.record = SteeringRecord()
        self._auto = budget if isinstance(budget, AutoBudget) else None
        self._hard_stop = hard_stop
        self._set_budget(None if self._auto else budget)
        self._message = message
        self._closing: deque[int] = deque()
        self._step = 0
        self._token: mx.array | None = None
        self._is_unread = False
        self._is_misled = False
        # What the last forward pass must have been given, and what it was given.
        self._expected_input = last_prompt_token
        self._seen_input: tuple[mx.array, int] | None = None
        self.forced_steps = self.record.forced_steps
        self.guided_steps = self.record.guided_steps
        self.full_steps = self.record.full_steps
        self._lease = None
        if budget is not None:
            recorder = HiddenStateRecorder.acquire(model, states=bool(predictor))
            self._lease = weakref.finalize(self, recorder.release)
            recorder.join(self)

    def close(self) -> None:
        """Stops recording hidden states; the model is as it was before."""
        if self._lease is not None:
            self._lease()

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token.

        Args:
            logprobs (mx.array): The model's log-probabilities, shape (1, V).

        Returns:
            mx.array: The token, shape (1,).

        Raises:
            ValueError: If the sampler is used for a second request, or in a loop that
                does not run the model one token at a time.
        """
        recorder = active_recorder(self._model)
        row = None
        if recorder is not None:
            row = recorder.next_row(logprobs.shape[0])
        if self._tracker is None:
            return self._plain(logprobs)
        if recorder is None or not self._lease.alive:
            raise ValueError("This budget sampler was closed: make a new one.")
        if self.has_started:
            # The device computes this step while the host waits for the last token.
            mx.async_eval(logprobs)
            self._read_last_token()
            self._check_input()
        if recorder.inputs is not None:
            self._seen_input = (recorder.inputs, row)
        self._token = self._choose(logprobs, recorder, row)
        if not self.has_started:
            recorder.join(self)  # from now on it runs after those that run already
        self._is_unread = True
        self._step += 1
        return self._token

    @property
    def budget(self) -> int | None:
        """The budget in tokens, once it is known."""
        return self.record.budget

    @property
    def has_started(self) -> bool:
        """Whether it has chosen a token yet."""
        return self._step > 0

    def next_input(self) -> int | None:
        """The token that the model reads next, or None when the sampler is closed."""
        if self._lease is None or not self._lease.alive:
            return None
        self._read_last_token()
        return self._expected_input

    def _read_last_token(self) -> None:
        if not self._is_unread:
            return
        self._is_unread = False
        token = self._token.item()
        self._tracker.update(token, forced=self._step - 1 in self.forced_steps)
        if self._seen_input is not None:
            inputs, row = self._seen_input
            # Computed before the last token was, so this does not wait.
            seen = np.array(inputs)[row, 0]
            self._is_misled |= bool(seen != self._expected_input)
        self._expected_input = token

    def _check_input(self) -> None:
        if self._is_misled:
            self.close()
            raise ValueError(
                "This budget sampler follows another request: the token fed to the "
                "model is not the one it chose. Make a sampler for each request, with "
                "that request's own prompt."
            )

    def _choose(
        self, logprobs: mx.array, recorder: HiddenStateRecorder, row: int
    ) -> mx.array:
        if self._auto is not None and self._tracker.thinking:
            self._set_budget(self._auto.tokens(self._expect(logprobs, recorder, row)))
            self._auto = None
        if not self._closing and self._must_close():
            self._closing.extend(self._closing_tokens())
        if self._closing:
            self.forced_steps.add(self._step)
            return mx.array([self._closing.popleft()], dtype=mx.uint32)
        if self.is_guided():
            return self._choose_guided(logprobs, recorder, row)
        return self._plain(logprobs)

    def _set_budget(self, budget: int | None) -> None:
        self.record.budget = budget
        self._limit = thinking_limit(budget, self._hard_stop)

    def _expect(
        self, logprobs: mx.array, recorder: HiddenStateRecorder, row: int
    ) -> float:
        """The length that the predictor expects of thinking that begins now."""
        self.predictor.check_sizes(*recorder.sizes(), logprobs.shape[-1])
        outputs = predict(self, recorder, row).head_outputs(row, None)
        token = first_token(self.predictor, logprobs)
        concentration, rate = self.predictor.parameters_of(outputs)
        return quantile_lengths((0.5,), concentration[0, token], rate[0, token])[0]

    def _must_close(self) -> bool:
        if not self._tracker.thinking:
            return False
        used = self._tracker.thinking_tokens
        if self.budget == 0:
            return True
        if self._limit is None:
            return False
        over = used >= self.budget and self._tracker.after_newline
        return over or used >= self._limit

    def _closing_tokens(self) -> tuple[int, ...]:
        missing = self._tracker.missing_end_tokens()
        begun = len(missing) < len(self._tracker.markers.end_tokens)
        return missing if begun else self._message + missing

    def is_guided(self) -> bool:
        """Whether the token after `next_input` is one to guide."""
        tracker = self._tracker
        return (
            self.predictor is not None
            and not self._closing
            and not self._must_close()
            and tracker.thinking
            and tracker.blocks == 1
            and (tracker.thinking_tokens == 0 or tracker.after_newline)
        )

    def _choose_guided(
        self, logprobs: mx.array, recorder: HiddenStateRecorder, row: int
    ) -> mx.array:
        remaining = max(1, self.budget - self._tracker.thinking_tokens)
        self.predictor.check_sizes(*recorder.sizes(), logprobs.shape[-1])
        prediction = predict(self, recorder, row)
        config = self.predictor.config

        def log_weights(tokens: mx.array | None) -> mx.array:
            if tokens is None:
                self.full_steps.append(self._step)
            outputs = prediction.head_outputs(row, tokens)
            weights = kernels.log_weights(*outputs, remaining, config.thresholds)
            if tokens is None:
                weights = self.predictor.over_vocabulary(weights, -mx.inf)
            return weights

        self.guided_steps.append(self._step)
        # The tokens that a predictor knows, if not all, are few, and bring no wait.
        tolerance = 0.0 if config.known_tokens else self._tolerance
        guided = candidates.guided_logprobs(
            logprobs, log_weights, self._temp, tolerance, candidates.CANDIDATES
        )
        return self._guided(guided)


def _draws(seed: int | None) -> Iterator[int] | None:
    """Seeds of one draw each, or None to draw from MLX's generator as it is."""
    if seed is None:
        return None
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed must be 0 to 2^32 - 1, not {seed}.")
    return itertools.count(seed << 32)


def _seeded(
    sampler: Callable[[mx.array], mx.array], draws: Iterator[int] | None
) -> Callable[[mx.array], mx.array]:
    if draws is None:
        return sampler

    def sample(logprobs: mx.array) -> mx.array:
        mx.random.seed(next(draws))
        return sampler(logprobs)

    return sample


def encode_prompt(
    tokenizer: TokenizerWrapper, prompt: str | list[int] | mx.array
) -> list[int]:
    """Token ids of a prompt, encoded as ``mlx_lm.stream_generate`` does."""
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return list(tokenizer.encode(prompt, add_special_tokens=special))
    return prompt.tolist() if isinstance(prompt, mx.array) else list(prompt)
