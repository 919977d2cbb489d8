"""The texts that tell the parts of a reply: thinking, answer, tool calls.

Knows tokenizers; nothing of replies.
"""

import weakref
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from . import m1
from .settings import ThinkingBudget

# OpenAI's harmony format, as gpt-oss writes it: channels with a header each. mlx-lm
# knows no thinking markers of it.
_HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_HARMONY_START = "<|channel|>analysis<|message|>"
_HARMONY_END = "<|end|><|start|>assistant<|channel|>final<|message|>"
_HARMONY_ANSWER = "<|channel|>final<|message|>"


@dataclass(frozen=True)
class ToolFormat:
    """How tool calls are told.

    Attributes:
        start: Begins a call.
        end: Ends it; empty if the reply's end does.
        anywhere: Whether ``start`` counts wherever it stands, since it is the model's
            own; else at the beginning of a line alone.
    """

    start: str
    end: str
    anywhere: bool = False


# The recipient of a call may come before its channel or behind.
_HARMONY_TOOLS = (
    ToolFormat("<|end|><|start|>assistant<|channel|>commentary", "", True),
    ToolFormat("<|end|><|start|>assistant to=", "", True),
)
# In which Hunyuan A13B, and models that were taught by R1-Zero's prompt, answer.
_ANSWER_TAGS = ("<answer>", "</answer>")
# The formats of `mlx_lm.tool_parsers`, for models whose own is not known.
TOOL_FORMATS = (
    ToolFormat("<tool_call>", "</tool_call>"),
    ToolFormat("[TOOL_CALLS]", ""),
    ToolFormat("<|tool_call>", "<tool_call|>"),
    ToolFormat("<|tool_call_start|>", "<|tool_call_end|>"),
    ToolFormat("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ToolFormat("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
    ToolFormat("<start_function_call>", "<end_function_call>"),
    ToolFormat("<longcat_tool_call>", "</longcat_tool_call>"),
    ToolFormat("<minimax:tool_call>", "</minimax:tool_call>"),
    ToolFormat("<atem:function_calls>", "</atem:function_calls>"),
    ToolFormat("<function name=", "</function>"),
)


@dataclass(frozen=True)
class ThinkingMarkers:
    """The texts that open and close a thinking block, and those that end it otherwise.

    A marker that is a token of its own, added to the vocabulary, is recognised by that
    token; any other in the decoded text, however it is split into tokens.

    Attributes:
        start: Opening marker; empty if the reply begins by thinking.
        end: Closing marker.
        start_tokens: Token ids that encode ``start``.
        end_tokens: Token ids that encode ``end``.
        tool_formats: How tool calls are told, which end thinking.
        answer_header: Opens an answer without thinking before it, and is no part of it.
        frames: Texts of the format around an answer, which are no part of it: first
            what opens it.
    """

    start: str
    end: str
    start_tokens: tuple[int, ...]
    end_tokens: tuple[int, ...]
    tool_formats: tuple[ToolFormat, ...] = ()
    answer_header: str = ""
    frames: tuple[str, ...] = ()


def find_markers(
    tokenizer: TokenizerWrapper, start: str | None = None, end: str | None = None
) -> ThinkingMarkers:
    """The thinking markers of a tokenizer, or those given in their stead.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        start (str, optional): Opening marker; "" if replies begin by thinking.
        end (str, optional): Closing marker.

    Raises:
        ValueError: If the tokenizer has no markers and not both are given, or the
            closing marker is empty.
    """
    tools: tuple[ToolFormat, ...] = TOOL_FORMATS
    header = ""
    if tokenizer.has_tool_calling:
        own = tokenizer.tool_call_start, tokenizer.tool_call_end or ""
        tools = (ToolFormat(*own, anywhere=True),)
    own_start, own_end = tokenizer.think_start, tokenizer.think_end
    if own_start is None and is_harmony(tokenizer):
        own_start, own_end = _HARMONY_START, _HARMONY_END
        tools, header = _HARMONY_TOOLS, _HARMONY_ANSWER
    elif own_start is None and is_m1(tokenizer):
        own_start, own_end = m1.START, m1.END
    start = own_start if start is None else start
    end = own_end if end is None else end
    if start is None or end is None:
        raise ValueError(
            "The model's tokenizer has no thinking markers, so its thinking cannot be "
            "budgeted. If the model does think, name its markers with "
            "--thinking-start-token and --thinking-end-token (thinking_start and "
            "thinking_end in Python; an empty start marker means that replies begin "
            "by thinking)."
        )
    if not end.strip():
        raise ValueError("The closing thinking marker (--thinking-end-token) is blank.")
    if start == end:
        raise ValueError(f"Thinking cannot begin and end with the same marker {end!r}.")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()

    # Those of Kimi K3; releases of mlx-lm before it know none.
    frames = tuple(getattr(tokenizer, "structural_markers", ()))
    if not frames and _ANSWER_TAGS[0] in str(tokenizer.chat_template):
        frames = _ANSWER_TAGS
    return ThinkingMarkers(
        start, end, encode(start), encode(end), tools, header, frames
    )


def markers_of(
    tokenizer: TokenizerWrapper, thinking: ThinkingBudget
) -> ThinkingMarkers | None:
    """The markers that a reply is followed by; None if the model does not think."""
    is_named = thinking.start is not None or thinking.end is not None
    is_known = tokenizer.has_thinking or is_harmony(tokenizer) or is_m1(tokenizer)
    if not is_named and not is_known:
        return None
    return find_markers(tokenizer, thinking.start, thinking.end)


def is_harmony(tokenizer: TokenizerWrapper) -> bool:
    """Whether a tokenizer has the tokens of OpenAI's harmony format."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {str(getattr(token, "content", token)) for token in added}
    return texts.issuperset(_HARMONY_TOKENS)


def is_m1(tokenizer: TokenizerWrapper) -> bool:
    """Whether a chat template has m1's markers; that of its base model has not."""
    template = str(tokenizer.chat_template)
    return m1.START in template and m1.END in template


# A tokenizer is asked once for each text: a request looks for a dozen markers, and to
# encode them takes milliseconds.
_encodings: weakref.WeakKeyDictionary[
    TokenizerWrapper, dict[str, tuple[bool, int | None]]
] = weakref.WeakKeyDictionary()


def _encode(tokenizer: TokenizerWrapper, text: str) -> tuple[bool, int | None]:
    """Whether a marker has an added token, and the token that it is, if it is one."""
    tokens = tokenizer.encode(text, add_special_tokens=False) if text else []
    added = tokenizer.added_tokens_decoder
    has_added_token = any(token in added for token in tokens)
    is_token = len(tokens) == 1 and has_added_token
    return has_added_token, tokens[0] if is_token else None


class MarkerFinder:
    """Finds one marker at the end of a growing list of tokens.

    Attributes:
        text: The marker.
        has_added_token: Whether a token of it was added to the vocabulary.
    """

    def __init__(self, tokenizer: TokenizerWrapper, text: str):
        self.text = text
        self._tokenizer = tokenizer
        known = _encodings.setdefault(tokenizer, {})
        if text not in known:
            known[text] = _encode(tokenizer, text)
        self.has_added_token, self._token = known[text]
        # Such a marker may be split otherwise in context, at most into its bytes.
        self._longest = len(text.encode()) + 1

    @property
    def is_token(self) -> bool:
        """Whether the marker is a token of its own."""
        return self._token is not None

    def found(self, tokens: list[int], last_text: str) -> int:
        """How many of the last tokens make up the marker, if it is complete now, or 0.

        Args:
            tokens (list): Since the last marker; not empty.
            last_text (str): Text of the last of them.
        """
        if not self.text:
            return 0
        if self._token is not None:
            return int(tokens[-1] == self._token)
        if self.text[-1].isascii() and self.text[-1] not in last_text:
            return 0
        # It may share its outer tokens with the text around it.
        window = tokens[-self._longest :]
        if self.text not in self._tokenizer.decode(window):
            return 0
        length = 1
        while self.text not in self._tokenizer.decode(window[-length:]):
            length += 1
        return length

    def begun(self, tokens: list[int]) -> str:
        """The longest beginning of the marker that the tokens end with.

        A marker that is a token of its own cannot be begun.
        """
        if self._token is not None or not tokens:
            return ""
        tail = self._tokenizer.decode(tokens[-self._longest :])
        lengths = range(len(self.text) - 1, 0, -1)
        return next(
            (self.text[:n] for n in lengths if tail.endswith(self.text[:n])), ""
        )
