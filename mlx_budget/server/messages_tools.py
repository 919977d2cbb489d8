"""Tools of Anthropic's Messages interface, as chat completions have them.

A tool may be held back until the conversation brings it in, and be taken out again.
Knows the fields of both; nothing of replies, of HTTP or of models.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import RequestError
from .translation import function_tool, need


def read_tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that the reply may call.

    Args:
        body (Mapping): Of the request, its messages checked.

    Raises:
        RequestError: Naming the tool that is wrong or not served.
    """
    known: dict[str, dict[str, Any]] = {}
    offered: dict[str, bool] = {}
    tools = body.get("tools")
    for i, tool in enumerate(need(tools or [], list, "tools", "a list of tools")):
        name = _take(tool, f"tools[{i}]", known)
        offered[name] = tool.get("defer_loading") is not True
    for field, kind, tool in _changes(body.get("messages") or []):
        if tool.get("type") == "tool_definition" and kind == "tool_addition":
            name = _take(tool.get("definition"), field, known)
        elif tool.get("type") == "tool_reference":
            name = need(tool.get("tool_name", tool.get("name")), str, field, "a name")
        else:
            raise RequestError(
                f"{field}: {tool.get('type')!r} is not served here.", field
            )
        if name not in known:
            raise RequestError(f"{field}: there is no tool {name!r}.", field)
        offered[name] = kind == "tool_addition"
    chosen = [tool for name, tool in known.items() if offered[name]]
    return [] if read_choice(body) == "none" else chosen


def read_choice(body: Mapping[str, Any]) -> Any:
    """What a chat completion calls the choice of a tool."""
    choice = body.get("tool_choice")
    if choice is None:
        return "auto"
    kind = need(choice, dict, "tool_choice", "an object").get("type")
    if kind in ("auto", "none"):
        return kind
    if kind == "any":
        return "required"
    if kind == "tool":
        name = need(choice.get("name"), str, "tool_choice.name", "a text")
        return {"type": "function", "function": {"name": name}}
    raise RequestError(
        f"tool_choice.type must be auto, none, any or tool; {kind!r} is not served "
        "here.",
        "tool_choice",
    )


def calls_at_once(body: Mapping[str, Any]) -> bool:
    """Whether a reply may call several tools."""
    choice = body.get("tool_choice")
    return not (isinstance(choice, dict) and choice.get("disable_parallel_tool_use"))


def _take(tool: Any, field: str, known: dict[str, dict[str, Any]]) -> str:
    """Takes a tool, and gives its name."""
    kind = need(tool, dict, field, "an object").get("type")
    if kind not in (None, "custom"):
        raise RequestError(
            f"{field}: {kind!r} is a tool of Anthropic's own, which is not served "
            "here: only tools with an input_schema are.",
            field,
        )
    read = function_tool(tool, field, "input_schema")
    name: str = read["function"]["name"]
    known[name] = read
    return name


def _changes(messages: list[Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What the conversation changes of the tools: where, how, and which."""
    for i, message in enumerate(messages):
        for j, block in enumerate(_blocks(message)):
            field = f"messages[{i}].content[{j}]"
            kind = block.get("type")
            if kind in ("tool_addition", "tool_removal"):
                yield field, kind, need(block.get("tool"), dict, field, "a tool")
            elif kind == "tool_result":
                for part in _blocks(block):
                    if part.get("type") == "tool_reference":
                        yield field, "tool_addition", part


def _blocks(place: Any) -> list[dict[str, Any]]:
    content = place.get("content") if isinstance(place, dict) else None
    if not isinstance(content, list):
        return []
    return [block for block in content if isinstance(block, dict)]
