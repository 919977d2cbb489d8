"""Click options made from the fields of settings, and others that commands share.

Knows how options are shown and read; nothing of what commands do with them.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from .. import demo
from ..engine.budgets import read_budget
from ..engine.fields import Option, all_options_of, take
from ..engine.settings import (
    ANSWER_TOKENS,
    PREFILL_STEP_SIZE,
    UNBOUNDED_TOKENS,
    ModelSource,
    ThinkingBudget,
)
from ..ranks import current
from .completion import COMPLETIONS
from .naming import origin_of
from .parameters import COUNT, PATH, Decorated, Read, command_option, together

DATA_HELP = (
    "File of prompts: .jsonl, .json, .csv, .tsv or .parquet with prompt, question, "
    "problem or messages, or .txt with a prompt on each line; or a dataset on the Hub, "
    "or a file or folder in one, as owner/name/path."
)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"--chat-template-config is not valid JSON: {e}.") from None
    if not isinstance(value, dict):
        raise ValueError("--chat-template-config must be a JSON object.")
    return value


def _read_schema(text: str) -> str:
    """The JSON schema that was given, or that is in the file that was."""
    if text.lstrip().startswith("{"):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ValueError(
            f"--json-schema is neither a JSON object nor a file that can be read: "
            f"{text:.80} ({reason})."
        ) from None


# Fields whose text is not simply a number, a path or a word.
_TYPES: dict[str, click.ParamType] = {
    "thinking_budget": Read("budget", read_budget),
    "chat_template_config": Read("json", _json_object),
    "json_schema": Read("FILE|JSON", _read_schema),
}


def options_from(
    *,
    only: Iterable[str] = (),
    without: Iterable[str] = (),
    required: Iterable[str] = (),
    types: Mapping[str, click.ParamType] | None = None,
    **settings: Any,
) -> Callable[[Decorated], Decorated]:
    """Gives a command an option for each field of settings, and the values themselves.

    Args:
        only (Iterable): Keywords of the fields that become options, if not all do.
        without (Iterable): Keywords of fields that do not.
        required (Iterable): Keywords of the options that have to be given.
        types (Mapping, optional): How texts are read, by keyword, if not as usual.
        settings: By the name of the command's parameter: a settings class, or a value
            that has other defaults.
    """
    only, without, required = set(only), set(without), set(required)
    types = {**_TYPES, **(types or {})}
    wanted = [
        (default, field, option)
        for base in settings.values()
        for default, field, option in all_options_of(base)
        if option.help
        and option.keyword not in without
        and (not only or option.keyword in only)
    ]

    def decorate(command: Decorated) -> Decorated:
        @wraps(command)
        def run(**given: Any) -> Any:
            asked = _take_asked([option for _, _, option in wanted], given)
            for name, base in settings.items():
                if isinstance(base, type):
                    given[name] = take(base, asked)
                else:
                    given[name] = take(type(base), asked, base)
            return command(**given)

        for default, field, option in reversed(wanted):
            is_required = default is MISSING or option.keyword in required
            has_default = not (is_required or option.shown or default is None)
            if option.off:
                run = command_option(
                    option.off,
                    is_flag=True,
                    help=option.off_help,
                    group=option.group,
                )(run)
            run = command_option(
                *option.flags,
                option.keyword,
                group=option.group,
                is_secret=option.is_secret,
                shown="" if is_required else option.shown or _in_help(default, option),
                type=types.get(option.keyword) or _type_of(field, option),
                is_flag=True if field.type is bool else None,
                required=is_required,
                envvar=option.variable,
                help=option.help,
                shell_complete=COMPLETIONS.get(option.keyword),
                **({"default": default} if has_default else {}),
            )(run)
        # As with click's own decorators, the name keeps its type.
        return run  # type: ignore[return-value]

    return decorate


def _take_asked(options: list[Option], given: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields' options out of all; returns those that the user gave."""
    asked = {}
    for option in options:
        keyword, off = option.keyword, option.off.lstrip("-").replace("-", "_")
        value = given.pop(keyword)
        if is_given(keyword):
            asked[keyword] = value
        if option.off and given.pop(off):
            if keyword not in asked or _beats(off, keyword):
                asked[keyword] = option.off_value
            elif not _beats(keyword, off):
                raise ValueError(f"Give {option.flags[0]} or {option.off}, not both.")
    return asked


def _beats(one: str, other: str) -> bool:
    """Whether one option's value comes from where it counts more than another's."""
    context = click.get_current_context()
    ranks = {p.name: origin_of(context, p).rank for p in context.command.params}
    return ranks[one] > ranks[other]


def is_given(name: str) -> bool:
    """Whether the user gave an option of the command that runs."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


def _in_help(default: Any, option: Option) -> str:
    if default in (MISSING, None, "", {}):
        return ""
    if isinstance(default, bool):
        on, _, off = option.flags[0].partition("/")
        return (on if default else off).lstrip("-") if off else ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default)


def _type_of(field: Field, option: Option) -> click.ParamType | None:
    if words := option.words:
        return Read("text", lambda text: words.get(text, text))
    kinds = get_args(field.type) or (field.type,)
    least, most = option.least, option.most
    if option.choices:
        return click.Choice(option.choices)
    if bool in kinds:
        return click.BOOL
    if Path in kinds:
        return PATH
    if int in kinds:
        return click.IntRange(
            None if least is None else int(least), None if most is None else int(most)
        )
    if float in kinds:
        # A range without an end would let infinity pass; the settings do not.
        return click.FLOAT if most is None else click.FloatRange(least, most)
    return click.STRING


PROMPT_HELP = "The question; - reads stdin."
MAX_TOKENS_OPTION = command_option(
    "--max-tokens",
    "-m",
    type=click.IntRange(min=-1),
    shown=f"what thinking can take and {ANSWER_TOKENS:,} more; {UNBOUNDED_TOKENS:,} if "
    "nothing bounds it",
    group="Output",
    help="Most tokens to generate, thinking included; -1 for no limit.",
)
JSON_OPTION = command_option(
    "--json", "as_json", is_flag=True, group="Output", help="Print one JSON object."
)
HIDE_THINKING_OPTION = command_option(
    "--hide-thinking", is_flag=True, group="Output", help="Show the answer only."
)
VERBOSE_OPTION = command_option(
    "--verbose",
    type=bool,
    default=True,
    show_default=True,
    group="Output",
    help="Whether to print statistics on stderr.",
)
MAX_KV_SIZE_OPTION = command_option(
    "--max-kv-size",
    type=COUNT,
    group="Memory and speed",
    help="Most tokens in the KV cache.",
)
PREFILL_OPTION = command_option(
    "--prefill-step-size",
    type=COUNT,
    default=PREFILL_STEP_SIZE,
    show_default=True,
    group="Memory and speed",
    help="Prompt tokens to process at a time.",
)
KV_OPTIONS = together(
    command_option(
        "--kv-bits",
        type=click.IntRange(2, 8),
        group="Memory and speed",
        help="Bits of a quantised KV cache.",
    ),
    command_option(
        "--kv-group-size",
        type=COUNT,
        default=64,
        show_default=True,
        group="Memory and speed",
        help="Group of a quantised KV cache.",
    ),
    command_option(
        "--quantized-kv-start",
        type=click.IntRange(min=0),
        default=5000,
        show_default=True,
        group="Memory and speed",
        help="Step from which the KV cache is quantised.",
    ),
)


def tell_of_demo() -> None:
    """Says that the built-in model is used, where no --model was given."""
    if not is_given("model"):
        click.echo(demo.NOTICE, err=True)


def check_reply(
    source: ModelSource,
    thinking: ThinkingBudget,
    max_tokens: int | None,
    learn_prior: bool = False,
) -> None:
    """Checks what can be checked of a reply's options before minutes of loading.

    Raises:
        ValueError: Naming the option that cannot be honoured.
    """
    if max_tokens == 0:
        raise ValueError("--max-tokens must be 1 or more, or -1 for no limit.")
    folder = demo.FOLDER if source.model == demo.NAME else Path(source.model)
    if not thinking.tokens or source.predictor is not None or not folder.is_dir():
        return
    from ..engine.sampler import check_enforceable
    from ..method.predictor import is_predictor_folder

    if not is_predictor_folder(folder) and not learn_prior:
        check_enforceable(thinking, None)


def read_prompt(prompt: str) -> str:
    """The prompt as it was given, or standard input for "-".

    Raises:
        ValueError: If it is empty or not UTF-8 text, or standard input has no end.
    """
    if prompt == "-" and current() is not None:
        # The launcher keeps it open for good.
        raise ValueError(
            "--prompt - waits for the end of standard input, which mlx.launch never "
            'ends: give the prompt itself, as --prompt "$(cat prompt.txt)".'
        )
    try:
        if prompt == "-":
            text = sys.stdin.buffer.read().decode("utf-8") if sys.stdin else ""
        else:
            text = prompt
            text.encode("utf-8")
    except UnicodeError:
        raise ValueError("The prompt is not UTF-8 text.") from None
    if not text.strip():
        raise ValueError("The prompt is empty: give one with --prompt.")
    return text
