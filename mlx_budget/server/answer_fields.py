"""What a request asks of its answer: a JSON schema, or that a tool is called.

Knows the fields of chat completions and JSON schemas; nothing of HTTP or of replies.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.answers import ANY_OBJECT, Answer, AnswerFormat
from ..engine.markers import ToolFormat
from .errors import RequestError
from .translation import need

# The parser of mlx-lm for tools that are called by {"name": ..., "arguments": ...}.
_JSON_TOOLS = "mlx_lm.tool_parsers.json_tools"
# Fields of other servers that say the same as a response_format.
_SCHEMA_FIELDS = ("json_schema", "guided_json")


@dataclass(frozen=True)
class AskedAnswer:
    """What a request asks of its answer.

    Attributes:
        schema: JSON schema, as text, that an answer in words follows, if any.
        calls: The tools, each with its name and parameters, one of which must be
            called; none if that is left to the model.
        may_call: Whether there are tools that the model may call.
    """

    schema: str | None = None
    calls: tuple[tuple[str, Any], ...] = ()
    may_call: bool = False

    def for_model(self, tokenizer: TokenizerWrapper) -> Answer:
        """The same for a model.

        Raises:
            RequestError: If the model's way to call tools is not known here.
        """
        if not self.calls:
            may_call = self.may_call and tokenizer.has_tool_calling
            return Answer(self.schema or ANY_OBJECT, may_call=may_call)
        parser = getattr(tokenizer.tool_parser, "__module__", None)
        if not tokenizer.has_tool_calling or parser != _JSON_TOOLS:
            form = (parser or "none").rpartition(".")[2]
            raise RequestError(
                "tool_choice must be auto or none for this model: that a tool is "
                f"called can be promised for calls in JSON, and its tool format is "
                f"{form}.",
                "tool_choice",
            )
        around = ToolFormat(tokenizer.tool_call_start, tokenizer.tool_call_end or "")
        return Answer(_checked(_call_schema(self.calls), "tools"), call=around)


def read_answer(body: dict[str, Any]) -> AskedAnswer | None:
    """What a chat completion asks of its answer.

    Tools that may not be called are taken out of the body, so that they are not shown.

    Args:
        body (dict): Of the request.

    Raises:
        RequestError: Naming the field that is wrong or cannot be honoured.
    """
    schema = _read_format(body)
    choice = body.get("tool_choice")
    tools = body.get("tools") or []
    if choice == "none":
        body.pop("tools", None)
        tools = []
    calls = () if choice in (None, "auto", "none") else _read_choice(choice, tools)
    if schema is None and not calls:
        return None
    return AskedAnswer(schema, calls, may_call=bool(tools))


def _read_format(body: Mapping[str, Any]) -> str | None:
    given = [name for name in (*_SCHEMA_FIELDS, "response_format") if name in body]
    if not given:
        return None
    if len(given) > 1:
        raise RequestError(
            f"{given[0]} and {given[1]} say the same: give one of them.", given[1]
        )
    field = given[0]
    form = body[field]
    if field in _SCHEMA_FIELDS:
        return _checked(form, field)
    kind = need(form, dict, field, "an object").get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _checked(form.get("schema", ANY_OBJECT), field)
    if kind != "json_schema":
        raise RequestError(
            f"response_format.type must be text, json_object or json_schema; "
            f"{kind!r} is not served here.",
            "response_format.type",
        )
    place = need(form.get(kind), dict, f"{field}.{kind}", "an object")
    return _checked(place.get("schema", {}), f"{field}.{kind}.schema")


def _checked(schema: Any, field: str) -> str:
    """A schema as text.

    Raises:
        RequestError: With the reason why it cannot be honoured.
    """
    try:
        return AnswerFormat(schema).schema
    except ValueError as e:
        raise RequestError(f"{field}: {e}", field) from None


def _read_choice(choice: Any, tools: list[Any]) -> tuple[tuple[str, Any], ...]:
    """The tools one of which a request wants called."""
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    known = {
        f["name"]: f.get("parameters") or {}
        for f in functions
        if isinstance(f, dict) and isinstance(f.get("name"), str)
    }
    if choice == "required":
        if not known:
            raise RequestError(
                "tool_choice is required, and the request has no tools.", "tool_choice"
            )
        return tuple(known.items())
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str) or choice.get("type") != "function":
        raise RequestError(
            "tool_choice must be auto, none, required or a function by its name; "
            f"{json.dumps(choice):.80} is not served here.",
            "tool_choice",
        )
    if name not in known:
        raise RequestError(
            f"tool_choice names {name!r:.80}, which is not among the tools.",
            "tool_choice",
        )
    return ((name, known[name]),)


def _call_schema(calls: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The schema of one call of a tool."""
    places = {str(i): _within(schema, i) for i, (_, schema) in enumerate(calls)}
    forms = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": {"$ref": f"#/$defs/{i}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for i, (name, _) in enumerate(calls)
    ]
    return {"anyOf": forms, "$defs": places}


def _within(schema: Any, place: int) -> Any:
    """A schema whose references are those of the same schema in another."""
    if isinstance(schema, list):
        return [_within(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {k: _within(v, place) for k, v in schema.items()}
    ref = moved.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        moved["$ref"] = f"#/$defs/{place}{ref[1:]}"
    return moved
