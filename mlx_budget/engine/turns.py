"""Turns of a chat: what was asked and answered, as a person and as a template has it.

Knows markers and the fields that chat templates read; nothing of caches or files.
"""

import re
from dataclasses import dataclass, replace

from mlx_lm.tokenizer_utils import TokenizerWrapper

from .follower import ReplyFollower
from .markers import ThinkingMarkers
from .messages import Chat
from .thinking import ThinkingTracker


@dataclass(frozen=True)
class Turn:
    """A question and the reply to it.

    Attributes:
        question: What the user said.
        answer: What the model answered.
        thinking: What it thought before, without markers.
        text: All of the reply as the model wrote it, with the marker that its prompt
            opened, for templates that have no field for thinking. None where it is
            not known: of a reply of another model.
        thinking_budget: Tokens that it might think; None without a budget.
        thinking_tokens: Tokens that it thought.
        closed_by: What ended its thinking, as in `BudgetResponse`.
    """

    question: str
    answer: str
    thinking: str = ""
    text: str | None = None
    thinking_budget: int | None = None
    thinking_tokens: int | None = None
    closed_by: str | None = None

    def without_text(self) -> "Turn":
        """The same for another model, which writes its thinking otherwise."""
        return replace(self, text=None)


class TurnWriter:
    """Writes turns as messages for the chat template of a model.

    A template that names a field for thinking gets thinking and answer apart; any
    other gets them as they came, the opening marker included.

    Args:
        tokenizer (TokenizerWrapper): The model's.
        markers (ThinkingMarkers, optional): Of its thinking, if it thinks.
    """

    def __init__(self, tokenizer: TokenizerWrapper, markers: ThinkingMarkers | None):
        self._tokenizer = tokenizer
        self._markers = markers
        self._field = _thinking_field(tokenizer)

    def turn_of(
        self, question: str, reply: ReplyFollower, prompt: list[int]
    ) -> Turn | None:
        """The turn that a reply makes, or None if it has no answer.

        Args:
            question (str): What was asked.
            reply (ReplyFollower): The reply.
            prompt (list): The tokens of its prompt's generation part at least.
        """
        thinking, answer = reply.split()
        if self._field == "thinking":
            # gpt-oss heads each part with its channel.
            thinking = thinking.rpartition("<|message|>")[2]
            answer = answer.rpartition("<|message|>")[2]
        if not answer.strip():
            return None
        text = None
        if self._field is None:
            text = self._opening(prompt) + reply.text
        return Turn(question, answer.lstrip("\n"), thinking, text)

    def messages_of(self, turn: Turn) -> Chat:
        """The question and the reply as messages."""
        if self._field is not None:
            reply = {"content": turn.answer, self._field: turn.thinking}
        elif turn.text is not None:
            reply = {"content": turn.text}
        elif turn.thinking and self._markers is not None:
            start, end = self._markers.start, self._markers.end
            thought = f"{start}\n{turn.thinking}\n{end}\n\n"
            reply = {"content": thought + turn.answer}
        else:
            reply = {"content": turn.answer}
        return [
            {"role": "user", "content": turn.question},
            {"role": "assistant", **reply},
        ]

    def likely_replies(self, prompt: list[int]) -> Chat:
        """Replies as `messages_of` writes them, with and without thinking."""
        field, markers = self._field, self._markers
        if field is not None:
            messages = [{"content": "x", field: thinking} for thinking in ("x", "")]
        elif markers is None:
            messages = [{"content": "x"}]
        else:
            opening = self._opening(prompt)
            begin = f"{opening or markers.start}x{markers.end}"
            texts = [f"{begin}x", f"{begin}\n\nx", *([] if opening else ["x"])]
            messages = [{"content": text} for text in texts]
        return [{"role": "assistant", **message} for message in messages]

    def _opening(self, prompt: list[int]) -> str:
        """How the prompt itself opens thinking, as some templates make it do."""
        markers = self._markers
        if markers is None or not markers.start:
            return ""
        if not ThinkingTracker(self._tokenizer, markers, prompt).thinking:
            return ""
        text = self._tokenizer.decode(prompt)
        begin = text.rfind(markers.start)
        return text[begin:] if begin >= 0 else markers.start


def _thinking_field(tokenizer: TokenizerWrapper) -> str | None:
    """The field of a message that the chat template reads thinking from, if any."""
    source = tokenizer.chat_template
    if source is None or "reasoning_content" in str(source):
        # mlx-lm's own renderers, which are not templates, read this one too.
        return "reasoning_content"
    found = re.search(
        r"""\b(?:message|msg|m)(?:\.|\.get\(['"]|\[['"])(reasoning|thinking)\b""",
        str(source),
    )
    return found[1] if found else None
