"""What a user may ask of a reply: frozen values that are checked when they are made.

Public functions take their fields as flat keyword arguments, the command line as
options; inside, the values travel whole. Knows nothing of MLX or of how a value is
used.
"""

import hashlib
import json
import math
import operator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .budgets import (
    ABOUT,
    AT_MOST,
    MAX_BUDGET,
    AutoBudget,
    Budget,
    BudgetRange,
    Effort,
    about,
    check_budget,
)
from .context import check_unicode
from .fields import check_numbers, options_of, setting

if TYPE_CHECKING:
    from ..method.predictor import Predictor

MAX_SEED = 2**64 - 1
# Room for the answer after a budgeted block, and for a reply whose thinking nothing
# bounds, in tokens.
ANSWER_TOKENS = 2048
UNBOUNDED_TOKENS = 8192
# Prompt tokens that a model reads at a time, mlx-lm's default.
PREFILL_STEP_SIZE = 2048
# In float32, in which log-probabilities are divided by it, with room for them.
_LEAST_TEMP = 1e-30


@dataclass(frozen=True)
class ThinkingBudget:
    """How long a reply may think, and how that is held.

    Attributes:
        tokens: Tokens of thinking: None (or -1) for no budget, 0 to close thinking at
            once, N > 0 to steer to N; an `AutoBudget` (or "auto", "auto:0.63", "63%")
            for a share of what the predictor expects of the question; an `Effort` (or
            "low", "medium", "high" and the other levels) for such a share too, or for
            tokens where nothing predicts lengths; a `BudgetRange` (or two numbers, or
            "800-1000") to steer to a length between two.
        hard_stop: Past the budget thinking is closed at the first newline, and at
            ``hard_stop * tokens`` wherever it is. None leaves it to guidance alone, as
            in the paper.
        mode: What N tokens mean: "at-most" that thinking ends within them, "about" that
            it uses them as well: that it ends in the window that
            `mlx_budget.engine.budgets.about` gives. A range is its own window.
        least: Fewest tokens of thinking. Until they are reached the model cannot close
            its thinking, nor end its reply in it, and is steered to go on beyond them.
        message: Text put before the closing marker on a forced close; "auto" for the
            sentence that the model's family is known to obey. If it has the closing
            marker in it, what stands behind that begins the answer.
        prefix: Text with which the reply begins, as if the model had written it: in
            its thinking where the prompt has opened that, markers and all.
        start: Opening marker, in place of the tokenizer's; "" if replies begin by
            thinking.
        end: Closing marker, in place of the tokenizer's.
        answer_anyway: Whether a reply with a budget that the model would end inside its
            thinking, or before it has answered, is made to close it and answer.
        stop_loops: Whether thinking that has gone into a loop is led to its end, and
            closed if that does not help. None does so with a budget or a floor, unless
            ``hard_stop`` is None.
        guidance_tolerance: Guided steps evaluate the likeliest tokens alone while the
            total variation distance to the result of the whole vocabulary, before
            top-p and the like, is at most this; at ``temp=0`` the token is the same,
            to the rounding of the predictor's type. 0 evaluates the whole vocabulary.

    Raises:
        ValueError: Naming the value that is not allowed.
    """

    GROUP: ClassVar[str] = "Thinking"

    tokens: Budget = setting(
        None,
        "Tokens to think, such as 500: 0 to answer at once, -1 for no budget; 800-1000 "
        "for between 800 and 1,000; a level: low, medium or high (also none, minimal, "
        "xhigh, max); auto for as many as the predictor expects of the question, 50% "
        "or auto:0.5 for half of them.",
        keyword="thinking_budget",
        flags=("--thinking-budget", "--reasoning-budget"),
        off="--no-thinking",
        off_help="Answer at once: a budget of 0.",
        off_value=0,
        shown="-1",
    )
    hard_stop: float | None = setting(
        1.1,
        "Close thinking at this multiple of the budget at the latest, and at the first "
        "newline past the budget.",
        off="--no-hard-stop",
        off_help="Leave closing to guidance alone.",
    )
    mode: str = setting(
        AT_MOST,
        "What the tokens of the budget mean: at most so many, or about so many, which "
        "are used as well.",
        keyword="budget_mode",
        choices=(AT_MOST, ABOUT),
    )
    least: int = setting(
        0,
        "Think for so many tokens at least, with a budget or without.",
        keyword="min_thinking_tokens",
        least=0,
        most=MAX_BUDGET,
    )
    message: str | None = setting(
        None,
        "Text to put before the closing marker when the budget closes thinking; auto "
        "for the sentence that the model's family is known to obey. If the closing "
        "marker is in it, what stands behind that begins the answer.",
        keyword="thinking_budget_message",
    )
    prefix: str | None = setting(
        None,
        "Text that the reply begins with, as if the model had written it, such as "
        "[Easy] or [Hard], which AdaCtrl's models were taught and others do not know.",
        keyword="reply_prefix",
        group="Prompt",
    )
    answer_anyway: bool = setting(
        False,
        "With a budget, let the model close its thinking and answer where it would "
        "end its reply without an answer.",
        flags=("--answer-anyway/--no-answer-anyway",),
    )
    stop_loops: bool | None = setting(
        None,
        "End thinking that has gone into a loop.",
        flags=("--stop-loops/--no-stop-loops",),
        shown="with a budget, unless --no-hard-stop is given",
    )
    guidance_tolerance: float = setting(
        1e-3,
        "Guided steps evaluate the likeliest tokens alone while that shifts at most "
        "this much probability, and at temperature 0 never another token; 0 evaluates "
        "all.",
        least=0,
        most=1,
    )
    start: str | None = setting(
        None,
        "Text that opens thinking, if not the tokenizer's own; empty if replies begin "
        "by thinking.",
        keyword="thinking_start",
        flags=("--thinking-start-token",),
    )
    end: str | None = setting(
        None,
        "Text that closes thinking, if not the tokenizer's own.",
        keyword="thinking_end",
        flags=("--thinking-end-token",),
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", check_budget(self.tokens))
        hard_stop = self.hard_stop
        is_number = isinstance(hard_stop, Real) and not isinstance(hard_stop, bool)
        if hard_stop is not None and (not is_number or not 1 <= hard_stop < math.inf):
            raise ValueError(
                f"hard_stop must be a factor of the budget, 1 or more, or None; not "
                f"{hard_stop!r}."
            )
        tolerance = self.guidance_tolerance
        is_number = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
        if not is_number or not 0 <= tolerance <= 1:
            raise ValueError(
                f"guidance_tolerance must be 0 to 1 (0 evaluates every token), not "
                f"{tolerance!r}."
            )
        for name in ("hard_stop", "guidance_tolerance"):  # NumPy's become Python's
            if not isinstance(number := getattr(self, name), int | float | None):
                object.__setattr__(self, name, float(number))
        for f, option in options_of(self):
            text = getattr(self, f.name)
            is_text = f.name in ("message", "prefix", "start", "end")
            if is_text and not isinstance(text, str | None):
                raise ValueError(f"{option.keyword} must be a text, not {text!r}.")
            if is_text and text:
                check_unicode(text, option.keyword)
        if not isinstance(self.answer_anyway, bool):
            raise ValueError(
                f"answer_anyway must be True or False, not {self.answer_anyway!r}."
            )
        if self.stop_loops not in (None, True, False):
            raise ValueError(
                f"stop_loops must be True, False or None, not {self.stop_loops!r}."
            )
        check_numbers(self)
        if self.ceiling is not None and self.least > self.ceiling:
            raise ValueError(
                f"min_thinking_tokens is {self.least:,}, above the thinking budget of "
                f"{self.ceiling:,}: lower it, or raise the budget."
            )

    @property
    def free(self) -> "ThinkingBudget":
        """No budget, with all that was asked for which does not need one."""
        return ThinkingBudget(
            start=self.start,
            end=self.end,
            prefix=self.prefix,
            answer_anyway=self.answer_anyway,
            stop_loops=self.stop_loops,
        )

    @property
    def is_free(self) -> bool:
        """Whether thinking is left to the model."""
        return self.tokens is None and self.least == 0

    @property
    def watches_loops(self) -> bool:
        """Whether thinking that has gone into a loop is ended."""
        if self.stop_loops is not None:
            return self.stop_loops
        return not self.is_free and self.hard_stop is not None

    @property
    def is_steered(self) -> bool:
        """Whether a reply needs a sampler that follows it."""
        return not self.is_free or self.watches_loops

    @property
    def ceiling(self) -> int | None:
        """The budget in tokens; None without one, or as long as it is not known."""
        if isinstance(self.tokens, BudgetRange):
            return self.tokens.high
        return self.tokens if isinstance(self.tokens, int) else None

    @property
    def promised(self) -> int:
        """Fewest tokens of thinking that were asked for in so many words."""
        low = self.tokens.low if isinstance(self.tokens, BudgetRange) else 0
        return max(low, self.least)

    @property
    def bounds(self) -> tuple[int, int | None]:
        """Fewest and most tokens of thinking to steer to; None for no upper bound."""
        if self.mode == ABOUT and isinstance(self.tokens, int) and self.tokens:
            low, high = about(self.tokens)
            return max(low, self.least), max(high, self.least)
        return self.promised, self.ceiling

    @property
    def limit(self) -> int | None:
        """Most thinking tokens a reply can have, or None if nothing bounds them yet."""
        if self.ceiling is None or self.hard_stop is None:
            return None
        # 1.1 * 10 is a little more than 11 in binary: do not lose a token to rounding.
        return math.floor(min(self.hard_stop * self.ceiling + 1e-6, MAX_BUDGET))

    @property
    def max_tokens(self) -> int:
        """Room for all the thinking that the budget allows, and for an answer."""
        if self.limit is not None:
            return self.limit + ANSWER_TOKENS
        tokens = self.ceiling or self.least
        return max(UNBOUNDED_TOKENS, 2 * tokens + ANSWER_TOKENS)

    def for_length(self, median: float) -> "ThinkingBudget":
        """The same in tokens, for a question of this predicted length in tokens."""
        if not isinstance(self.tokens, AutoBudget):
            return self
        return replace(self, tokens=max(self.tokens.tokens(median), self.least))

    def without_prediction(self) -> "ThinkingBudget":
        """The same for a model whose lengths nothing predicts: a level is its tokens.

        A share stays one, which cannot be kept then.
        """
        if not isinstance(self.tokens, Effort):
            return self
        return replace(self, tokens=max(self.tokens.in_tokens, self.least))

    def check_room(self, max_tokens: int) -> None:
        """Raises a ValueError if a reply of so many tokens, or -1, cannot think enough.

        Nothing would be left of the limit for an answer either.
        """
        if 0 <= max_tokens <= self.promised:
            raise ValueError(
                f"max_tokens is {max_tokens:,}, and at least {self.promised:,} tokens "
                "of thinking are asked for: raise it, or ask for less thinking."
            )

    def at_most(self, most: int | None) -> "ThinkingBudget":
        """The same with a budget that passes no ceiling; the ceiling itself for none.

        Args:
            most (int, optional): The ceiling in tokens; None for no ceiling.
        """
        if most is None:
            return self
        tokens: Budget = most
        if isinstance(self.tokens, AutoBudget):
            ceiling = most if self.tokens.most is None else min(most, self.tokens.most)
            tokens = replace(self.tokens, most=ceiling)
        elif isinstance(self.tokens, BudgetRange):
            low, high = min(self.tokens.low, most), min(self.tokens.high, most)
            tokens = BudgetRange(low, high) if high > 0 else 0
        elif self.tokens is not None:
            tokens = min(self.tokens, most)
        return replace(self, tokens=tokens, least=min(self.least, most))


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the options of ``mlx_lm.sample_utils.make_sampler``.

    Under guidance they apply to the guided distribution.

    Attributes:
        temp: Sampling temperature, 0 for the likeliest token.
        top_p, min_p, min_tokens_to_keep, top_k: As mlx-lm has them; a `top_p` of 0 or 1
            and a `top_k` of 0 keep all tokens.
        xtc_probability, xtc_threshold: As mlx-lm has them.
        xtc_special_tokens: Token ids that XTC never removes; None for the newline and
            the tokens that end a reply.
        seed: 0 to 2^64 - 1: makes the draws of a request its own, whatever else is
            sampled beside it. None draws from MLX's global random generator.

    Raises:
        ValueError: Naming the value that is not allowed.
    """

    GROUP: ClassVar[str] = "Sampling"

    temp: float = setting(0.0, "Temperature; 0 takes the likeliest token.", least=0)
    top_p: float = setting(1.0, "Top-p.", least=0, most=1)
    min_p: float = setting(0.0, "Min-p.", least=0, most=1)
    top_k: int = setting(0, "Top-k; 0 for all.", least=0)
    min_tokens_to_keep: int = setting(1, "Tokens that min-p leaves at least.", least=1)
    xtc_probability: float = setting(0.0, "Chance of XTC.", least=0, most=1)
    xtc_threshold: float = setting(0.1, "Threshold of XTC.", least=0, most=0.5)
    xtc_special_tokens: tuple[int, ...] | None = setting(None)
    seed: int | None = setting(None, "Random seed.", least=0, most=MAX_SEED)

    def __post_init__(self) -> None:
        if not isinstance(self.temp, Real) or not 0 <= self.temp < math.inf:
            raise ValueError(f"temp must be finite and 0 or more, not {self.temp}.")
        if 0 < self.temp < _LEAST_TEMP:
            raise ValueError(
                f"temp must be 0 or at least {_LEAST_TEMP:g}, not {self.temp}: smaller "
                "ones have no inverse."
            )
        check_numbers(self)
        if self.xtc_special_tokens is not None:
            tokens = _token_ids("xtc_special_tokens", self.xtc_special_tokens)
            object.__setattr__(self, "xtc_special_tokens", tokens)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    tokens = value.tolist() if hasattr(value, "tolist") else value
    try:
        tokens = tuple(operator.index(token) for token in tokens)
    except TypeError:
        tokens = (-1,)
    if any(token < 0 for token in tokens):
        raise ValueError(f"{name} must be token ids, whole and 0 or more; not {value}.")
    return tokens


def seed_of(seed: int, *names: object) -> int:
    """The seed of one reply of many, which follows from that of all and its names.

    Args:
        seed (int): Of the whole run.
        names: What tells the reply from the others, as JSON has it.
    """
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class PromptOptions:
    """How a question becomes a prompt.

    Attributes:
        system_prompt: Put before the messages.
        chat_template_config: More arguments for the chat template.
        ignore_chat_template: Whether to use the text as it is.
    """

    GROUP: ClassVar[str] = "Prompt"

    system_prompt: str | None = setting(None, "System prompt for the chat template.")
    chat_template_config: dict[str, Any] | None = setting(
        None,
        "More arguments for the chat template, as a JSON object.",
        flags=("--chat-template-config", "--chat-template-args"),
    )
    ignore_chat_template: bool = setting(
        False, "Use the prompt as it is, without the chat template."
    )


@dataclass(frozen=True)
class ModelSource:
    """Where a model and its predictor come from.

    Attributes:
        model: Local folder or Hub name; "demo" for the built-in model.
        predictor: Folder or Hub name of the predictor, or a predictor. None takes the
            one beside the model, if there is one; False takes none.
        adapter_path: Folder of LoRA adapters to apply to the model.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        pipeline: Whether each of several processes gets some of the layers.
    """

    GROUP: ClassVar[str] = "Model"

    model: str = setting(
        "demo",
        "Folder or Hub name of the model: one made by `mlx-budget convert`, or any "
        "mlx-lm model.",
        shown="demo, the built-in one",
    )
    predictor: "str | Path | Predictor | bool | None" = setting(
        None,
        "Folder or Hub name of the predictor, if it is not beside the model: one that "
        "was converted or made here, or one of `mlx-budget predictors`, which is "
        "fetched and converted once; none for the hard stop alone.",
        words={"none": False},
    )
    adapter_path: str | None = setting(None, "Folder of LoRA adapters for the model.")
    revision: str | None = setting(None, "Branch, tag or commit of the model.")
    trust_remote_code: bool = setting(False, "Let code that comes with the model run.")
    pipeline: bool = setting(
        False,
        "Under mlx.launch: give each process some of the layers, in place of a part of "
        "every layer.",
    )


def check_kv_options(kv_bits: int | None, max_kv_size: int | None) -> None:
    """Raises a ValueError if a KV cache shall be both quantised and limited."""
    if kv_bits is not None and max_kv_size is not None:
        raise ValueError(
            "mlx-lm cannot quantise a KV cache of limited size: leave out --kv-bits or "
            "--max-kv-size (kv_bits or max_kv_size in Python)."
        )
