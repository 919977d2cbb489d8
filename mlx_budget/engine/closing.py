"""How thinking is closed by force: a message, the closing marker and its white space.

Knows tokenizers, markers and chat templates; nothing of when to close.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from . import m1
from .markers import ThinkingMarkers
from .template import reply_part, template_facts
from .thinking import ThinkingTracker

AUTO = "auto"


@dataclass(frozen=True)
class WindDown:
    """A sentence that models of a family are known to obey when thinking is cut.

    Attributes:
        family: Name of the family.
        in_template: Texts that its chat templates hold, all of them.
        text: The sentence, put before the closing marker.
        source: Where the family's makers or users say so.
        end: Closing marker that is the family's alone, where the templates say nothing.
    """

    family: str
    in_template: tuple[str, ...]
    text: str
    source: str
    end: str = ""


WIND_DOWNS = (
    WindDown("m1", (), m1.CUT, "its evaluation, arXiv 2504.00869", end=m1.END),
    WindDown(
        "Qwen3",
        ("<|im_start|>", "enable_thinking"),
        "\n\nConsidering the limited time by the user, I have to give the solution "
        "based on the thinking directly now.\n",
        "Qwen3 Technical Report, arXiv 2505.09388, section 4.3",
    ),
    WindDown(
        "DeepSeek R1 and its distilled models",
        ("<\uff5cAssistant\uff5c>",),
        "\n**Final Answer**\n",
        "the budget forcing baseline of Budget Guidance, arXiv 2506.13752",
    ),
)


@dataclass(frozen=True)
class Closing:
    """The tokens of a forced close.

    Attributes:
        message: Put before the closing marker.
        ends_line: Whether the message ends with a newline.
        newline: Ends a line before the closing marker, where the model's template has
            one there, or the message is nothing else.
        empty: White space of a block without any thinking, behind what the prompt has.
        after: White space behind the closing marker, as the template has it, and text
            with which the message goes on there.
        begins_answer: Whether there is such a text, with which the answer begins.
    """

    message: tuple[int, ...] = ()
    ends_line: bool = False
    newline: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    begins_answer: bool = False

    @property
    def has_empty_form(self) -> bool:
        """Whether the template says how a block without any thinking looks."""
        return bool(self.empty or self.after)

    def most(self, markers: ThinkingMarkers) -> int:
        """Most tokens that a forced close puts in."""
        before = max(len(self.message) + len(self.newline), len(self.empty))
        return before + len(markers.end_tokens) + len(self.after)

    def tokens(self, tracker: ThinkingTracker, is_line_ended: bool) -> tuple[int, ...]:
        """What closes thinking now; a tool call that has begun closes it as well.

        Args:
            tracker (ThinkingTracker): Of the reply.
            is_line_ended: Whether the text so far ends with a newline.
        """
        if call := tracker.missing_tool_tokens():
            return call
        end = tracker.markers.end_tokens
        missing = tracker.missing_end_tokens()
        if missing != end:
            # The model has begun the marker itself.
            return missing + self.after
        if not self.message and tracker.thinking_tokens == 0:
            return self.empty + end + self.after
        if self.message:
            is_line_ended = self.ends_line
        newline = () if is_line_ended else self.newline
        return self.message + newline + end + self.after


def closing_of(
    tokenizer: TokenizerWrapper,
    markers: ThinkingMarkers,
    prompt: Sequence[int],
    message: str | None,
) -> Closing:
    """How a reply's thinking is closed by force, as the model's own template closes it.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        markers (ThinkingMarkers): Of the model.
        prompt (Sequence[int]): Token ids of the prompt.
        message (str, optional): Text put before the closing marker; "auto" for the
            sentence of `WIND_DOWNS` that the model's family is known to obey. What it
            has behind the closing marker begins the answer.

    Raises:
        ValueError: If the message holds a control token or the closing marker twice, or
            there is no sentence for "auto".
    """
    facts = template_facts(tokenizer, markers)
    text = wind_down(tokenizer, markers).text if message == AUTO else message or ""
    # The closing marker follows anyway: a message that ends with it is not to have two.
    text, _, behind = text.partition(markers.end)
    if markers.end in behind:
        raise ValueError(
            f"thinking_budget_message has the closing marker {markers.end!r} twice: "
            "what stands behind the first begins the answer, so leave the second out."
        )
    behind = behind if behind.strip() else ""
    after = facts.after_end if behind[:1].strip() or not behind else ""
    part = reply_part(tokenizer, markers, prompt)
    written = ""
    if not markers.start or part.rfind(markers.start) > part.rfind(markers.end):
        written = part[len(part.rstrip()) :]

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()

    needs_line = text == "\n" or "\n" in facts.before_end
    return Closing(
        message=encode_message(tokenizer, markers, "" if text == "\n" else text),
        ends_line=text.endswith("\n"),
        newline=encode("\n" if needs_line else ""),
        empty=encode(facts.before_end.removeprefix(written)),
        after=encode_message(tokenizer, markers, after + behind)
        if behind
        else encode(after),
        begins_answer=bool(behind),
    )


def prefix_tokens(tokenizer: TokenizerWrapper, text: str | None) -> tuple[int, ...]:
    """Tokens with which a reply is to begin, markers and all.

    Raises:
        ValueError: If one of them would end the reply.
    """
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
    if ends := [token for token in tokens if token in tokenizer.eos_token_ids]:
        raise ValueError(
            f"reply_prefix holds {tokenizer.decode(ends[:1])!r}, which would end the "
            "reply: leave it out."
        )
    return tokens


def wind_down(tokenizer: TokenizerWrapper, markers: ThinkingMarkers) -> WindDown:
    """The sentence that the family of a model is known to obey.

    Raises:
        ValueError: If there is none for its chat template and markers.
    """
    template = str(tokenizer.chat_template)
    for known in WIND_DOWNS:
        if known.end in ("", markers.end) and all(
            text in template for text in known.in_template
        ):
            return known
    families = ", ".join(known.family for known in WIND_DOWNS)
    raise ValueError(
        f"thinking_budget_message auto is known for {families}, and the chat template "
        "is of none of them: give the text itself."
    )


def encode_message(
    tokenizer: TokenizerWrapper, markers: ThinkingMarkers, text: str
) -> tuple[int, ...]:
    """Tokens of a message; markers that it mentions are spelt, and open nothing.

    Raises:
        ValueError: If it holds a control token.
    """
    known = (markers.start, *(tool.start for tool in markers.tool_formats))
    mentioned = [marker for marker in known if marker and marker in text]
    if mentioned:
        head, marker, tail = text.partition(mentioned[0])
        pieces = (head + marker[:1], marker[1:], tail)
        parts = (encode_message(tokenizer, markers, piece) for piece in pieces)
        return tuple(token for part in parts for token in part)
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()
    control = set(tokenizer.all_special_ids) | set(tokenizer.eos_token_ids)
    for token in tokens:
        if token in control:
            raise ValueError(
                f"thinking_budget_message holds the control token "
                f"{tokenizer.decode([token])!r}, which would end or break the reply: "
                "leave it out."
            )
    return tokens
