"""The positions to train on and those that are held out, and what is measured there.

Knows the cached positions and predicted distributions; nothing of predictors or of
updates. K is the number of tokens that came next at a training position.
"""

import mlx.core as mx
import numpy as np

from .baselines import fit_tokens
from .cache import StateCache
from .collapse import has_collapsed, response
from .learner import losses_of
from .report import Predictions

# A predictor begins without a response. What has none after so many updates at the full
# learning rate, by so many validations in a row, gets none any more: healthy ones have
# a hundred times the least after 20 updates.
PATIENCE = 100
COLLAPSED_VALIDATIONS = 3


class Split:
    """The positions of a cache.

    Attributes:
        train: Places of the training positions.
        validation: Places of the held-out positions whose token was trained on.
        unseen: Number of the other held-out ones.
        rows: Of all positions, the place of the token that came next among the K.
        certain: L of the tokens after which it is always the same, 0 of others, shape
            (K,).
        positions: What is known of all positions.

    Args:
        cache (StateCache): With all records in it.
        tokens (np.ndarray): The K tokens, ascending.
    """

    def __init__(self, cache: StateCache, tokens: np.ndarray):
        p = self.positions = cache.positions()
        self._records = cache.records
        self.rows = np.searchsorted(tokens, p.tokens)
        # A held-out position may ask for a token that was never trained.
        is_known = tokens[np.minimum(self.rows, len(tokens) - 1)] == p.tokens
        self.train = np.flatnonzero(~p.is_validation)
        self.validation = np.flatnonzero(p.is_validation & is_known)
        self.unseen = int((p.is_validation & ~is_known).sum())
        gammas = fit_tokens(p.tokens[self.train], p.lengths[self.train])
        self.certain = gammas.certain
        self._is_open = gammas.is_open(p.tokens[self.validation])

    def measure(self, outputs: np.ndarray) -> dict[str, float]:
        """What the learning curves hold of a validation.

        Args:
            outputs (np.ndarray): Concentration and rate at the validation positions,
                shape (2, n).

        Returns:
            dict: val_loss, in nats; where there are positions whose length the next
            token leaves open, their open_loss and, where it is known, their response.
        """
        lengths = mx.array(self.positions.lengths[self.validation])
        losses = np.array(losses_of(lengths, *map(mx.array, outputs)), np.float64)
        found = {"val_loss": float(losses.mean())}
        if self._is_open.any():
            found["open_loss"] = float(losses[self._is_open].mean())
        answer = self.response(outputs)
        return found if answer is None else {**found, "response": answer}

    def response(self, outputs: np.ndarray) -> float | None:
        """`collapse.response` at the validation positions that are open."""
        p, rows = self.positions, self.validation[self._is_open]
        concentration, rate = outputs[:, self._is_open]
        return response(concentration, rate, p.tokens[rows], p.lengths[rows])

    def predictions(self, outputs: np.ndarray) -> Predictions:
        """What the report is made of.

        Args:
            outputs (np.ndarray): As of `measure`.
        """
        p, rows = self.positions, self.validation
        replies = p.record[rows]
        prompts = {}
        for name in ("prompt_tokens", "prompt_digits"):
            values = [getattr(self._records[reply], name) for reply in replies]
            if None not in values:
                prompts[name] = np.array(values)
        return Predictions(
            concentration=outputs[0],
            rate=outputs[1],
            tokens=p.tokens[rows],
            lengths=p.lengths[rows],
            is_first=p.is_first[rows],
            replies=replies,
            train_tokens=p.tokens[self.train],
            train_lengths=p.lengths[self.train],
            prompts=prompts,
        )


def stays_collapsed(curves: list[dict[str, float]], warmup: int) -> bool:
    """Whether the last validations all found the predictor collapsed.

    Args:
        curves (list): Of the run so far, with what `Split.measure` finds.
        warmup (int): Updates of the warm-up.
    """
    last = [row for row in curves if "val_loss" in row][-COLLAPSED_VALIDATIONS:]
    is_late = bool(last) and last[-1]["step"] >= warmup + PATIENCE
    return is_late and all(has_collapsed(row.get("response")) for row in last)
