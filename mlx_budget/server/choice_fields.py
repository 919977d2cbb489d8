"""How many replies a request asks for, to which prompts, and what is told of tokens.

Knows the fields of OpenAI's chat and text completions; nothing of HTTP or of replies.
"""

from dataclasses import dataclass
from typing import Any

from .errors import RequestError

MOST_CHOICES = 128
MOST_TOP_LOGPROBS = 20
# Tells the draws of the choices of a request apart.
_STEP = 0x9E3779B97F4A7C15

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class AskedChoices:
    """What a request asks for besides one reply in words.

    Attributes:
        n: Replies to each prompt.
        prompts: Of a text completion, as texts or token ids; none of a chat.
        echoes: Whether the prompt is told as well, before the reply.
        only_prompt: Whether nothing is to be generated.
        logprobs: Whether log-probabilities are told.
        top_logprobs: For how many of the likeliest tokens.
    """

    n: int = 1
    prompts: tuple[Prompt, ...] = ()
    echoes: bool = False
    only_prompt: bool = False
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def count(self) -> int:
        """Replies in all."""
        return self.n * max(len(self.prompts), 1)

    def prompt(self, index: int) -> Prompt | None:
        """The prompt of a choice, by its index; None for a chat."""
        return self.prompts[index // self.n] if self.prompts else None

    def seed(self, seed: int | None, index: int) -> int | None:
        """The seed of a choice: that of the request for the first of each prompt."""
        return None if seed is None else (seed + index % self.n * _STEP) % 2**64


def read_choices(body: dict[str, Any], is_chat: bool) -> AskedChoices:
    """What a request asks for; mlx-lm's handler is left what it knows of it.

    Args:
        body (dict): Of the request; what is read is put in mlx-lm's form.
        is_chat (bool): Whether it is a chat completion, or a text completion.

    Raises:
        RequestError: Naming the field that is wrong.
    """
    n = _whole(body.pop("n", 1), "n", 1, MOST_CHOICES)
    logprobs, top = _read_logprobs(body, is_chat)
    if is_chat:
        asked = AskedChoices(n=n, logprobs=logprobs, top_logprobs=top)
    else:
        echoes = body.pop("echo", False)
        if not isinstance(echoes, bool):
            raise RequestError("echo must be true or false.", "echo")
        only_prompt = False
        for name in ("max_tokens", "max_completion_tokens"):
            if name in body and type(body[name]) is int and body[name] == 0:
                only_prompt, body[name] = True, 1
        prompts = _read_prompts(body["prompt"]) if "prompt" in body else ()
        if prompts:
            first = prompts[0]
            body["prompt"] = first if isinstance(first, str) else ""
        asked = AskedChoices(n, prompts, echoes, only_prompt, logprobs, top)
    if asked.count > MOST_CHOICES:
        raise RequestError(
            f"The request asks for {asked.count:,} replies, and {MOST_CHOICES} are "
            "served at a time: ask for fewer.",
            "n" if is_chat else "prompt",
        )
    return asked


def _read_logprobs(body: dict[str, Any], is_chat: bool) -> tuple[bool, int]:
    given = body.get("logprobs", False)
    if isinstance(given, bool):
        top = body.get("top_logprobs", -1)
        if top != -1:
            top = _whole(top, "top_logprobs", 0, MOST_TOP_LOGPROBS)
        body["logprobs"], body["top_logprobs"] = given, max(top, 0)
        return given or top > 0, max(top, 0)
    if is_chat:
        raise RequestError("logprobs must be true or false.", "logprobs")
    top = _whole(given, "logprobs", 0, MOST_TOP_LOGPROBS)
    body["logprobs"], body["top_logprobs"] = True, top
    return True, top


def _read_prompts(prompt: Any) -> tuple[Prompt, ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if _are_ids(prompt):
            return (tuple(prompt),)
        if all(isinstance(p, str) or (_are_ids(p) and p) for p in prompt):
            return tuple(p if isinstance(p, str) else tuple(p) for p in prompt)
    raise RequestError(
        "prompt must be a text, a list of token ids, or a list of such.", "prompt"
    )


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _whole(value: Any, field: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise RequestError(
            f"{field} must be a whole number from {least} to {most}.", field
        )
    return value
