"""What an answer has to be: JSON that follows a schema, or one call of a tool.

The grammars are llguidance's. Knows JSON schemas and that library; nothing of replies
or of thinking.
"""

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from ..installing import install_command
from .fields import setting

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from .markers import ToolFormat

MISSING_LIBRARY = (
    "Answers by a JSON schema need the package llguidance: "
    f"{install_command('structured')}."
)
ANY_OBJECT = '{"type": "object"}'
# White space between two tokens of JSON: a line break and what the next line is
# indented by, or a space. Without a limit a model may write white space for ever.
_WHITE_SPACE = r"(\n {0,32}| )?"


@dataclass(frozen=True)
class AnswerFormat:
    """What the answer behind the thinking has to be.

    Attributes:
        schema: A JSON schema as JSON text, a dict or a pydantic model class; None for
            an answer as the model likes. It becomes JSON text.
    """

    GROUP: ClassVar[str] = "Output"

    schema: Any = setting(
        None,
        "JSON schema that the answer behind the thinking follows: a file, or the "
        "schema itself.",
        keyword="json_schema",
    )

    def __post_init__(self) -> None:
        if self.schema is not None:
            text = _schema_text(self.schema)
            _check(text)
            object.__setattr__(self, "schema", text)

    @property
    def is_free(self) -> bool:
        """Whether the answer is as the model likes."""
        return self.schema is None


@dataclass(frozen=True)
class Answer:
    """An answer's format with what the reply's tools add to it.

    Attributes:
        schema: JSON schema as text.
        call: If the schema is of one call of a tool, what stands around calls.
        may_call: Whether a tool may be called in place of the answer.
    """

    schema: str
    call: "ToolFormat | None" = None
    may_call: bool = False

    def begin(self, tokenizer: "TokenizerWrapper") -> Any:
        """The library's matcher, before the first token of the JSON."""
        library = _library()
        matcher = library.LLMatcher(
            _vocabulary(tokenizer), _grammar(self.schema), log_level=0
        )
        if error := matcher.get_error():
            raise ValueError(_refusal(error))
        return matcher


def answer_to(given: "AnswerFormat | Answer | None") -> Answer | None:
    """The answer that a format asks for, if it asks for one."""
    if isinstance(given, AnswerFormat):
        return None if given.is_free else Answer(given.schema)
    return given


def _schema_text(schema: Any) -> str:
    """A schema as JSON text.

    Raises:
        ValueError: If it is no schema.
    """
    made_by = getattr(schema, "model_json_schema", None)
    if made_by is not None:
        schema = made_by()
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"json_schema is not valid JSON: {e}.") from None
    if not isinstance(schema, Mapping | bool):
        raise ValueError(
            "json_schema must be a JSON schema: a dict, its JSON text or a pydantic "
            f"model; not {schema!r:.80}."
        )
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as e:
        raise ValueError(f"json_schema cannot be written as JSON: {e}.") from None


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError(MISSING_LIBRARY) from None
    return llguidance


@lru_cache(64)
def _grammar(schema: str) -> str:
    return _library().LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_pattern": _WHITE_SPACE}
    )


@lru_cache(64)
def _check(schema: str) -> None:
    """Raises a ValueError, with the library's reason, if a schema cannot be kept to."""
    library = _library()
    try:
        error = library.LLMatcher.validate_grammar(_grammar(schema))
    except Exception as e:  # whatever a schema makes the library raise
        error = str(e)
    if error and not error.startswith("WARNING"):
        raise ValueError(_refusal(error))


def _refusal(error: str) -> str:
    reason = error.partition("\n<state>")[0].strip().replace("\n", " ")
    return f"The JSON schema cannot be honoured: {reason:.300}"


_vocabularies: "weakref.WeakKeyDictionary[TokenizerWrapper, Any]" = (
    weakref.WeakKeyDictionary()
)


def _vocabulary(tokenizer: "TokenizerWrapper") -> Any:
    """The library's form of a tokenizer; of a large one it takes about a second."""
    if tokenizer not in _vocabularies:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(
                "Answers by a JSON schema need a tokenizer of the tokenizers library "
                f"(tokenizer.json), and the model's is a {type(tokenizer).__name__}."
            )
        _vocabularies[tokenizer] = _library().LLTokenizer(
            backend.to_str(), eos_token=min(tokenizer.eos_token_ids)
        )
    return _vocabularies[tokenizer]
