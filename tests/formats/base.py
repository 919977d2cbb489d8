"""What a format is: a chat template, markers, and what a model of the family says.

Knows text and tokenizer files; nothing of the engine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from vocabularies import (
    deepseek_vocabulary,
    make_tokenizer,
    qwen_vocabulary,
    tiny_vocabulary,
)

# Eleven tokens of all the vocabularies, and six.
THOUGHT = "I add the two numbers. So it is five."
ANSWER = "The answer is 5."

tiny = cache(
    partial(
        tiny_vocabulary,
        whole=[
            f"{THOUGHT} {ANSWER} thought analysis commentary final assistant tools",
            "commentary final assistant tools response thought",
        ],
    )
)
qwen3 = cache(partial(qwen_vocabulary, "qwen"))
qwen36 = cache(partial(qwen_vocabulary, "qwen3_6"))
deepseek = cache(deepseek_vocabulary)


@dataclass(frozen=True)
class Format:
    """One format, as text.

    In the texts "@" stands for `ANSWER` and "~" for `THOUGHT`; what is put in to close
    thinking stands between "«" and "»".

    Attributes:
        name: The family of models that writes it.
        tail: What the template puts behind the user's question.
        says: What a model says that thinks and answers.
        tokens: How many tokens of that are thinking.
        at_4: The reply at a budget of 4 tokens and a hard stop of 1.
        at_0: The reply at a budget of 0.
        past: How the next prompt renders the first of these.
        past_at_4: How it renders the second, if not the same.
        template: The chat template; "" for one of mlx-lm's own renderers.
        vocabulary: Makes the content of a tokenizer file.
        eos: The token that ends a reply.
        ends: More tokens that do.
        added, special: Tokens of their own, shown as text or special.
        start, end: The markers.
        is_named: Whether they must be named, since mlx-lm does not know them.
        on: Arguments that make the template let the model think, if not by itself.
        off: Arguments that make it leave thinking out, if it can.
        off_tail: What it puts behind the question then.
        call: A tool call, if mlx-lm knows how the format writes them.
        config: More of the tokenizer's configuration.
    """

    name: str
    tail: str
    says: str
    tokens: int
    at_4: str
    at_0: str
    past: str
    template: str
    vocabulary: Callable[[], dict] = tiny
    eos: str = "<|im_end|>"
    ends: tuple[str, ...] = ()
    added: tuple[str, ...] = ("<think>", "</think>")
    special: tuple[str, ...] = ()
    start: str = "<think>"
    end: str = "</think>"
    is_named: bool = False
    on: dict = field(default_factory=dict)
    off: dict | None = None
    off_tail: str = ""
    call: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    past_at_4: str = ""

    @property
    def is_opened(self) -> bool:
        """Whether the template opens thinking in the prompt."""
        return self.tail.rfind(self.start) > self.tail.rfind(self.end)

    @property
    def markers(self) -> dict[str, str]:
        """Keyword arguments of the engine that name them."""
        if not self.is_named:
            return {}
        return {"thinking_start": self.start, "thinking_end": self.end}

    def text(self, written: str) -> str:
        """One of the texts with its sentences put in."""
        return written.replace("~", THOUGHT).replace("@", ANSWER)

    def tokenizer(self, folder: Path) -> TokenizerWrapper:
        """Its tokenizer, with the files in a folder."""
        return make_tokenizer(
            folder,
            self.vocabulary(),
            template=self.template,
            eos=self.eos,
            ends=self.ends,
            added=self.added,
            special=self.special,
            **self.config,
        )
