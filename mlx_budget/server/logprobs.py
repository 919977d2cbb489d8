"""Log-probabilities of tokens as OpenAI's chat and text completions tell them.

Knows both forms and how tokens are written; nothing of HTTP or of models.
"""

from collections.abc import Iterable
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.scoring import TokenScore

_NO_CHARACTER = "\ufffd"


class LogprobsTeller:
    """Keeps the scores of a reply's tokens until they are told.

    Args:
        tokenizer (TokenizerWrapper): mlx-lm's tokenizer.
        top (int): How many of the likeliest tokens are told for each.
    """

    def __init__(self, tokenizer: TokenizerWrapper, top: int):
        self._tokenizer = tokenizer
        self._top = top
        self._answer: list[TokenScore] = []
        self._thinking: list[TokenScore] = []
        self._offset = 0

    def take(self, score: TokenScore, is_thinking: bool = False) -> None:
        """Takes the next token."""
        (self._thinking if is_thinking else self._answer).append(score)

    def take_before(self, scores: Iterable[TokenScore]) -> None:
        """Takes the tokens of the prompt, which are told before the reply's."""
        self._answer[:0] = scores

    def told(self, is_chat: bool) -> dict[str, Any]:
        """What has come since it was told last.

        Thinking has a list of its own, `reasoning`, so that the others are those of the
        content.
        """
        answer, thinking = self._answer, self._thinking
        self._answer, self._thinking = [], []
        told: dict[str, Any] = self._columns(answer)
        if is_chat:
            told = {"content": self._entries(answer), "refusal": None}
        if thinking:
            entries: Any = self._columns(thinking, offset=0)
            told["reasoning"] = self._entries(thinking) if is_chat else entries
        return told

    def _entries(self, scores: Iterable[TokenScore]) -> list[dict[str, Any]]:
        return [
            {
                **self._entry(score.token, score.logprob or 0.0),
                "top_logprobs": [self._entry(*pair) for pair in score.top],
            }
            for score in scores
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.text_of(token)
        is_whole = _NO_CHARACTER not in text
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if is_whole else None,
        }

    def _columns(
        self, scores: Iterable[TokenScore], offset: int | None = None
    ) -> dict[str, list[Any]]:
        at = self._offset if offset is None else offset
        told: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for score in scores:
            text = self.text_of(score.token)
            told["tokens"].append(text)
            told["token_logprobs"].append(score.logprob)
            told["top_logprobs"].append(self._by_text(score))
            told["text_offset"].append(at)
            at += len(text)
        if offset is None:
            self._offset = at
        return told

    def _by_text(self, score: TokenScore) -> dict[str, float] | None:
        if score.logprob is None or not self._top:
            return None
        found: dict[str, float] = {}
        # As in OpenAI's own, the token itself is always among them.
        for token, logprob in (*score.top, (score.token, score.logprob)):
            found.setdefault(self.text_of(token), logprob)
        return found

    def text_of(self, token: int) -> str:
        """The text of a token, with the space that it may begin with."""
        text: str = self._tokenizer.decode([token])
        written = self._tokenizer.convert_ids_to_tokens(token)
        is_spaced = isinstance(written, str) and written.startswith("\u2581")
        return f" {text}" if is_spaced and not text.startswith(" ") else text
