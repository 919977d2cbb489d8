"""Thinking that ends where a trial answer is sure, or stays the same.

Found afterwards in the replies without a budget: with the same draws thinking is the
same up to any exit, so what comes of it is what would have come of it at once. DEER
(Yang et al., arXiv 2504.15895) and Dynasor (Fu et al., arXiv 2412.20993). Knows
outcomes and records; nothing of how answers are graded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx

from ...engine.closing import closing_of
from ...engine.draws import read_chosen, read_token
from ...engine.plain import ReplySampler
from ...engine.rows import current_step
from ...engine.settings import ThinkingBudget
from ...engine.thinking import ThinkingTracker
from ..outcomes import (
    Counts,
    Maker,
    Outcome,
    Request,
    answer_in,
    behind_close,
    counts_of,
    drawing_from,
    recorded,
    tokens_of,
    with_probes,
)
from .following import Paragraphs
from .words import REFLECTION, words_of

CONFIDENCE_RULE, AGREEMENT_RULE = "confidence", "agreement"
# Probability of a trial answer's tokens, as a geometric mean, that is sure enough.
CONFIDENCE = 0.95
# Trial answers in a row that have to be the same.
SAME = 3
# Most tokens of a trial answer.
PROBE_TOKENS = 20
# Thinking tokens from one trial answer to the next at least, where they are to agree:
# an eighth of the budget, and Dynasor's 32 at most.
_MOST_SPACING, _SPACING_SHARE = 32, 1 / 8
# What asks for a trial answer where answers are put in a box.
BOX = "\n**Final Answer**\n\\boxed{"
# A trial answer with one of these is not meant as one.
_UNSURE = ("wait", "hold", "but", "okay", "no", "hmm")


@dataclass(frozen=True)
class _Place:
    """A place in the thinking of a reply.

    Attributes:
        tokens: Before it.
        thinking: Those of them that are thinking.
        ending: What closes thinking there, as a cut at the budget does.
    """

    tokens: int
    thinking: int
    ending: tuple[int, ...]


@dataclass
class _Probed:
    """A question on its way through its trial answers.

    Attributes:
        index: Its place among the requests.
        tokens: Of the reply without a budget.
        places: Where there is to be a trial answer.
        cut: Where the budget ends thinking; None if the model ends it before.
        answers: Trial answers so far.
        exit: Where one of them has ended thinking, if one has.
        probe_tokens, seconds: What they took.
    """

    index: int
    request: Request
    tokens: list[int]
    places: list[_Place] = field(default_factory=list)
    cut: _Place | None = None
    answers: list[str] = field(default_factory=list)
    exit: _Place | None = None
    probe_tokens: int = 0
    seconds: float = 0.0

    @property
    def end(self) -> _Place | None:
        """Where thinking ends, unless where the model ended it."""
        return self.exit or self.cut


def leave_early(
    maker: Maker,
    requests: Sequence[Request],
    thinking: ThinkingBudget,
    rule: str,
    boxes: bool,
    **options: Any,
) -> Iterator[tuple[int, Outcome]]:
    """Finds where each reply would have been ended, and lets it answer there.

    Args:
        maker (Maker): Makes trial answers and answers.
        requests (Sequence): The questions, with their replies without a budget.
        thinking (ThinkingBudget): The budget, at which thinking is cut at the latest,
            and the message before a close.
        rule (str): "confidence" or "agreement".
        boxes (bool): Whether answers are put in a ``\\boxed{}``. Else a trial answer is
            what the model answers when thinking is closed.
        options: Of `stream_batch_generate`, for the answers.

    Yields:
        tuple[int, Outcome]: The place of each request and what came of it, many at a
        time, so that a run that is stopped loses few.
    """
    is_done = {CONFIDENCE_RULE: _is_sure, AGREEMENT_RULE: _is_same}[rule]
    for start in range(0, len(requests), maker.batch_size):
        chunk = requests[start : start + maker.batch_size]
        probed = [
            _find_places(maker, start + i, request, thinking, rule)
            for i, request in enumerate(chunk)
        ]
        _probe(maker, probed, thinking, boxes, is_done)
        yield from _answer(maker, probed, thinking, options)


def _find_places(
    maker: Maker, index: int, request: Request, thinking: ThinkingBudget, rule: str
) -> _Probed:
    """Where trial answers are tried: at ends of paragraphs.

    Those that are to be sure come before a paragraph that begins with a word of
    reflection, as DEER's before "Wait"; those that are to agree at some distance.
    """
    budget = thinking.ceiling or 0
    spacing = min(_MOST_SPACING, max(1, int(_SPACING_SHARE * budget)))
    tokenizer, markers = maker.tokenizer, maker.markers
    words = words_of(tokenizer, REFLECTION)
    tracker = ThinkingTracker(tokenizer, markers, request.prompt)
    close = closing_of(tokenizer, markers, request.prompt, thinking.message)

    def here(tokens: int) -> _Place:
        ending = close.tokens(tracker, is_line_ended=tracker.after_newline)
        return _Place(tokens, tracker.thinking_tokens, ending)

    tokens = tokens_of(tokenizer, request.full) if request.full else []
    probed, paragraphs, last = _Probed(index, request, tokens), Paragraphs(), 0
    end: _Place | None = None
    for i, token in enumerate(tokens, 1):
        if end is not None and rule == CONFIDENCE_RULE and words.begun_by(token):
            probed.places.append(end)
        tracker.update(token)
        used = tracker.thinking_tokens
        if tracker.closed_by is not None:
            break
        if tracker.thinking and used >= budget and not tracker.is_mid_character:
            probed.cut = here(i)
            break
        ends = paragraphs.ended_with(tokenizer.decode([token]))
        end = here(i) if ends and tracker.thinking else None
        if end is not None and rule == AGREEMENT_RULE and used - last >= spacing:
            probed.places.append(end)
            last = used
    return probed


def _probe(
    maker: Maker,
    probed: list[_Probed],
    thinking: ThinkingBudget,
    boxes: bool,
    is_done: Callable[[list[str], float], bool],
) -> None:
    """Tries answers, place by place, all questions at once."""
    tokenizer = maker.tokenizer
    box = tuple(tokenizer.encode(BOX, add_special_tokens=False))
    for place in range(max((len(p.places) for p in probed), default=0)):
        asked = [p for p in probed if p.exit is None and place < len(p.places)]
        asking = [box if boxes else p.places[place].ending for p in asked]
        prompts = [
            [*p.request.prompt, *p.tokens[: p.places[place].tokens], *put_in]
            for p, put_in in zip(asked, asking, strict=True)
        ]
        trials = _Trials(tokenizer, boxes)
        for reply, seconds in maker.replies(
            prompts,
            max_tokens=PROBE_TOKENS,
            make_sampler=trials,
            predictor=False,
            keeps_prompts=False,
        ):
            p, trial = asked[reply.index], trials.samplers[reply.index]
            p.probe_tokens += len(asking[reply.index]) + len(trial.tokens)
            p.seconds += seconds
            p.answers.append(trial.answer)
            if is_done(p.answers, trial.confidence):
                p.exit = p.places[place]


def _answer(
    maker: Maker,
    probed: list[_Probed],
    thinking: ThinkingBudget,
    options: dict[str, Any],
) -> Iterator[tuple[int, Outcome]]:
    """Lets those answer whose thinking has been ended; the others have answered."""
    closed = []
    for p in probed:
        if p.end is not None:
            closed.append((p, p.end))
        elif p.request.full is not None:
            done = recorded(
                p.request.full, answer_in(maker, p.request.prompt, p.tokens)
            )
            took = (p.probe_tokens, p.seconds, {"trial_answers": p.answers})
            yield p.index, with_probes(done, *took)
    if not closed:
        return
    prompts, limits = [], []
    for p, end in closed:
        prompts.append([*p.request.prompt, *p.tokens[: end.tokens], *end.ending])
        left = maker.options["max_tokens"] - end.tokens - len(end.ending)
        limits.append(max(1, left))
    seeds = [p.request.seed for p, _ in closed]
    options["keeps_prompts"] = False  # nobody else asks so much of a reply
    options |= behind_close(maker.markers)
    # As the tokens of one reply, so that draws are those of a reply that was cut.
    options["make_sampler"] = [
        partial(drawing_from, end.tokens + len(end.ending)) for _, end in closed
    ]
    for reply, seconds in maker.replies(prompts, seeds, max_tokens=limits, **options):
        p, end = closed[reply.index]
        full = p.request.full or {}
        # Its share of what thinking took without a budget.
        share = end.tokens / max(full.get("total_tokens", 0), 1)
        own = Counts(
            thinking=end.thinking,
            marker=end.tokens - end.thinking,
            forced=len(end.ending),
            probe=p.probe_tokens,
        )
        begun = maker.tokenizer.decode([*p.tokens[: end.tokens], *end.ending])
        yield (
            p.index,
            Outcome(
                text=begun + reply.text,
                answer=None if reply.is_thinking else reply.answer,
                counts=own + counts_of(reply),
                prompt_tokens=len(p.request.prompt),
                finish_reason=reply.finish_reason,
                closed_by="budget" if p.exit is None else "exit",
                budget=thinking.ceiling,
                seconds=share * full.get("seconds", 0.0) + p.seconds + seconds,
                notes={"trial_answers": p.answers},
            ),
        )


class TrialSampler(ReplySampler):
    """Takes the likeliest tokens of a trial answer, and how likely they are.

    Attributes:
        tokens: So far.
    """

    def __init__(self, tokenizer: Any, boxes: bool):
        super().__init__()
        self._tokenizer = tokenizer
        self._boxes = boxes
        self._is_over = False
        self._logprobs: list[float] = []
        self.tokens: list[int] = []

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Chooses the next token, as `PlainSampler` does; an end when it is over."""
        if (step := current_step()) is not None:
            step.claim(self)
        best = mx.argmax(logprobs, axis=-1)  # (1,)
        token = read_chosen(best)
        ends = self._tokenizer.eos_token_ids
        if self._is_over or token in ends or len(self.tokens) >= PROBE_TOKENS:
            self._is_over = True
            return mx.array([min(ends)], dtype=mx.uint32)
        self.tokens.append(token)
        chosen = logprobs.astype(mx.float32)[0, token]
        self._logprobs.append(read_token(chosen))
        self._is_over = self._ends()
        return best

    @property
    def answer(self) -> str:
        """The trial answer."""
        text = self._tokenizer.decode(self.tokens)
        return (text[: _box_end(text)] if self._boxes else text).strip()

    @property
    def confidence(self) -> float:
        """Geometric mean of its tokens' probabilities, 0 without a token."""
        if not self._logprobs:
            return 0.0
        return math.exp(sum(self._logprobs) / len(self._logprobs))

    def _ends(self) -> bool:
        text = self._tokenizer.decode(self.tokens)
        if self._boxes:
            return _box_end(text) < len(text)
        return bool(text.strip()) and text.endswith("\n")


def _box_end(text: str) -> int:
    """Where the brace that a text was begun behind is closed, or its length."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return i
    return len(text)


@dataclass
class _Trials:
    """Makes the samplers of trial answers, and keeps them."""

    tokenizer: Any
    boxes: bool
    samplers: list[TrialSampler] = field(default_factory=list)

    def __call__(self, *_: Any, **__: Any) -> TrialSampler:
        self.samplers.append(TrialSampler(self.tokenizer, self.boxes))
        return self.samplers[-1]


def _is_sure(answers: list[str], confidence: float) -> bool:
    return bool(answers[-1]) and confidence > CONFIDENCE


def _is_same(answers: list[str], confidence: float) -> bool:
    last = answers[-SAME:]
    words = answers[-1].lower().split()
    is_meant = bool(words) and not any(w.strip(".,") in _UNSURE for w in words)
    return is_meant and len(last) == SAME and len(set(last)) == 1
