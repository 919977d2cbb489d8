"""The fields by which requests name a budget: numbers of tokens, levels and switches.

One table for all interfaces of the server. Knows fields and what they mean; nothing of
the server's own limits, of HTTP or of models.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..engine.budgets import (
    EFFORT_TOKENS,
    EFFORTS,
    MAX_BUDGET,
    Budget,
    budget_of_level,
    check_budget,
    with_tokens,
)
from .errors import RequestError

TEMPLATE = "chat_template_kwargs"
# The first is ours; the others are what other servers taught clients.
_NUMBERS = (
    "thinking_budget",
    "thinking_token_budget",
    "thinking_budget_tokens",
    "max_thinking_tokens",
    "max_reasoning_tokens",
    "reasoning_budget",
    "reasoning_budget_tokens",
    "reasoning_max_tokens",
)
_LEVELS = ("reasoning_effort", "thinking_level")
_ON_OFF: dict[Any, bool] = {True: True, False: False}
_SWITCHES = ("enable_thinking", "think", "thinking")


def _and_in_template(names: tuple[str, ...]) -> tuple[str, ...]:
    return (*names, *(f"{TEMPLATE}.{name}" for name in names))


# Numbers of tokens, or what else a budget may be.
FIELDS = (
    *_and_in_template(_NUMBERS),
    "reasoning.max_tokens",
    "thinking.budget_tokens",
)
EFFORT_FIELDS = (
    *_and_in_template(_LEVELS),
    "reasoning.effort",
    "output_config.effort",
)
# Fields that switch thinking on or off, and their values that do.
SWITCHES: dict[str, dict[Any, bool]] = {
    **dict.fromkeys(_and_in_template(_SWITCHES), _ON_OFF),
    "reasoning.enabled": _ON_OFF,
    "thinking.type": {"enabled": True, "adaptive": True, "disabled": False},
}
# Objects of which nothing else is known.
_OBJECTS = ("thinking", "reasoning", "output_config")
# Objects of other interfaces, which are not read here.
_FOREIGN = ("extra_body", "google", "generation_config", "options")
# Fields of how thinking is told, and the values that are what happens here.
TOLD: dict[str, tuple[Any, ...]] = {
    "include_reasoning": (True,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "reasoning_format": ("parsed", "auto", "deepseek"),
    "reasoning.exclude": (False,),
}
# Fields that say more about thinking, read elsewhere.
_OTHERS = (
    "budget_mode",
    "min_thinking_tokens",
    "thinking_budget_message",
    "reply_prefix",
)
_SOUNDS_LIKE_ONE = re.compile("think|reason|budget|effort", re.IGNORECASE)
_KNOWN = {
    *FIELDS,
    *EFFORT_FIELDS,
    *SWITCHES,
    *TOLD,
    *_OTHERS,
    *_OBJECTS,
}


def read_efforts(text: str) -> dict[str, int]:
    """Tokens of levels, as they are written on a command line.

    Args:
        text (str): Such as ``low=512,medium=2048,high=8192``. Levels that are left out
            keep their default.

    Raises:
        ValueError: If it is written otherwise.
    """
    known = {**EFFORT_TOKENS}
    for part in text.split(","):
        level, _, tokens = part.partition("=")
        is_number = re.fullmatch("[0-9]{1,10}", tokens.strip()) is not None
        if level.strip() not in known or not is_number or int(tokens) > MAX_BUDGET:
            raise ValueError(
                f"--effort must give tokens to levels of {', '.join(known)}, such as "
                f"low=512,medium=2048,high=8192; not {part!r}."
            )
        known[level.strip()] = int(tokens)
    return known


def asked_budget(
    body: Mapping[str, Any], default: Budget, efforts: Mapping[str, int]
) -> tuple[str, Budget] | None:
    """The budget that a request asks for, and the field that says so.

    A number beats a level, and both beat a switch that only lets thinking be.

    Args:
        body (Mapping): Of the request.
        default (Budget): Of requests that do not say.
        efforts (Mapping[str, int]): Tokens of each level without a predictor.

    Returns:
        tuple[str, Budget], optional: None if the request leaves it to the default.

    Raises:
        RequestError: If a field has a wrong type or value, is not known, or disagrees
            with another.
    """
    _check_known(body)
    numbers = {f: _read_number(f, v, efforts) for f, v in _given(body, FIELDS)}
    levels = {f: _read_level(f, v, efforts) for f, v in _given(body, EFFORT_FIELDS)}
    switches: dict[str, bool] = {}
    for field, value in _given(body, SWITCHES):
        if field.endswith("think") and isinstance(value, str):
            levels[field] = _read_level(field, value, efforts)
        elif field != "thinking" or not isinstance(value, dict):
            switches[field] = _choice(field, value, SWITCHES[field])
    if off := [field for field, is_on in switches.items() if not is_on]:
        # A client may have a level for the answer's sake as well.
        levels.pop("output_config.effort", None)
        _agree({off[0]: 0, **numbers, **({} if numbers else levels)})
    asked = numbers or levels
    budget = _agree(asked)
    if on := [field for field, is_on in switches.items() if is_on]:
        if off:
            raise _disagreement(on[0], off[0])
        if asked and budget == 0:
            raise _disagreement(next(iter(asked)), on[0])
        if not asked and default == 0:
            return on[0], None  # any length but none
    if off:
        return off[0], 0
    return (next(iter(asked)), budget) if asked else None


def _agree(asked: Mapping[str, Budget]) -> Budget:
    """The one value of fields that say the same."""
    if not asked:
        return None
    (first, budget), *others = asked.items()
    for other, value in others:
        if value != budget:
            raise _disagreement(first, other)
    return budget


def _disagreement(first: str, other: str) -> RequestError:
    return RequestError(f"{first} and {other} disagree: give one of them.", other)


def _check_known(body: Mapping[str, Any]) -> None:
    """Refuses what sounds like a budget, or how thinking is told, and is none."""
    for parent in _OBJECTS:
        place = body.get(parent)
        if place is None or (parent == "thinking" and isinstance(place, bool)):
            continue
        names = sorted(f.split(".")[1] for f in _KNOWN if f.startswith(f"{parent}."))
        if not isinstance(place, dict):
            raise RequestError(
                f"{parent} must be an object with {', '.join(names)}.", parent
            )
        for name in place:
            if name not in names:
                field = f"{parent}.{name}"
                raise RequestError(
                    f"{field} is not known here: {parent} takes {', '.join(names)}.",
                    field,
                )
    for field, value in body.items():
        is_foreign = field in _FOREIGN and _SOUNDS_LIKE_ONE.search(json.dumps(value))
        if is_foreign or (value is not None and is_unknown_budget(field)):
            raise _unknown(field)
    for field, value in _given(body, TOLD):
        _choice(field, value, dict.fromkeys(TOLD[field]))


def is_budget_field(field: str) -> bool:
    """Whether a field of a body asks something of thinking, or sounds like it."""
    is_known = field in _KNOWN or field in (TEMPLATE, *_FOREIGN)
    return is_known or bool(_SOUNDS_LIKE_ONE.search(field))


def is_unknown_budget(field: str) -> bool:
    """Whether a field sounds like a budget, and is none that is known."""
    return field not in _KNOWN and bool(_SOUNDS_LIKE_ONE.search(field))


def check_template_arguments(arguments: Mapping[str, Any], template: str) -> None:
    """Refuses arguments that sound like a budget and that nothing reads.

    Args:
        arguments (Mapping): Of the chat template, as a request gives them.
        template (str): The chat template, which may have variables of its own.

    Raises:
        RequestError: Naming the first.
    """
    for name in arguments:
        field = f"{TEMPLATE}.{name}"
        if is_unknown_budget(field) and name not in template:
            raise _unknown(field)


def _unknown(field: str) -> RequestError:
    return RequestError(
        f"{field} is not known here: name a budget with thinking_budget, a level with "
        "reasoning_effort.",
        field,
    )


def _given(body: Mapping[str, Any], fields: Any) -> Iterator[tuple[str, Any]]:
    """Those of some fields that are given, each with its value."""
    for field in fields:
        parent, _, name = field.rpartition(".")
        place = body.get(parent) if parent else body
        value = place.get(name) if isinstance(place, dict) else None
        if value is not None:
            yield field, value


def _choice(field: str, value: Any, known: Mapping[Any, Any]) -> Any:
    """What a value stands for."""
    for name, meaning in known.items():
        if type(value) is type(name) and value == name:
            return meaning
    names = (str(name).lower() if name in (True, False) else name for name in known)
    raise RequestError(f"{field} must be {', '.join(names)}; not {value!r}.", field)


def _read_level(field: str, value: Any, efforts: Mapping[str, int]) -> Budget:
    _choice(field, value, EFFORTS)
    return budget_of_level(value, efforts)


def _read_number(field: str, value: object, efforts: Mapping[str, int]) -> Budget:
    try:
        return with_tokens(check_budget(value), efforts)
    except ValueError as e:
        message = str(e).replace("thinking_budget", field, 1)
        if field not in message:
            message = f"{field}: {message}"
        raise RequestError(message, field) from None
