"""What a chat template says about thinking: where a reply begins, how thinking ends.

It is found by rendering a small conversation with and without the part that the
template adds for the reply, and with thinking switched off. Knows chat templates;
nothing of replies or budgets.
"""

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .markers import ThinkingMarkers, markers_of
from .settings import PromptOptions, ThinkingBudget

# Variables by which templates leave thinking out, tried in this order: Qwen3, GLM,
# SmolLM3 and others; DeepSeek V3.1, Granite and Kimi; Seed-OSS; gpt-oss-like ones;
# Hunyuan 3.
SWITCHES: tuple[dict[str, Any], ...] = (
    {"enable_thinking": False},
    {"thinking": False},
    {"thinking_budget": 0},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "no_think"},
)
# Variables by which templates let a model think that does not by itself. The first is
# for models whose markers mlx-lm does not know, which it tells not to.
SWITCHES_ON: tuple[dict[str, Any], ...] = (
    {"enable_thinking": True},
    {"thinking": True},
    {"reasoning_effort": "high"},
)
_QUESTION = "How many primes are below 100?"


@dataclass(frozen=True)
class TemplateFacts:
    """What a chat template does about thinking.

    Attributes:
        tails: What the template puts behind a question that comes last, thinking on
            and off; none of them empty.
        headers: Texts with which the part for the reply begins, up to a thinking
            marker; none of them empty.
        before_end: White space between thinking and the closing marker.
        after_end: White space between the closing marker and the answer.
        switch: Arguments that make the template leave thinking out, if it can.
        switch_on: Arguments that make it let the model think, if it needs any.
    """

    tails: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    before_end: str = ""
    after_end: str = ""
    switch: dict[str, Any] | None = None
    switch_on: dict[str, Any] | None = None


_facts: weakref.WeakKeyDictionary[TokenizerWrapper, tuple[Any, TemplateFacts]] = (
    weakref.WeakKeyDictionary()
)


def template_facts(
    tokenizer: TokenizerWrapper, markers: ThinkingMarkers
) -> TemplateFacts:
    """The facts of a tokenizer's chat template; of one without, that it says nothing.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        markers (ThinkingMarkers): Of its model.
    """
    key = (str(tokenizer.chat_template), markers)
    known = _facts.get(tokenizer)
    if known is None or known[0] != key:
        facts = TemplateFacts()
        if tokenizer.has_chat_template:
            facts = _read(tokenizer, markers)
        known = _facts[tokenizer] = key, facts
    return known[1]


def reply_part(
    tokenizer: TokenizerWrapper, markers: ThinkingMarkers, prompt: Sequence[int]
) -> str:
    """The part of a prompt that belongs to the reply already.

    It is what the template adds for the reply, and how the reply has begun behind that.
    What a user quotes is not in it. Of a prompt that the template has not made it is
    the whole.
    """
    facts = template_facts(tokenizer, markers)
    text = tokenizer.decode(list(prompt))
    if tails := [tail for tail in facts.tails if text.endswith(tail)]:
        return max(tails, key=len)
    ends = [i for i, t in enumerate(prompt) if t in tokenizer.eos_token_ids]
    if ends:
        text = tokenizer.decode(list(prompt[ends[-1] + 1 :]))
    places = [text.rfind(header) for header in facts.headers]
    return text[max(places, default=-1) + 1 :]


def ask_template(
    tokenizer: TokenizerWrapper, thinking: ThinkingBudget, template: PromptOptions
) -> tuple[PromptOptions, dict[str, Any] | None]:
    """Lets the template do what a budget asks, in its own way.

    A budget of 0 leaves thinking out. Any other, or a floor, lets a model think whose
    template leaves thinking out by default.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        thinking (ThinkingBudget): The budget.
        template (PromptOptions): How the prompt is made otherwise.

    Returns:
        tuple: How the prompt is made with it, and the arguments that were added for
        that, such as ``{"enable_thinking": False}``. None if there is no budget, the
        template has no such way or needs none, or its arguments were given: the budget
        alone holds then.
    """
    markers = markers_of(tokenizer, thinking)
    if thinking.is_free or markers is None or template.ignore_chat_template:
        return template, None
    facts = template_facts(tokenizer, markers)
    switch = facts.switch if thinking.tokens == 0 else facts.switch_on
    given = template.chat_template_config or {}
    if switch is None or any(name in given for name in switch):
        return template, None
    return replace(template, chat_template_config={**given, **switch}), switch


def let_think(
    tokenizer: TokenizerWrapper, thinking: ThinkingBudget, template: PromptOptions
) -> PromptOptions:
    """How a prompt is made for thinking that matters, whatever budget it has.

    Args:
        tokenizer, thinking, template: As in `ask_template`.
    """
    return ask_template(tokenizer, replace(thinking, tokens=1, least=0), template)[0]


def switch_line(switch: dict[str, Any]) -> str:
    """How `ask_template` has had a budget's way, for statistics."""
    is_on = switch in SWITCHES_ON
    what = "Thinking let in" if is_on else "Left out"
    return f"{what} by the chat template: {json.dumps(switch)}"


def _read(tokenizer: TokenizerWrapper, markers: ThinkingMarkers) -> TemplateFacts:
    parts = _Parts(tokenizer, markers)
    usual = parts.of({})
    on = None
    if parts.leaves_out(usual):
        letting = (a for a in SWITCHES_ON if not parts.leaves_out(parts.of(a)))
        on = next(letting, None)
    thinking = parts.of(on or {})
    switch, between, after = None, "", ""
    # What lets the model think is what is switched off.
    for arguments in sorted(SWITCHES, key=lambda a: on is not None and [*a] != [*on]):
        part = parts.of(arguments)
        if part in (None, thinking):
            continue
        is_without = bool(markers.start) and markers.start in (thinking or "")
        is_without &= markers.start not in part
        is_closed = parts.leaves_out(part)
        if switch is None and (is_closed or is_without):
            switch = arguments
            if is_closed:
                head, _, rest = part.rpartition(markers.end)
                between, after = head[len(head.rstrip()) :], rest
    return TemplateFacts(
        tails=parts.tails,
        headers=parts.headers,
        before_end=between,
        after_end=after if not after.strip() else "",
        switch=switch,
        switch_on=on,
    )


class _Parts:
    """What a template adds for the reply under several arguments.

    Attributes:
        tails, headers: As in `TemplateFacts`, of all that was asked.
    """

    def __init__(self, tokenizer: TokenizerWrapper, markers: ThinkingMarkers):
        self._tokenizer = tokenizer
        self._markers = markers
        self.tails: tuple[str, ...] = ()
        self.headers: tuple[str, ...] = ()

    def of(self, arguments: dict[str, Any]) -> str | None:
        """The part; None if the template cannot be rendered with the arguments."""
        try:
            without, with_part = (
                self._tokenizer.apply_chat_template(
                    [{"role": "user", "content": _QUESTION}],
                    tokenize=False,
                    add_generation_prompt=is_added,
                    **arguments,
                )
                for is_added in (False, True)
            )
        except Exception:  # templates raise what their authors like
            return None
        tail = with_part.rpartition(_QUESTION)[2] if _QUESTION in with_part else ""
        # Some templates add it whether they are asked to or not.
        part = with_part[len(commonprefix([without, with_part])) :] or tail
        header = _up_to_marker(part, self._markers)
        self.tails += (tail,) if tail and tail not in self.tails else ()
        self.headers += (header,) if header and header not in self.headers else ()
        return part

    def leaves_out(self, part: str | None) -> bool:
        """Whether thinking is closed in a part."""
        start, end = self._markers.start, self._markers.end
        if part is None or end not in part:
            return False
        return not start or part.rfind(end) > part.rfind(start)


def _up_to_marker(part: str, markers: ThinkingMarkers) -> str:
    places = [part.find(m) for m in (markers.start, markers.end) if m and m in part]
    return part[: min(places, default=len(part))].rstrip()
