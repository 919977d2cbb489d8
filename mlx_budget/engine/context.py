"""How long a prompt may be, measured before it is tokenised whole.

Tokenisers need about a second for a million characters, and memory with them: a file
given by mistake would keep one busy for minutes. Knows models' lengths and tokenisers;
nothing of chat templates.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

# For models that do not tell: more than any prompt that is meant.
UNKNOWN_LENGTH = 1 << 20

_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
# A tokeniser's word for "as many as you like" is larger.
_LARGEST = 1 << 30
# Texts with fewer characters for each token that is allowed are not measured: they are
# tokenised whole soon enough. Prose has about four.
_MEASURED_ABOVE = 4
_SHORTEST_PIECE, _LONGEST_PIECE = 1 << 14, 1 << 18
# Tokens that a cut may add to those of a text, where it goes through a word.
_OF_A_CUT = 16


def context_length(
    model: "nn.Module", tokenizer: "TokenizerWrapper", max_kv_size: int | None = None
) -> int:
    """The most tokens that a model may be given to read.

    The largest number that the model's configuration and its tokenizer name, since
    either may be cautious: Qwen3 says 40,960 in one and 131,072 in the other, where its
    rotary embeddings are to be scaled; the distilled DeepSeek models say 131,072 and
    16,384. A prompt beyond all of them is surely none that the model was made for,
    unless its KV cache is limited: what it still sees is then near enough.
    """
    if max_kv_size is not None:
        return UNKNOWN_LENGTH
    found = list(_lengths(getattr(model, "args", None)))
    most = getattr(tokenizer, "model_max_length", None)
    if isinstance(most, int) and 0 < most < _LARGEST:
        found.append(most)
    return max(found, default=UNKNOWN_LENGTH)


def vocabulary_size(model: "nn.Module") -> int | None:
    """How many tokens a model has rows for, if its configuration tells.

    Many have more than their tokenizer, which pads nothing.
    """
    found = getattr(model, "args", None)
    for settings in (found, getattr(found, "text_config", None)):
        values = settings if isinstance(settings, Mapping) else vars(settings or object)
        if _is_length(values.get("vocab_size")):
            return values["vocab_size"]
    return None


def check_length(
    tokenizer: "TokenizerWrapper", texts: Iterable[str], most_tokens: int
) -> None:
    """Refuses texts that are sure to have too many tokens together.

    No more of them is tokenised than that takes, and nothing at all of texts that are
    short enough to be tokenised whole, or too long whatever is in them.

    Raises:
        ValueError: If they have more than ``most_tokens``.
    """
    texts = list(texts)
    characters, tokens = sum(map(len, texts)), 0
    step = max(_MEASURED_ABOVE * most_tokens, _SHORTEST_PIECE)
    if characters <= step:
        return
    error = ValueError(
        f"The prompt is too long: it has {characters:,} characters, and the model "
        f"reads at most {most_tokens:,} tokens. Shorten it."
    )
    # What is nothing but spaces has the fewest tokens.
    if characters // max(map(len, tokenizer.get_vocab())) > most_tokens:
        raise error
    step = min(step, _LONGEST_PIECE)
    for text in texts:
        for start in range(0, len(text), step):
            piece = text[start : start + step]
            # Not verbose: transformers would warn that the piece itself is too long.
            ids = tokenizer.encode(piece, add_special_tokens=False, verbose=False)
            is_cut = start + step < len(text)
            tokens += max(len(ids) - _OF_A_CUT, 0) if is_cut else len(ids)
            if tokens > most_tokens:
                raise error


def check_tokens(ids: list[int], most_tokens: int) -> None:
    """Refuses a prompt that has more than ``most_tokens``.

    Raises:
        ValueError: With both numbers.
    """
    if len(ids) > most_tokens:
        raise ValueError(
            f"The prompt is too long: it has {len(ids):,} tokens, and the model reads "
            f"at most {most_tokens:,}. Shorten it."
        )


def check_unicode(text: str, name: str) -> None:
    """Checks that a text has no half of a character, which JSON and shells can name.

    Raises:
        ValueError: Saying which and where it is.
    """
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(
            f"{name} has half of a character in it (the lone surrogate "
            f"{text[e.start]!a}, character {e.start + 1:,}): remove it."
        ) from None


def _lengths(settings: Any) -> Iterable[int]:
    """The lengths that a model's settings name, those of its text part included."""
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        settings = vars(settings)
    for name in _NAMES:
        if _is_length(settings.get(name)):
            yield settings[name]
    for name in ("rope_scaling", "rope_parameters"):
        scaling = settings.get(name)
        if not isinstance(scaling, Mapping):
            continue
        before = scaling.get("original_max_position_embeddings")
        factor: Any = scaling.get("factor")
        is_factor = isinstance(factor, int | float) and 1 <= factor < _LARGEST
        if _is_length(before) and is_factor:
            yield int(before * factor)
    if isinstance(text := settings.get("text_config"), Mapping):
        yield from _lengths(text)


def _is_length(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
