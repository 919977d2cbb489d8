"""What a chat template says about thinking: where a reply begins, how thinking ends.

It is found by rendering a small conversation with and without the part that the
template adds for the reply, and with thinking switched off. Knows chat templates;
nothing of replies or budgets.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .markers import ThinkingMarkers, markers_of
from .settings import PromptOptions, ThinkingBudget

# Variables by which templates leave thinking out, tried in this order: Qwen3, GLM,
# SmolLM3 and others; DeepSeek V3.1, Granite and Kimi; Seed-OSS; gpt-oss-like ones.
SWITCHES: tuple[dict[str, Any], ...] = (
    {"enable_thinking": False},
    {"thinking": False},
    {"thinking_budget": 0},
    {"reasoning_effort": "none"},
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
    """

    tails: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    before_end: str = ""
    after_end: str = ""
    switch: dict[str, Any] | None = None


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


def leave_out_thinking(
    tokenizer: TokenizerWrapper, thinking: ThinkingBudget, template: PromptOptions
) -> tuple[PromptOptions, dict[str, Any] | None]:
    """The template's own way to leave thinking out, for a budget of 0.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        thinking (ThinkingBudget): The budget.
        template (PromptOptions): How the prompt is made otherwise.

    Returns:
        tuple: How the prompt is made with it, and its arguments, such as
        ``{"enable_thinking": False}``. None if the budget is not 0, the template has no
        such way, or its arguments were given: thinking is closed by the budget then.
    """
    markers = markers_of(tokenizer, thinking)
    if thinking.tokens != 0 or markers is None or template.ignore_chat_template:
        return template, None
    given = template.chat_template_config or {}
    switch = template_facts(tokenizer, markers).switch
    if switch is None or any(name in given for name in switch):
        return template, None
    return replace(template, chat_template_config={**given, **switch}), switch


def _read(tokenizer: TokenizerWrapper, markers: ThinkingMarkers) -> TemplateFacts:
    # mlx-lm switches thinking off for models whose markers it does not know.
    usual, tail = _reply_part(tokenizer, {"enable_thinking": True})
    tails, headers = {tail}, {_up_to_marker(usual, markers)}
    switch, between, after = None, "", ""
    for arguments in SWITCHES:
        part, tail = _reply_part(tokenizer, arguments)
        if part == usual:
            continue
        tails.add(tail)
        headers.add(_up_to_marker(part, markers))
        head, is_closed, rest = part.rpartition(markers.end)
        is_left_out = markers.start and markers.start not in part
        if switch is None and (is_closed or is_left_out):
            switch = arguments
            if is_closed:
                between, after = head[len(head.rstrip()) :], rest
    return TemplateFacts(
        tails=tuple(filter(None, tails)),
        headers=tuple(filter(None, headers)),
        before_end=between,
        after_end=after if not after.strip() else "",
        switch=switch,
    )


def _reply_part(
    tokenizer: TokenizerWrapper, arguments: dict[str, Any]
) -> tuple[str, str]:
    """What the template adds for the reply, and all that follows the question."""
    try:
        without, with_part = (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _QUESTION}],
                tokenize=False,
                add_generation_prompt=is_added,
                **arguments,
            )
            for is_added in (False, True)
        )
    except Exception:  # templates raise what their authors like
        return "", ""
    tail = with_part.rpartition(_QUESTION)[2] if _QUESTION in with_part else ""
    # Some templates add it whether they are asked to or not.
    return with_part[len(commonprefix([without, with_part])) :] or tail, tail


def _up_to_marker(part: str, markers: ThinkingMarkers) -> str:
    places = [part.find(m) for m in (markers.start, markers.end) if m and m in part]
    return part[: min(places, default=len(part))].rstrip()
