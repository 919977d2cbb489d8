"""The budget sampler: an ordinary mlx-lm sampler that steers thinking to a budget.

The one stateful step of the method: it follows the reply, decides at each step whether
to leave the model alone, guide it or close its thinking, and returns the next token.
Knows mlx-lm's generation loop; nothing of files, Hub or terminal.
"""

import math
import weakref
from collections import deque

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from . import guidance
from .hidden_states import HiddenStateRecorder, active_recorder
from .predictor import Predictor
from .thinking import ThinkingTracker, find_markers

DEFAULT_HARD_STOP = 1.1
MAX_BUDGET = 2**31 - 1


def make_budget_sampler(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    predictor: Predictor | bool | None = None,
    *,
    prompt: str | list[int] | mx.array,
    thinking_budget: int | None = None,
    hard_stop: float | None = DEFAULT_HARD_STOP,
    thinking_budget_message: str | None = None,
    thinking_start: str | None = None,
    thinking_end: str | None = None,
    temp: float = 0.0,
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
        thinking_budget (int, optional): Tokens of thinking: None or -1 for no budget,
            0 to close thinking at once, N > 0 to steer to N tokens.
        hard_stop (float, optional): Past the budget thinking is closed at the first
            newline, and at ``hard_stop * thinking_budget`` tokens wherever it is. None
            leaves it to guidance alone, as in the paper.
        thinking_budget_message (str, optional): Text put before the closing marker on
            a forced close.
        thinking_start (str, optional): Opening marker, in place of the tokenizer's.
        thinking_end (str, optional): Closing marker, in place of the tokenizer's.
        temp (float): Sampling temperature, 0 for the most likely token.
        sampling: The other options of ``mlx_lm.sample_utils.make_sampler``.

    Returns:
        BudgetSampler: Log-probabilities (1, V) in, token (1,) out.

    Raises:
        ValueError: If the budget cannot be honoured, with the reason and the way out.
    """
    budget = check_budget(thinking_budget)
    check_hard_stop(hard_stop)
    check_temperature(temp)
    plain = make_sampler(temp=temp, **sampling)
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
        guided=make_sampler(temp=1.0 if temp > 0 else 0.0, **sampling),
        temp=temp,
        predictor=predictor or None,
        tracker=ThinkingTracker(tokenizer, markers, ids),
        last_prompt_token=ids[-1],
        budget=budget,
        limit=thinking_limit(budget, hard_stop),
        message=message,
    )


class BudgetSampler:
    """The state of one request: call it as mlx-lm calls a sampler.

    Attributes:
        forced_steps: Indices, from 0, of the tokens it put in to close thinking.
        guided_steps: Indices of the tokens that were chosen under guidance.
    """

    def __init__(
        self,
        model: nn.Module,
        plain,
        *,
        guided=None,
        temp: float = 0.0,
        predictor: Predictor | None = None,
        tracker: ThinkingTracker | None = None,
        last_prompt_token: int | None = None,
        budget: int | None = None,
        limit: int | None = None,
        message: tuple[int, ...] = (),
    ):
        self._model = model
        self._plain = plain
        self._guided = guided
        self._temp = temp
        self._predictor = predictor
        self._tracker = tracker
        self._budget = budget
        self._limit = limit
        self._message = message
        self._closing: deque[int] = deque()
        self._step = 0
        self._token: mx.array | None = None
        # What the last forward pass must have been given, and what it was given.
        self._expected_input = last_prompt_token
        self._seen_input: tuple[mx.array, int] | None = None
        self.forced_steps: set[int] = set()
        self.guided_steps: list[int] = []
        self._lease = None
        if budget is not None:
            recorder = HiddenStateRecorder.acquire(model, states=bool(predictor))
            self._lease = weakref.finalize(self, recorder.release)

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
        if recorder is None:
            raise ValueError("This budget sampler was closed: make a new one.")
        if self._step > 0:
            # The device computes this step while the host waits for the last token.
            mx.async_eval(logprobs)
            self._read_last_token()
        if recorder.inputs is not None:
            self._seen_input = (recorder.inputs, row)
        self._token = self._choose(logprobs, recorder, row)
        self._step += 1
        return self._token

    def _read_last_token(self) -> None:
        token = self._token.item()
        self._tracker.update(token, forced=self._step - 1 in self.forced_steps)
        if self._seen_input is not None:
            inputs, row = self._seen_input
            # Computed before the last token was, so this does not wait.
            if np.array(inputs)[row, 0] != self._expected_input:
                self.close()
                raise ValueError(
                    "This budget sampler follows another request: the token fed to the "
                    "model is not the one it chose. Make a sampler for each request, "
                    "with that request's own prompt."
                )
        self._expected_input = token

    def _choose(
        self, logprobs: mx.array, recorder: HiddenStateRecorder, row: int
    ) -> mx.array:
        if not self._closing and self._must_close():
            self._closing.extend(self._closing_tokens())
        if self._closing:
            self.forced_steps.add(self._step)
            return mx.array([self._closing.popleft()], dtype=mx.uint32)
        if self._is_guided():
            return self._choose_guided(logprobs, recorder.states(row))
        return self._plain(logprobs)

    def _must_close(self) -> bool:
        if not self._tracker.thinking:
            return False
        used = self._tracker.thinking_tokens
        if self._budget == 0:
            return True
        if self._limit is None:
            return False
        over = used >= self._budget and self._tracker.after_newline
        return over or used >= self._limit

    def _closing_tokens(self) -> tuple[int, ...]:
        missing = self._tracker.missing_end_tokens()
        begun = len(missing) < len(self._tracker.markers.end_tokens)
        return missing if begun else self._message + missing

    def _is_guided(self) -> bool:
        tracker = self._tracker
        return (
            self._predictor is not None
            and tracker.thinking
            and tracker.blocks == 1
            and (tracker.thinking_tokens == 0 or tracker.after_newline)
        )

    def _choose_guided(self, logprobs: mx.array, states: mx.array) -> mx.array:
        self._predictor.check_sizes(
            states.shape[2], states.shape[1] - 1, logprobs.shape[-1]
        )
        remaining = max(1, self._budget - self._tracker.thinking_tokens)
        concentration, rate = self._predictor(states)
        weights = guidance.log_weights(
            concentration, rate, remaining, self._predictor.config.thresholds
        )
        self.guided_steps.append(self._step)
        return self._guided(guidance.guided_logprobs(logprobs, weights, self._temp))


def check_budget(thinking_budget: int | None) -> int | None:
    """The budget in tokens, or None for no budget.

    Raises:
        ValueError: If it is not an integer or below -1.
    """
    if thinking_budget is None:
        return None
    if isinstance(thinking_budget, bool) or not isinstance(thinking_budget, int):
        raise ValueError(
            f"thinking_budget must be an integer number of tokens, not "
            f"{thinking_budget!r}."
        )
    if thinking_budget > MAX_BUDGET:
        raise ValueError(
            f"thinking_budget must be at most {MAX_BUDGET:,}, not {thinking_budget:,}."
        )
    if thinking_budget < -1:
        raise ValueError(
            f"thinking_budget must be -1 (no budget), 0 (close thinking at once) or "
            f"more, not {thinking_budget}."
        )
    return None if thinking_budget == -1 else thinking_budget


def check_hard_stop(hard_stop: float | None) -> None:
    """Raises a ValueError unless ``hard_stop`` is None or a finite factor >= 1."""
    if hard_stop is None:
        return
    number = isinstance(hard_stop, int | float) and not isinstance(hard_stop, bool)
    if not number or not 1 <= hard_stop < math.inf:
        raise ValueError(
            f"hard_stop must be a factor of the budget, 1 or more, or None; not "
            f"{hard_stop!r}."
        )


def check_temperature(temp: float) -> None:
    """Raises a ValueError unless ``temp`` is a finite number >= 0."""
    if not 0 <= temp < math.inf:
        raise ValueError(f"temp must be finite and 0 or more, not {temp}.")


def check_enforceable(
    budget: int | None, predictor: Predictor | bool | None, hard_stop: float | None
) -> None:
    """Raises a ValueError if nothing would hold the reply to its budget."""
    if not budget:
        return
    if predictor is None:
        raise ValueError(
            "A thinking budget needs a predictor, and none was found beside the model. "
            "Name one with --predictor, or ask for the hard stop alone with "
            "--predictor none (predictor=False in Python)."
        )
    if predictor is True or not isinstance(predictor, Predictor | bool):
        raise ValueError(
            f"predictor must be a Predictor, or False for none; not {predictor!r}. "
            "`mlx_budget.load` returns one."
        )
    if predictor is False and hard_stop is None:
        raise ValueError(
            "Without a predictor and without the hard stop nothing would hold thinking "
            "to its budget: leave one of them on."
        )


def thinking_limit(budget: int | None, hard_stop: float | None) -> int | None:
    """Most thinking tokens a reply can have, or None if nothing bounds them."""
    if budget is None or hard_stop is None:
        return None
    # 1.1 * 10 is a little more than 11 in binary: do not lose a token to rounding.
    return math.floor(min(hard_stop * budget + 1e-6, MAX_BUDGET))


def encode_prompt(
    tokenizer: TokenizerWrapper, prompt: str | list[int] | mx.array
) -> list[int]:
    """Token ids of a prompt, encoded as ``mlx_lm.stream_generate`` does."""
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return list(tokenizer.encode(prompt, add_special_tokens=special))
    return prompt.tolist() if isinstance(prompt, mx.array) else list(prompt)
