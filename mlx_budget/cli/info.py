"""The command `info`: the machine, and a model on it.

Knows how facts are told; nothing of how they are found. Nothing that it tells names the
user.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .. import __version__
from ..engine.settings import ModelSource, ThinkingBudget
from .command import Command
from .completion import complete_model
from .defaults import (
    PREFIX,
    RESERVED,
    config_file,
    in_home,
    read_defaults,
    unknown_variables,
)
from .options import JSON_OPTION, is_given, options_from

if TYPE_CHECKING:
    from ..models.facts import ModelFacts
    from ..models.machine import Machine

_WIDTH, _LABEL = 80, 15
# Parameters that ask about no model.
_OF_NO_MODEL = ("as_json", "help")


class _Info(Command):
    """Tells what is wrong with the configuration as one more fact."""

    tells_problems = True


@click.command(cls=_Info)
@click.argument(
    "name", metavar="[MODEL]", required=False, shell_complete=complete_model
)
@options_from(source=ModelSource, without=["pipeline"])
@options_from(thinking=ThinkingBudget, only=["thinking_start", "thinking_end"])
@JSON_OPTION
@click.pass_context
def info(
    context: click.Context,
    name: str | None,
    source: ModelSource,
    thinking: ThinkingBudget,
    as_json: bool,
) -> None:
    """Show the machine, the versions, and what a budget can do for MODEL.

    MODEL is a folder or a name on the Hub, of which only the configuration and the
    tokenizer are downloaded; demo is the built-in one. What --json prints is meant for
    a bug report: it does not name you, and your own folder is a ~ in it. Where
    something is wrong with MODEL the command says what, and ends with exit code 2.
    """
    from dataclasses import replace

    from ..models.inspecting import inspect_model
    from ..models.machine import read_machine

    if name is not None:
        if is_given("model") and source.model != name:
            raise ValueError(
                f"There are two models, {name} and {source.model}: give one."
            )
        source = replace(source, model=name)
    typed = ParameterSource.COMMANDLINE
    is_asked = (
        name is not None
        or is_given("model")
        or any(
            context.get_parameter_source(parameter.name or "") is typed
            for parameter in context.command.params
            if parameter.name not in _OF_NO_MODEL
        )
    )
    machine = read_machine()
    configuration = _configuration(context)
    facts = None
    if is_asked:
        facts = inspect_model(source, thinking, lambda line: click.echo(line, err=True))
    if as_json:
        found = _as_json(machine, configuration, facts)
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        lines = [*_machine_lines(machine), *_configuration_lines(configuration)]
        if facts is not None:
            lines += ["", *_model_lines(facts, machine)]
        click.echo(_shortened("\n".join(lines)))
    problems = [*configuration["problems"], *(facts.problems if facts else [])]
    for line in problems:
        click.echo(f"Problem: {_shortened(line)}", err=True)
    if facts is not None and facts.problems:
        context.exit(2)


def _configuration(context: click.Context) -> dict[str, Any]:
    """Which defaults are the user's own, without their values, which are private."""
    file, group = config_file(), getattr(context.command, "group", None)
    commands = group.commands if group is not None else {}
    problems, keys = [], set[str]()
    try:
        for defaults in read_defaults(commands).values():
            keys |= {
                place.partition(" in ")[0] for place, _ in defaults.places.values()
            }
    except ValueError as e:
        problems.append(str(e))
    problems += unknown_variables(commands)
    variables = sorted(name for name in os.environ if name.startswith(PREFIX))
    return {
        "file": in_home(file),
        "file_exists": file.exists(),
        "keys": sorted(keys),
        "variables": [name for name in variables if name not in RESERVED],
        "problems": problems,
    }


def _as_json(
    machine: "Machine", configuration: dict[str, Any], facts: "ModelFacts | None"
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mlx_budget": __version__,
        "machine": asdict(machine),
        "configuration": configuration,
        "model": None,
    }
    if facts is not None:
        model = asdict(facts)
        del model["config"]
        model |= {
            "needed_bytes": facts.needed_bytes,
            "fits": facts.fits(machine.memory.for_models),
            "guided_by": _guided_by(facts),
            "advice": _advice(facts),
        }
        if facts.published is not None:
            model["published"]["bytes"] = facts.published.nbytes
        found["model"] = model
    return _shortened(found)


def _machine_lines(machine: "Machine") -> list[str]:
    memory = machine.memory
    packages = ", ".join(f"{name} {v}" for name, v in machine.versions.items())
    device = f"MLX computes on the {machine.device.upper()}"
    device += "" if machine.has_metal else "; there is no Metal"
    lines = [
        f"mlx-budget {__version__}",
        _line("system", f"{machine.system}, {machine.processor}"),
        _line("chip", machine.chip),
        _line("Python", machine.python),
        _line("packages", packages),
        _line("device", device),
        _line("memory", f"{_gb(memory.total)}, {_gb(memory.available)} of it free"),
    ]
    if memory.wired is not None:
        lines.append(_line("wired now", f"{_gb(memory.wired)}, by all programs"))
    if memory.recommended is not None:
        own = ""
        if memory.wired_limit is not None:
            own = f"; iogpu.wired_limit_mb is set to {_gb(memory.wired_limit)}"
        lines.append(
            _line("can be wired", f"{_gb(memory.recommended)}, by generation{own}")
        )
    if machine.is_translated:
        lines.append(
            _line("note", "this Python is for Intel; MLX needs one for arm64 (arch)")
        )
    if machine.variables:
        pairs = (f"{name}={value}" for name, value in machine.variables.items())
        lines.append(_line("variables", ", ".join(pairs)))
    return lines


def _configuration_lines(configuration: dict[str, Any]) -> list[str]:
    text = configuration["file"]
    if not configuration["file_exists"]:
        text += " (not there)"
    own = [*configuration["keys"], *configuration["variables"]]
    return [_line("defaults", f"{text}; yours: {', '.join(own) or 'none'}")]


def _model_lines(facts: "ModelFacts", machine: "Machine") -> list[str]:
    lines = [f"{facts.name}: {_place(facts)}"]
    if facts.model_type is not None:
        lines.append(_line("architecture", _architecture(facts)))
    if facts.context is not None:
        lines.append(_line("context", f"{facts.context:,} tokens"))
    if facts.weight_bytes is not None:
        lines += _memory_lines(facts, machine)
    if facts.markers is not None:
        lines += _thinking_lines(facts)
    elif facts.model_type is not None and not facts.is_reference:
        lines.append(
            _line(
                "thinking",
                "no markers: its thinking cannot be budgeted unless you name them with "
                "--thinking-start-token and --thinking-end-token",
            )
        )
    if guided_by := _guided_by(facts):
        lines.append(_line("guided by", _guide(facts, guided_by)))
    lines += [_line("" if i else "what to do", t) for i, t in enumerate(_advice(facts))]
    return lines


def _place(facts: "ModelFacts") -> str:
    if not facts.place:
        return "not found"
    if facts.place == "built in":
        return "the built-in model"
    if facts.place == "folder":
        return "a folder on this machine"
    where = "in the Hub's cache" if facts.is_here else "on the Hub, weights not here"
    return f"{where}, commit {(facts.commit or '')[:8]}"


def _architecture(facts: "ModelFacts") -> str:
    text = str(facts.model_type)
    sizes = (
        (facts.layers, "layers"),
        (facts.width, "wide"),
        (facts.vocab_size, "tokens in its vocabulary"),
    )
    text += "".join(f", {n:,} {what}" for n, what in sizes if n is not None)
    if (quantization := facts.quantization) is not None:
        bits = quantization.get("bits")
        text += f", quantised{f' to {bits} bits' if bits else ''}"
    return text


def _memory_lines(facts: "ModelFacts", machine: "Machine") -> list[str]:
    from ..models.facts import CACHED_TOKENS

    files = "file" if facts.weight_files == 1 else "files"
    weights = f"{_gb(facts.weight_bytes)} in {facts.weight_files} {files}"
    if facts.missing_bytes:
        weights += f", {_gb(facts.missing_bytes)} to download"
    parts = [f"{_gb(facts.weight_bytes)} of weights"]
    if facts.predictor is not None and facts.predictor.bytes:
        parts.append(f"{_gb(facts.predictor.bytes)} of predictor")
    if facts.cache_bytes is not None:
        parts.append(
            f"{_gb(facts.cache_bytes)} of KV cache for {CACHED_TOKENS:,} tokens"
        )
    most = machine.memory.for_models
    verdicts = {
        "yes": f"it fits into the {_gb(most)} that a program can have here",
        "tight": f"it is close to the {_gb(most)} that a program can have here, and "
        "can be slow",
        "no": f"it does not fit into the {_gb(most)} that a program can have here: "
        "take a build with fewer bits, or a smaller model",
    }
    need = f"{_gb(facts.needed_bytes)} ({', '.join(parts)})"
    verdict = facts.fits(most)
    return [
        _line("weights", weights),
        _line("memory", f"{need}{f': {verdicts[verdict]}' if verdict else ''}"),
    ]


def _thinking_lines(facts: "ModelFacts") -> list[str]:
    markers, template = facts.markers, facts.template
    if markers is None:
        return []
    start = repr(markers.start) if markers.start else "the beginning of the reply"
    text = f"from {start} to {markers.end!r}"
    text += "" if markers.are_tokens else ", which are not tokens of their own"
    lines = [_line("thinking", text)]
    if markers.tools:
        shown = " or ".join(map(repr, markers.tools))
        lines.append(_line("tool calls", f"begin with {shown}, and end thinking"))
    if template is None:
        return [*lines, _line("template", "there is none: it cannot chat")]
    told = ["opens thinking in the prompt" if template.opens_thinking else ""]
    if not template.opens_thinking:
        told = ["leaves it to the model to open thinking"]
    if template.lets_think_by is not None:
        told.append(
            f"leaves thinking out unless {json.dumps(template.lets_think_by)} is "
            "given, as with a budget"
        )
    if template.leaves_out_by is not None:
        told.append(f"leaves it out by {json.dumps(template.leaves_out_by)}")
    else:
        told.append("has no switch that leaves it out")
    if template.drops_earlier_thinking is not None:
        what = "drops" if template.drops_earlier_thinking else "keeps"
        told.append(f"{what} the thinking of earlier turns")
    if not template.takes_system_prompt:
        told.append("takes no system prompt")
    return [*lines, _line("template", "; ".join(told))]


def _guided_by(facts: "ModelFacts") -> str | None:
    """What holds a budget: "predictor", "prior", or None if nothing can."""
    if facts.predictor is not None and not facts.predictor.problem:
        return "predictor"
    return "prior" if facts.markers is not None else None


def _guide(facts: "ModelFacts", guided_by: str) -> str:
    if guided_by == "prior" or facts.predictor is None:
        learnt = ""
        if facts.prior_lines:
            learnt = f", which has learnt from {facts.prior_lines:,} lines of replies"
        return (
            f"a prior{learnt}: there is no predictor of its own lengths, so levels are "
            "tokens, and auto and 50% are refused"
        )
    predictor = facts.predictor
    kind = {"table": "a table of lengths", "linear": "a linear probe"}
    text = f"{kind.get(predictor.kind, 'an encoder')} ({predictor.name})"
    if not predictor.knows_lengths:
        text += ", which knows no lengths: levels are tokens, and auto is refused"
    return text


def _advice(facts: "ModelFacts") -> list[str]:
    """Which way to go with this model: what it has, a published predictor, or learn."""
    if facts.problems or facts.markers is None:
        return []
    name = facts.name
    if facts.predictor is not None and not facts.predictor.problem:
        return [
            f"A budget works as it is: `mlx-budget generate --model {name} "
            "--thinking-budget low`."
        ]
    ways = []
    if (published := facts.published) is not None and facts.records_states:
        ways.append(
            f"A published predictor fits: --predictor {published.name} downloads it "
            "once."
        )
    learn = f"mlx-budget learn --model {name} --output my-predictor"
    if facts.records_states is False:
        ways.append(
            f"Its hidden states cannot be read: `{learn} --sizes table` makes a table."
        )
    elif published is None or not facts.records_states:
        ways.append(f"`{learn}` makes a predictor of its own lengths, in hours.")
    else:
        ways.append(f"Or `{learn}` makes one of its own lengths, in hours.")
    ways.append("Or neither: a budget works at once, by the prior.")
    return ways


def _line(label: str, text: str) -> str:
    """A label and its text, as wide as a terminal is at least."""
    return fill(
        text,
        width=_WIDTH,
        initial_indent=f"  {label:<{_LABEL}}",
        subsequent_indent=" " * (_LABEL + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _gb(nbytes: int | None) -> str:
    """Bytes as people read them."""
    if nbytes is None:
        return "unknown"
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"


def _shortened(value: Any) -> Any:
    """The same without the name of the user's folder in any text of it."""
    if isinstance(value, dict):
        return {_shortened(k): _shortened(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(v) for v in value]
    home = str(Path.home())
    if isinstance(value, str) and len(home) > 1:
        return value.replace(home, "~")
    return value
